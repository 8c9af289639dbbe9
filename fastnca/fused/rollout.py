"""The loops over the steps of a rollout, forward and backward, on the fused kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.kernels import (
    OPERAND_DTYPES,
    LaunchConfig,
    Rule,
    Weights,
    choose_launch,
    device_facts,
    finish_backward,
    finish_forward,
    flag_rows,
    flag_runs,
    pack_weights,
    padded_channels,
    pair_cells,
    partial_size,
    start_forward,
    step_backward,
    step_forward,
    unpack_gradients,
)

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

_HEADROOM = 4
"""The largest incoming gradient is scaled to [2⁴, 2⁵) for fp16 operands: a gradient may grow
2¹¹ times on its way back before it overflows, and shrink 2¹⁸ times before it loses bits."""


@dataclass(frozen=True)
class Plan:
    """What is the same in every step of a rollout.

    Attributes:
        steps: number of steps T, at least 0.
        precision: "fp16", "bf16" or "ieee".
        rule: which cells update, and which are alive.
        checkpoint_every: every how many steps k a state is kept for the backward pass.
    """

    steps: int
    precision: str
    rule: Rule
    checkpoint_every: int = 1

    @property
    def segments(self) -> int:
        """Number of stretches of at most k steps."""
        return -(-self.steps // self.checkpoint_every)

    def slot(self, step: int, keep: bool) -> int:
        """Return the slot of the state after `step` steps."""
        if not keep:
            return step % 2
        if step % self.checkpoint_every == 0:
            return step // self.checkpoint_every
        return self.segments if step == self.steps else self.segments + 1 + step % 2


def count_slots(steps: int, checkpoint_every: int, keep: bool) -> int:
    """Return how many states a forward pass stores: the kept ones, and two to work in."""
    if not keep:
        return 2
    return steps + 1 if checkpoint_every == 1 else -(-steps // checkpoint_every) + 3


def allocate(state: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Allocate stored states `[slots, B, H, W, CP]` and their flags, which are zero."""
    batch, channels, height, width = state.shape
    states = state.new_empty(slots, batch, height, width, padded_channels(channels))
    flags = torch.zeros(
        slots, batch, flag_rows(height), flag_runs(width), dtype=torch.int64, device=state.device
    )
    return states, flags


def run_forward(
    state: Tensor, parameters: Parameters, counter: Tensor | None, plan: Plan, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance a state by all steps of a plan.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weights and biases of the two 1x1 convolutions.
        counter: `[2]` int64 on the state's device, seed and number of the first step;
            None updates every cell.
        plan: the steps.
        keep: whether to keep states for the backward pass.

    Returns:
        The last state, `[B, C, H, W]` contiguous; the stored states; their flags.
    """
    weights = pack_weights(*parameters, OPERAND_DTYPES[plan.precision])
    states, flags = allocate(state, count_slots(plan.steps, plan.checkpoint_every, keep))
    counter = _any_counter(counter, state)
    start_forward(state.contiguous(), states, flags, plan.rule.threshold)
    config = _config("forward", states, weights)
    for step in range(plan.steps):
        slots = plan.slot(step, keep), plan.slot(step + 1, keep)
        step_forward(states, flags, weights, counter, slots, step, plan.rule, config)
    result = torch.empty_like(state, memory_format=torch.contiguous_format)
    finish_forward(states, flags, plan.slot(plan.steps, keep), result)
    return result, states, flags


def run_backward(
    grad: Tensor,
    states: Tensor,
    flags: Tensor,
    parameters: Parameters,
    counter: Tensor | None,
    plan: Plan,
) -> Gradients:
    """Differentiate a rollout.

    Args:
        grad: `[B, C, H, W]` float32, gradient of the last state, any strides.
        states: the states that `run_forward` kept.
        flags: their flags.
        parameters: as in the forward pass.
        counter: as in the forward pass.
        plan: as in the forward pass.

    Returns:
        Gradients of the state and the four parameters. If a value left the range of fp16 on the
        way, all of them are NaN, so that no partial gradient passes for a whole one.
    """
    channels, hidden = parameters[2].shape[:2]
    weights = pack_weights(*parameters, OPERAND_DTYPES[plan.precision])
    counter = _any_counter(counter, grad)
    scale = _gradient_scale(grad, plan.precision)
    config = _config("backward", states, weights)
    partials = states.new_zeros(config.programs, partial_size(weights))
    passed = states.new_zeros(2, *states.shape[1:])
    pairs = weights.weight1.new_zeros(pair_cells(*passed.shape[1:4]), passed.shape[-1], 2)
    passed[plan.steps % 2, ..., :channels] = grad.permute(0, 2, 3, 1) * scale
    for segment in reversed(range(plan.segments)):
        first = segment * plan.checkpoint_every
        last = min(first + plan.checkpoint_every, plan.steps)
        work, work_flags, offset = states, flags, first
        if plan.checkpoint_every > 1:
            work, work_flags = _replay(states, flags, weights, counter, plan, first, last)
            offset = 0
        for step in reversed(range(first, last)):
            source = step - first + offset
            step_backward(
                work,
                work_flags,
                (passed, pairs),
                weights,
                counter,
                partials,
                source,
                step,
                plan.rule,
                config,
            )
    grad_state = torch.empty_like(grad, memory_format=torch.contiguous_format)
    finish_backward(passed, pairs, scale, 0, grad_state)
    total = partials.sum(0) / scale
    grads = (grad_state, *unpack_gradients(total, weights, channels, hidden))
    if plan.precision == "fp16":
        poison = (grad_state.sum() + total.sum()) * 0
        for gradient in grads:
            gradient += poison
    return grads


def _replay(
    states: Tensor,
    flags: Tensor,
    weights: Weights,
    counter: Tensor,
    plan: Plan,
    first: int,
    last: int,
) -> tuple[Tensor, Tensor]:
    """Compute the states of a segment again, bit for bit, from the one kept at its start."""
    segment = first // plan.checkpoint_every
    steps = last - first
    work = states.new_empty(steps + 1, *states.shape[1:])
    work_flags = flags.new_zeros(steps + 1, *flags.shape[1:])
    work[0], work_flags[0] = states[segment], flags[segment]
    work_flags[steps] = flags[segment + 1]
    config = _config("forward", states, weights)
    for step in range(steps - 1):
        slots = step, step + 1
        step_forward(work, work_flags, weights, counter, slots, first + step, plan.rule, config)
    return work, work_flags


def _any_counter(counter: Tensor | None, state: Tensor) -> Tensor:
    """Return `counter`; where no mask is drawn, something for the kernel's pointer to point at."""
    if counter is None:
        return torch.zeros(2, dtype=torch.int64, device=state.device)
    return counter


def _config(direction: str, states: Tensor, weights: Weights) -> LaunchConfig:
    hidden, dtype = weights.weight1.shape[1], weights.weight1.dtype
    facts = device_facts(states.device)
    return choose_launch(direction, states.shape[-1], hidden, dtype, *facts)


def _gradient_scale(grad: Tensor, precision: str) -> Tensor:
    """Return the power of two that brings `grad` into the range of the operands, `[]` float32.

    It is computed from the bits of the largest element, without a transfer to the host. A float's
    exponent field is 127 above its exponent.
    """
    if precision != "fp16" or grad.numel() == 0:
        return torch.ones((), device=grad.device)
    exponent = grad.abs().amax().view(torch.int32) >> 23
    return ((2 * 127 + _HEADROOM - exponent).clamp(1, 254) << 23).view(torch.float32)
