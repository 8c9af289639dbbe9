"""The autograd node of a rollout on active cells."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastnca.active.backward import run_backward
from fastnca.active.forward import OutOfRangeError, Stepper, StepRecord
from fastnca.active.grid import Grid
from fastnca.active.network import Network

__all__ = ["ActiveState", "OutOfRangeError", "active_rollout"]

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]

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
        OutOfRangeError: a value left the range in which active cells are exact.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (state, *parameters)):
        result: Tensor = _Rollout.apply(state, *parameters, masks)
        return result
    active = ActiveState(state, parameters)
    active.advance(masks)
    return active.state()


class ActiveState:
    """A state that is advanced step by step without gradient.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides; copied.
        parameters: as in `active_rollout`.

    Raises:
        OutOfRangeError: a value is outside the range in which active cells are exact.
    """

    def __init__(self, state: Tensor, parameters: Parameters) -> None:
        with torch.no_grad():
            self._grid = Grid(state.shape[0], state.shape[2], state.shape[3], state.device)
            network = Network.from_convolutions(*parameters)
            self._stepper = Stepper(self._grid, network, self._grid.to_rows(state))

    def advance(self, masks: Iterable[Tensor | None]) -> None:
        """Advance by one step per mask; raises `OutOfRangeError` as `active_rollout` does."""
        with torch.no_grad():
            self._stepper.run(masks, keep=False)

    def state(self) -> Tensor:
        """Return a contiguous copy of the state, `[B, C, H, W]`."""
        return self._grid.to_state(self._stepper.rows)


class _Rollout(torch.autograd.Function):
    """Forward: all steps on active cells. Backward: undo and differentiate them one by one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        state, w1, b1, w2, b2, masks = arguments
        grid = Grid(state.shape[0], state.shape[2], state.shape[3], state.device)
        network = Network.from_convolutions(w1, b1, w2, b2)
        rows = grid.to_rows(state)
        records = Stepper(grid, network, rows).run(masks, keep=True)
        kept = [tensor for record in records for tensor in record.tensors()]
        ctx.save_for_backward(state, w1, b1, w2, b2, rows, *kept)
        ctx.grid = grid
        return grid.to_state(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        state, w1, b1, w2, b2, rows, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        with torch.no_grad():
            records = [
                StepRecord(*kept[start : start + _RECORD]) for start in range(0, len(kept), _RECORD)
            ]
            grad = ctx.grid.to_rows(grad_outputs[0])
            sums = run_backward(
                ctx.grid,
                Network.from_convolutions(w1, b1, w2, b2),
                rows.clone(),
                grad,
                records,
                weights_wanted=any(wanted[1:5]),
                state_wanted=wanted[0],
            )
            grads = (ctx.grid.to_state(grad), *sums.to_convolutions())
        if torch.is_grad_enabled():
            grads = _FirstOrderOnly.apply(grad_outputs[0], state, w1, b1, w2, b2, *grads)
        return *(g if need else None for g, need in zip(grads, wanted, strict=False)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "the torch backend has no forward-mode derivative; use backend='reference'"
        )


class _FirstOrderOnly(torch.autograd.Function):
    """Pass five gradients on; refuse to be differentiated, instead of being silently wrong."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.clone() for gradient in arguments[6:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise NotImplementedError(
            "the torch backend has no second derivatives; use backend='reference'"
        )
