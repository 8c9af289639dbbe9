"""The autograd node of a rollout on active cells."""

from collections.abc import Iterable
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
from fastnca.backends.torch_active.backward import run_backward
from fastnca.backends.torch_active.forward import Stepper, StepRecord
from fastnca.backends.torch_active.grid import Grid
from fastnca.backends.torch_active.network import Network
from fastnca.checks import Parameters, check_rollout

_RECORD = 5  # tensors of a StepRecord


def active_rollout(
    state: Tensor,
    parameters: Parameters,
    masks: Iterable[Tensor | None],
) -> Tensor:
    """Advance a state by one step per mask, as one autograd node.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides.
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, 3*C, 1, 1]`,
            `[hidden]`, `[C, hidden, 1, 1]`, `[C]`, of the state's dtype and device.
        masks: `[B, H, W]` bool each, True where a cell updates; None for every cell.

    Returns:
        `[B, C, H, W]`, contiguous.

    Raises:
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        OutOfRangeError: a value left the range in which active cells are exact.
        TypeError: a dtype or a layout does not fit.
        ValueError: a shape or a device does not fit.
    """
    check_rollout(state, parameters)
    refuse_tangents("torch", (state, *parameters))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (state, *parameters)):
        result: Tensor = _Rollout.apply(savable(state), *parameters, masks)
        return result
    return _run(state, parameters, masks, keep=False)[0]


def _run(
    state: Tensor, parameters: Parameters, masks: Iterable[Tensor | None], keep: bool
) -> tuple[Tensor, Grid, Tensor, list[StepRecord]]:
    """Advance a state; return the last one, its grid and rows, and a record per step if wanted."""
    with torch.no_grad():
        grid = Grid(state.shape[0], state.shape[2], state.shape[3], state.device)
        rows = grid.to_rows(state)
        records = Stepper(grid, Network.from_convolutions(*parameters), rows).run(masks, keep)
        return grid.to_state(rows), grid, rows, records


class _Rollout(torch.autograd.Function):
    """Forward: all steps on active cells. Backward: undo and differentiate them one by one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        state, *parameters, masks = arguments
        result, ctx.grid, rows, records = _run(state, tuple(parameters), masks, keep=True)
        kept = [tensor for record in records for tensor in record.tensors()]
        ctx.save_for_backward(state, *parameters, rows, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        state, w1, b1, w2, b2, rows, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad

        def compute(grad_output: Tensor) -> Grads:
            records = [
                StepRecord(*kept[start : start + _RECORD]) for start in range(0, len(kept), _RECORD)
            ]
            grad = ctx.grid.to_rows(grad_output)
            sums = run_backward(
                ctx.grid,
                Network.from_convolutions(w1, b1, w2, b2),
                rows.clone(),
                grad,
                records,
                weights_wanted=any(wanted[1:5]),
                state_wanted=wanted[0],
            )
            return ctx.grid.to_state(grad), *sums.to_convolutions()

        grads = first_order_only("torch", compute, grad_outputs[0], state, w1, b1, w2, b2)
        return *(g if need else None for g, need in zip(grads, wanted, strict=False)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("torch")
