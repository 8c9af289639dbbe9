"""The autograd node of a rollout on the compiled kernels."""

from typing import Any

import torch
from torch import Tensor

from fastnca.backends.autograd import (
    Grads,
    first_order_only,
    refuse_forward_mode,
    refuse_tangents,
    savable,
)
from fastnca.backends.cpp import library
from fastnca.checks import Parameters
from fastnca.masks import Updates


def cpp_rollout(state: Tensor, parameters: Parameters, updates: Updates) -> Tensor:
    """Advance a state by several steps, as one autograd node.

    Args:
        state: `[B, C, H, W]` float32 or float64 on the CPU, any strides.
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, 3*C, 1, 1]`,
            `[hidden]`, `[C, hidden, 1, 1]`, `[C]`, of the state's dtype.
        updates: at least one step.

    Returns:
        `[B, C, H, W]`, contiguous.

    Raises:
        MemoryError: memory ran out.
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        OutOfRangeError: a value left the range in which active cells are exact.
        TypeError: a dtype or a layout does not fit.
        ValueError: a shape, a device or a number does not fit.
    """
    refuse_tangents("cpp", (state, *parameters))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (state, *parameters)):
        result: Tensor = _Rollout.apply(savable(state), *parameters, updates)
        return result
    return library.forward(state, parameters, updates, keep=False)[0]


class _Rollout(torch.autograd.Function):
    """Forward: all steps on active cells. Backward: undo and differentiate them one by one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        state, *parameters, updates = inputs
        result, ctx.kept, pieces = library.forward(state, tuple(parameters), updates, keep=True)
        ctx.save_for_backward(state, *parameters, *pieces)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        state, w1, b1, w2, b2, *pieces = ctx.saved_tensors
        wanted = ctx.needs_input_grad

        def compute(grad: Tensor) -> Grads:
            return library.backward(ctx.kept, pieces, grad, wanted[0], any(wanted[1:5]))

        grads = first_order_only("cpp", compute, grad_outputs[0], state, w1, b1, w2, b2)
        return *(g if need else None for g, need in zip(grads, wanted, strict=False)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("cpp")
