"""The autograd node of a rollout on the compiled kernels."""

from typing import Any

import torch
from torch import Tensor

from fastnca._torch_internals import forward_ad
from fastnca.backends.autograd import (
    Grads,
    first_order_only,
    refuse_forward_mode,
    refuse_tangents,
    savable,
)
from fastnca.backends.base import RolloutCall
from fastnca.backends.cpp import library


def compute(call: RolloutCall) -> Tensor:
    """Advance a state by several steps, as one autograd node.

    Args:
        call: a state `[B, C, H, W]`, float32 or float64 on the CPU, with any strides; parameters of
            its dtype; at least one step; a rule that has no `rule_reasons`.

    Returns:
        `[B, C, H, W]`, contiguous.

    Raises:
        MemoryError: memory ran out.
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        OutOfRangeError: a value left the range in which active cells are exact.
        TypeError: a dtype or a layout does not fit.
        ValueError: a shape, a device or a number does not fit.
    """
    state, parameters, rule, updates = call[:4]
    if updates.device_steps is not None or isinstance(updates.seed, Tensor):
        updates = updates.on_host()
    if forward_ad._current_level >= 0:
        refuse_tangents("cpp", (state, *parameters))
    if state.is_inference():
        state = savable(state)
    if torch.is_grad_enabled():
        for tensor in (state, *parameters):
            if tensor.requires_grad:
                result: Tensor = _Rollout.apply(state, *parameters, updates, rule)
                return result
    return library.forward(state, parameters, updates, keep=False, rule=rule)[0]


class _Rollout(torch.autograd.Function):
    """Forward: all steps on active cells. Backward: undo and differentiate them one by one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        state, *parameters, updates, rule = inputs
        result, ctx.kept, pieces = library.forward(
            state, tuple(parameters), updates, keep=True, rule=rule
        )
        ctx.save_for_backward(state, *parameters, *pieces)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:-2]
        inputs, pieces = ctx.saved_tensors[: len(wanted)], ctx.saved_tensors[len(wanted) :]

        def compute(grad: Tensor) -> Grads:
            return library.backward(ctx.kept, pieces, grad, wanted[0], any(wanted[1:]))

        grads = first_order_only("cpp", compute, grad_outputs[0], *inputs)
        return *(g if need else None for g, need in zip(grads, wanted, strict=True)), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("cpp")
