"""The loops over the steps of a rollout, forward and backward, on the fused kernels."""

import torch
from torch import Tensor

from fastnca.backends.autograd import dense
from fastnca.backends.triton_fused.plan import Plan
from fastnca.backends.triton_fused.storage import (
    Carried,
    Stored,
    allocate_carried,
    allocate_states,
    allocate_weights,
    launch_config,
)
from fastnca.checks import Parameters
from fastnca.kernels import (
    finish_backward,
    finish_forward,
    pack_weights,
    poison,
    reduce_gradients,
    start_backward,
    start_forward,
    step_backward,
    step_forward,
)

Gradients = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]

Numbers = tuple[int | Tensor, int, int, Tensor | None]
"""Seed, first step, most steps and, unless it is the most, the number of steps; tensors, `[]`
int64, are read on the device."""


def prepare(
    state: Tensor,
    parameters: Parameters,
    plan: Plan,
    counter: Tensor | None,
    numbers: Numbers | None,
) -> Stored:
    """Allocate what a forward pass stores, and pack the weights.

    Args:
        state: `[B, C, H, W]` float32.
        parameters: weights and biases of the two 1x1 convolutions.
        plan: the steps.
        counter: `[3]` int64; None allocates it.
        numbers: what to write into the counter; None leaves it as it is.

    Returns:
        What was allocated; the flags are zero.
    """
    states, flags = allocate_states(state, plan.slots)
    if counter is None:
        counter = torch.empty(3, dtype=torch.int64, device=state.device)
    weights = allocate_weights(parameters, plan.precision)
    pack_weights(parameters, weights, counter, numbers, flags)
    return Stored(states, flags, counter, weights)


def launch_forward(stored: Stored, plan: Plan) -> None:
    """Launch every step of a plan."""
    config = launch_config("forward", stored)
    for step in range(plan.steps):
        slots = plan.slot(step), plan.slot(step + 1)
        step_forward(
            stored.states,
            stored.flags,
            stored.weights,
            stored.counter,
            slots,
            step,
            plan.rule,
            config,
        )


def enter(state: Tensor, stored: Stored, plan: Plan) -> None:
    """Store the first state."""
    start_forward(dense(state), stored.states, stored.flags, plan.rule.threshold)


def leave(state: Tensor, stored: Stored, plan: Plan) -> Tensor:
    """Return the last state, contiguous, of the shape of `state`."""
    result = torch.empty_like(state, memory_format=torch.contiguous_format)
    finish_forward(stored.states, stored.flags, stored.counter, plan.last, result)
    return result


def enter_backward(grad: Tensor, stored: Stored, carried: Carried, plan: Plan) -> None:
    """Store the gradient of the last state, scaled into the range of the operands."""
    grad = dense(grad)
    largest = None
    if plan.precision == "fp16":
        largest = torch.linalg.vector_norm(grad, torch.inf)
    halves = carried.passed, carried.pairs
    start_backward(grad, largest, stored.counter, plan.steps, halves, carried.scale)


def launch_backward(stored: Stored, carried: Carried, plan: Plan) -> None:
    """Launch the derivative of every step of a plan, the last step first."""
    config = launch_config("backward", stored)
    halves = carried.passed, carried.pairs
    for segment in reversed(range(plan.segments)):
        first = segment * plan.checkpoint_every
        last = min(first + plan.checkpoint_every, plan.steps)
        work, offset = stored, first
        if plan.checkpoint_every > 1:
            work, offset = _replay(stored, plan, first, last), 0
        for step in reversed(range(first, last)):
            step_backward(
                work.states,
                work.flags,
                halves,
                stored.weights,
                stored.counter,
                carried.partials,
                step - first + offset,
                step,
                plan.rule,
                config,
            )


def leave_backward(
    grad: Tensor,
    shapes: tuple[torch.Size, ...],
    stored: Stored,
    carried: Carried,
    plan: Plan,
    state_too: bool,
) -> Gradients:
    """Return the gradients of the state, if wanted, and of the four parameters.

    If a value left the range of fp16 on the way, all of them are NaN, so that no partial gradient
    passes for a whole one.
    """
    checked = plan.precision == "fp16"
    empty = torch.empty_like if grad.is_contiguous() else _empty_contiguous
    w1, b1, w2, b2 = (carried.partials.new_empty(shape) for shape in shapes)
    scale = carried.scale
    reduce_gradients(
        carried.partials, scale, stored.counter, stored.weights, (w1, b1, w2, b2), checked
    )
    state = None
    if state_too:
        state = empty(grad)
        finish_backward(carried.passed, carried.pairs, scale, state, checked)
    if checked:
        poison(scale, (b2 if state is None else state, w1, b1, w2, b2))
    return state, w1, b1, w2, b2


def run_forward(
    state: Tensor,
    parameters: Parameters,
    plan: Plan,
    counter: Tensor | None = None,
    numbers: Numbers | None = None,
) -> tuple[Tensor, Stored]:
    """Advance a state by all steps of a plan, launch by launch.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weights and biases of the two 1x1 convolutions.
        plan: the steps.
        counter: as in `prepare`.
        numbers: as in `prepare`.

    Returns:
        The last state, `[B, C, H, W]` contiguous, and what the backward pass needs.
    """
    stored = prepare(state, parameters, plan, counter, numbers)
    enter(state, stored, plan)
    launch_forward(stored, plan)
    return leave(state, stored, plan), stored


def run_backward(
    grad: Tensor,
    stored: Stored,
    shapes: tuple[torch.Size, ...],
    plan: Plan,
    state_too: bool = True,
) -> Gradients:
    """Differentiate a rollout, launch by launch.

    Args:
        grad: `[B, C, H, W]` float32, gradient of the last state, any strides.
        stored: what the forward pass left.
        shapes: shapes of the four parameters.
        plan: as in the forward pass.
        state_too: whether the gradient of the state is wanted.

    Returns:
        Gradients of the state, None if it is not wanted, and of the four parameters.
    """
    if grad.numel() == 0:
        w1, b1, w2, b2 = (grad.new_zeros(shape) for shape in shapes)
        return torch.zeros_like(grad), w1, b1, w2, b2
    carried = allocate_carried(stored)
    enter_backward(grad, stored, carried, plan)
    launch_backward(stored, carried, plan)
    return leave_backward(grad, shapes, stored, carried, plan, state_too)


def _empty_contiguous(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _replay(stored: Stored, plan: Plan, first: int, last: int) -> Stored:
    """Compute the states of a segment again, bit for bit, from the one kept at its start."""
    segment = first // plan.checkpoint_every
    steps = last - first
    states, flags = stored.states, stored.flags
    work = states.new_empty(steps + 1, *states.shape[1:])
    work_flags = flags.new_zeros(steps + 1, *flags.shape[1:])
    work[0], work_flags[0] = states[segment], flags[segment]
    work_flags[steps] = flags[segment + 1]
    config = launch_config("forward", stored)
    for step in range(steps - 1):
        slots = step, step + 1
        step_forward(
            work,
            work_flags,
            stored.weights,
            stored.counter,
            slots,
            first + step,
            plan.rule,
            config,
        )
    return Stored(work, work_flags, stored.counter, stored.weights)
