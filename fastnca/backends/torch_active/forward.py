"""Steps forward on the active cells, keeping what each step overwrote."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastnca.backends.torch_active.grid import Grid, indices, put
from fastnca.backends.torch_active.network import Network, stencil
from fastnca.checks import MOST_WEIGHT, OutOfRangeError
from fastnca.states import ALIVE_THRESHOLD, ALPHA


@dataclass
class StepRecord:
    """What one step overwrote.

    Attributes:
        cells: `[n]` int64, rows whose update was computed.
        old: `[n, C]`, their values before the step.
        gone: `[k]` int64, rows that the step set to zero because they are not alive.
        gone_old: `[k, C]`, their values before the step.
        alive: `[N]` bool, the rows that are alive after the step.
    """

    cells: Tensor
    old: Tensor
    gone: Tensor
    gone_old: Tensor
    alive: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the five tensors in the order of the constructor."""
        return self.cells, self.old, self.gone, self.gone_old, self.alive

    def undo(self, rows: Tensor) -> None:
        """Turn `rows` `[N, C]` after the step into the rows before it, bit for bit."""
        put(rows, self.cells, self.old)
        put(rows, self.gone, self.gone_old)


@dataclass
class Stepper:
    """A state on its way through a rollout.

    Args:
        grid: the geometry.
        network: the update network.
        rows: `[N, C]`, the state; advanced in place.
    """

    grid: Grid
    network: Network
    rows: Tensor
    _occupied: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._filters = stencil(self.grid, self.rows.dtype)
        for weights in (self.network.weight1, self.network.weight2, self.network.bias1):
            _check_range(weights, MOST_WEIGHT)
        _check_range(self.network.bias2, MOST_WEIGHT)
        _check_range(self.rows)
        self._visible = self.grid.plane()  # alpha above the threshold, before the step
        self._updated = self.grid.plane()  # the same after the update, before the alive mask
        self._pre = self.grid.plane()
        self._near = self.grid.plane()
        self._reach = self.grid.plane()
        torch.gt(self.rows[:, ALPHA], ALIVE_THRESHOLD, out=self._visible.flags)
        self._occupied = self.rows.any(1)  # rows that may hold something other than zero

    def run(self, masks: Iterable[Tensor | None], keep: bool) -> list[StepRecord]:
        """Advance by one step per mask.

        Args:
            masks: `[B, H, W]` bool each, True where a cell updates; None for every cell.
            keep: True returns what the backward pass needs, False an empty list.

        Returns:
            One record per step.

        Raises:
            OutOfRangeError: a value left the range in which active cells are exact.
        """
        records = []
        for mask in masks:
            record = self._step(mask)
            if keep:
                records.append(record)
        return records

    def _step(self, mask: Tensor | None) -> StepRecord:
        """Advance `rows` by one step."""
        grid, rows = self.grid, self.rows
        pre = self._visible.dilate(self._pre.flags)
        reach, near = self._pre.dilate(self._reach.flags), self._near.flags
        if mask is None:
            torch.bitwise_and(reach, grid.interior, out=near)
        else:
            torch.bitwise_and(grid.inside(reach), mask, out=grid.inside(near))
        cells = indices(near)
        old = rows.index_select(0, cells)
        new = old
        updated = self._updated.flags.copy_(self._visible.flags)
        if cells.shape[0]:
            new = old + self.network.delta(self._filters.perceive(rows, cells))
            _check_range(new)
            updated.index_copy_(0, cells, new[:, ALPHA] > ALIVE_THRESHOLD)

        alive = self._updated.dilate(torch.empty_like(near))
        alive &= pre
        alive &= grid.interior
        lost = (self._occupied | near) > alive
        gone = indices(lost)
        gone_old = rows.index_select(0, gone)

        put(rows, cells, new)
        put(rows, gone, None)
        torch.bitwise_and(updated, alive, out=self._visible.flags)
        self._occupied = alive
        return StepRecord(cells, old, gone, gone_old, alive)


def _check_range(values: Tensor, limit: float = math.inf) -> None:
    """Raise `OutOfRangeError` unless the Euclidean norm of `values` is finite and below `limit`."""
    flat = values.reshape(-1)
    if not math.sqrt(float(torch.dot(flat, flat))) < limit:
        raise OutOfRangeError
