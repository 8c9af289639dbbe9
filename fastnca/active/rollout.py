"""A batch on its way through a rollout, and the autograd node around it."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastnca.active.backward import run_backward
from fastnca.active.forward import OutOfRangeError, Stepper, StepRecord
from fastnca.active.grid import Grid
from fastnca.active.network import Network, sum_gradients
from fastnca.active.parallel import run_side_by_side, split_batch
from fastnca.states import ALIVE_THRESHOLD, ALPHA

__all__ = ["ActiveState", "OutOfRangeError", "active_rollout"]

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]

_BLOCK = 128  # steps whose masks are held at a time


def active_rollout(
    state: Tensor,
    parameters: Parameters,
    masks: Iterable[Tensor | None],
    steps: int,
) -> Tensor:
    """Advance a state by one step per mask, as one autograd node.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides.
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, 3*C, 1, 1]`,
            `[hidden]`, `[C, hidden, 1, 1]`, `[C]`, of the state's dtype and device.
        masks: `[B, H, W]` bool each, True where a cell updates; None for every cell.
        steps: number of masks.

    Returns:
        `[B, C, H, W]`, contiguous.

    Raises:
        OutOfRangeError: a value left the range in which active cells are exact.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (state, *parameters)):
        result: Tensor = _Rollout.apply(state, *parameters, masks, steps)
        return result
    active = ActiveState(state, parameters, steps)
    active.advance(masks)
    return active.state()


class ActiveState:
    """A batch that is advanced in place, its images divided into groups.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides; copied.
        parameters: as in `active_rollout`.
        steps: steps that will be made, for the division into groups.

    Raises:
        OutOfRangeError: a value is outside the range in which active cells are exact.
    """

    @torch.no_grad()
    def __init__(self, state: Tensor, parameters: Parameters, steps: int) -> None:
        self._shape = state.shape
        living = (state[:, ALPHA] > ALIVE_THRESHOLD).sum(dim=(1, 2))
        self.groups = split_batch(living, steps)
        self.steppers = []
        for images in self.groups:
            grid = Grid(len(images), state.shape[2], state.shape[3], state.device)
            network = Network.from_convolutions(*parameters)
            part = state if len(self.groups) == 1 else state[images]
            self.steppers.append(Stepper(grid, network, grid.to_rows(part)))

    @torch.no_grad()
    def advance(self, masks: Iterable[Tensor | None], keep: bool = False) -> list[list[StepRecord]]:
        """Advance by one step per mask.

        Args:
            masks: as in `active_rollout`.
            keep: True returns the records of the steps, one list per group.

        Raises:
            OutOfRangeError: as `active_rollout`.
        """
        records: list[list[StepRecord]] = [[] for _ in self.groups]
        masks = iter(masks)
        while block := list(islice(masks, _BLOCK)):
            jobs = [
                partial(stepper.run, self._cut(block, images), keep)
                for stepper, images in zip(self.steppers, self.groups, strict=True)
            ]
            for kept, made in zip(records, run_side_by_side(jobs), strict=True):
                kept += made
        return records

    def state(self) -> Tensor:
        """Return a contiguous copy of the state, `[B, C, H, W]`."""
        return join(self._shape, self.groups, [(s.grid, s.rows) for s in self.steppers])

    def _cut(self, masks: list[Tensor | None], images: Tensor) -> list[Tensor | None]:
        """Take the images of one group out of each mask."""
        if len(self.groups) == 1:
            return masks
        return [None if mask is None else mask[images] for mask in masks]


def join(shape: torch.Size, groups: list[Tensor], parts: list[tuple[Grid, Tensor]]) -> Tensor:
    """Put the rows of all groups back into one state `[B, C, H, W]`, contiguous."""
    if len(groups) == 1:
        grid, rows = parts[0]
        return grid.to_state(rows)
    state = parts[0][1].new_empty(shape)
    for images, (grid, rows) in zip(groups, parts, strict=True):
        state[images] = grid.to_state(rows)
    return state


class _Rollout(torch.autograd.Function):
    """Forward: all steps on active cells. Backward: undo and differentiate them one by one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        state, w1, b1, w2, b2, masks, steps = arguments
        active = ActiveState(state, (w1, b1, w2, b2), steps)
        history = _History(active.groups, [stepper.grid for stepper in active.steppers])
        kept = history.pack([s.rows for s in active.steppers], active.advance(masks, keep=True))
        ctx.save_for_backward(state, w1, b1, w2, b2, *kept)
        ctx.history = history
        return active.state()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        state, w1, b1, w2, b2, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        with torch.no_grad():
            grads = ctx.history.differentiate(
                kept, (w1, b1, w2, b2), grad_outputs[0], any(wanted[1:5]), wanted[0]
            )
        if torch.is_grad_enabled():
            grads = _FirstOrderOnly.apply(grad_outputs[0], state, w1, b1, w2, b2, *grads)
        return *(g if need else None for g, need in zip(grads, wanted, strict=False)), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "the torch backend has no forward-mode derivative; use backend='reference'"
        )


class _History:
    """How a rollout's records lie in the flat list of tensors that autograd keeps.

    Args:
        groups: image numbers of each group.
        grids: the geometry of each group.
    """

    def __init__(self, groups: list[Tensor], grids: list[Grid]) -> None:
        self._groups = groups
        self._grids = grids

    def pack(self, rows: list[Tensor], records: list[list[StepRecord]]) -> list[Tensor]:
        """List each group's last rows and then its records."""
        self._steps = len(records[0])
        flat = []
        for last, group in zip(rows, records, strict=True):
            flat += [last, *(tensor for record in group for tensor in record.tensors())]
        return flat

    def _unpack(self, kept: list[Tensor]) -> list[tuple[Tensor, list[StepRecord]]]:
        size = StepRecord.SIZE
        length = 1 + size * self._steps
        parts = [kept[start : start + length] for start in range(0, len(kept), length)]
        return [
            (rows, [StepRecord(*flat[i : i + size]) for i in range(0, len(flat), size)])
            for rows, *flat in parts
        ]

    def differentiate(
        self,
        kept: list[Tensor],
        parameters: Parameters,
        grad_output: Tensor,
        weights_wanted: bool,
        state_wanted: bool,
    ) -> tuple[Tensor, ...]:
        """Return the gradients of the state and the four parameters."""
        jobs, grads = [], []
        for (rows, records), grid, images in zip(
            self._unpack(kept), self._grids, self._groups, strict=True
        ):
            part = grad_output if len(self._groups) == 1 else grad_output[images]
            grads.append(grid.to_rows(part))
            network = Network.from_convolutions(*parameters)
            jobs.append(
                partial(
                    run_backward,
                    *(grid, network, rows.clone(), grads[-1], records),
                    weights_wanted=weights_wanted,
                    state_wanted=state_wanted,
                )
            )
        total = sum_gradients(run_side_by_side(jobs))
        state = join(grad_output.shape, self._groups, list(zip(self._grids, grads, strict=True)))
        return state, *total


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
