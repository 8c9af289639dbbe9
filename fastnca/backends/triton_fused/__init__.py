"""Rollouts on the fused Triton kernels, as one autograd node.

    route                  when                              launches            proved by
    ---------------------- --------------------------------- ------------------- -------------------
    operators              `torch.compile`, a transform of   those of a          test_operators,
    (operators.py)         `torch.func`, a dispatch mode or  launched rollout    test_fused_module
                           a subclass of tensors sees it
    launched rollout       every other rollout               T + 3 forward,      test_rollout
    (nodes.py, loops.py)                                     T + 4 backward
    replayed CUDA graph    a kind of rollout comes for the   3 forward and       test_graphs,
    (nodes.py, graphs.py)  third time, `graphs.MIN_STEPS`    4 backward, with a  test_gpu_replay
                           and `MAX_CELLS` allow it, and     replay each
                           every state is kept
    single step            one step of the tutorial's rule,  1 forward,          test_single
    (single_step.py)       with any alive threshold          2 backward
    in a caller's capture  a CUDA graph is being captured;   as launched rollout test_gpu,
                           the seed must be a tensor         or single step      test_training_graph

All routes give the same bits, except that gradients of a single step with 16-bit operands are
rounded once less. Importing this package needs neither Triton nor a GPU; the first rollout imports
Triton.
"""

import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from fastnca.backends.autograd import observed, refuse_tangents, savable
from fastnca.backends.base import RolloutCall
from fastnca.backends.triton_fused.limits import (
    fused_reasons,
    operand_precision,
    rule_reasons,
    shape_reasons,
)
from fastnca.checks import Parameters, check_steps
from fastnca.masks import make_counter, signed
from fastnca.rule import TUTORIAL, Rule

__all__ = ["TritonFused", "fused_reasons", "fused_rollout", "operand_precision", "release_graphs"]


class TritonFused:
    """The `triton` backend."""

    name = "triton"
    devices = frozenset(("cuda",))
    precisions = frozenset(("fp16", "bf16"))
    draws_masks = True
    least_cells = 0

    def refuses(self, call: RolloutCall) -> list[str]:
        """See `fastnca.backends.base.Backend`."""
        state, rule = call.state, call.rule
        if call.updates.given is not None:
            return ["masks that are given: the kernels draw theirs from a seed"]
        if rule.changed and (reasons := rule_reasons(rule)):
            return reasons
        precision = operand_precision(call.precision, state.device.type)
        batch, channels, height, width = state.shape
        reasons = fused_reasons(state.device, state.dtype, channels, rule.hidden[0], precision)
        if rule.changed:
            reasons += shape_reasons(batch, height, width, rule.padding)
        return reasons

    def run(self, call: RolloutCall) -> Tensor:
        """See `fastnca.backends.base.Backend`."""
        updates = call.updates
        return fused_rollout(
            call.state,
            call.parameters,
            rule=call.rule,
            steps=updates.steps,
            seed=updates.seed,
            first_step=updates.first_step,
            update_rate=updates.update_rate,
            precision=operand_precision(call.precision, call.state.device.type),
            checkpoint_every=call.checkpoint_every,
            device_steps=updates.device_steps,
        )


def fused_rollout(
    state: Tensor,
    parameters: Parameters,
    *,
    rule: Rule = TUTORIAL,
    steps: int,
    seed: int | Tensor | None,
    first_step: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int = 1,
    device_steps: Tensor | None = None,
) -> Tensor:
    """Advance a state by several steps on the fused kernels, as one autograd node.

    Under autocast the state, the accumulation and every gradient stay float32; only `precision`
    chooses the operands.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: `[hidden, K*C, 1, 1]`, `[hidden]`, `[C - inputs, hidden, 1, 1]` and, if the rule
            has a final bias, `[C - inputs]`: weights and biases of the two 1x1 convolutions for K
            filters, float32 on the state's device.
        rule: what a step computes. The width of its hidden layer is taken from `parameters`.
        steps: number of steps, at least 0.
        seed: 64-bit seed of the update masks, an int or a `[]` int64 tensor that is read on the
            device; None updates every cell in every step. A CUDA graph needs the tensor: an int
            would be frozen into it, and every replay would draw the same masks.
        first_step: number of the first step, at least 0.
        update_rate: probability that a cell updates in a step, in [0, 1].
        precision: "fp16", "bf16" or "ieee", the type of the products' operands.
        checkpoint_every: keep every k-th state for the backward pass and recompute the others.
            Saves memory and takes time; the gradients are the same bits.
        device_steps: `[]` int64 tensor on the state's device: how many of the `steps` steps are
            taken. It is read on the device, so a caller's CUDA graph can change it. None takes all.

    Returns:
        `[B, C, H, W]` float32, contiguous.

    Raises:
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation, or a
            second derivative is asked for.
        RuntimeError: the fused path cannot run here, or an int seed is used while a CUDA graph is
            captured; the message holds every reason.
        ValueError: a shape or a number is out of range.
    """
    if device_steps is not None and checkpoint_every > 1:
        raise ValueError(
            "device_steps needs checkpoint_every=1: which states are kept would depend on it"
        )
    if device_steps is not None:
        device_steps = _on_device(device_steps, "device_steps", state)
    if isinstance(seed, Tensor):
        seed = _on_device(seed, "seed", state)
    tensors = (state, *parameters)
    if observed(tensors):
        if not torch.compiler.is_compiling():
            refuse_tangents("triton", tensors)
        from fastnca.backends.triton_fused.operators import record  # imports Triton

        numbers = make_counter(seed, first_step, steps, device_steps, state.device)
        rest = (float(update_rate), precision, checkpoint_every, seed is not None)
        return record(state, parameters, numbers, (rule.json, steps, *rest))
    if not 0 <= first_step < 2**62 > steps >= 0:
        check_steps(first_step, steps)
    refuse_tangents("triton", tensors)
    state = savable(state)
    eager_rollout, single_step = _eager_routes()
    if isinstance(seed, int):
        seed = signed(seed)
    if steps == 1 and device_steps is None and checkpoint_every == 1:
        stepped = single_step(state, parameters, rule, seed, first_step, update_rate, precision)
        if stepped is not None:
            return stepped
    options = (update_rate, precision, checkpoint_every, device_steps)
    return eager_rollout(state, parameters, rule, steps, seed, first_step, *options)


def release_graphs() -> None:
    """Free the device memory of rollouts that were captured as CUDA graphs."""
    if "fastnca.backends.triton_fused.graphs" in sys.modules:
        sys.modules["fastnca.backends.triton_fused.graphs"].GRAPHS.release()


def _on_device(number: Tensor, name: str, state: Tensor) -> Tensor:
    """Return a tensor that holds one number as int64 on the state's device."""
    if number.numel() != 1:
        raise ValueError(f"{name} must hold one number, got shape {tuple(number.shape)}")
    return number.to(state.device, torch.int64)


@cache
def _eager_routes() -> tuple[Callable[..., Tensor], Callable[..., Tensor | None]]:
    """Import Triton with the functions that launch kernels."""
    from fastnca.backends.triton_fused.nodes import eager_rollout
    from fastnca.backends.triton_fused.single_step import single_step

    return eager_rollout, single_step
