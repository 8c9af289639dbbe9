"""Steps forward on the active cells, keeping what each step overwrote."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.backends.torch_active.grid import Grid, indices, put
from fastnca.backends.torch_active.network import AnyNetwork, Network, make_network
from fastnca.backends.torch_active.stencil import LearnedStencil, Stencil, fixed_stencil
from fastnca.checks import MOST_WEIGHT, OutOfRangeError, Parameters
from fastnca.rule import Rule
from fastnca.states import ALPHA


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


class Stepper:
    """A state on its way through a rollout.

    Args:
        grid: the geometry.
        rule: what a step computes.
        parameters: what it computes with, as `recognition.parameters_of` orders it.
        rows: `[N, C]`, the state; advanced in place.
    """

    def __init__(self, grid: Grid, rule: Rule, parameters: Parameters, rows: Tensor) -> None:
        self.grid, self.rule, self.rows = grid, rule, rows
        self._own = rows.shape[1] - rule.inputs  # channels that steps write
        self._filters, self._network = parts(grid, rule, parameters, rows)
        for weights in parameters:
            _check_range(weights, MOST_WEIGHT)
        _check_range(rows)
        self._visible = grid.plane()  # alpha above the threshold, before the step
        self._updated = grid.plane()  # the same after the update, before the alive mask
        self._pre = grid.plane()
        self._near = grid.plane()
        self._reach = grid.plane()
        if rule.alive != "none":
            torch.gt(rows[:, ALPHA], rule.alive_threshold, out=self._visible.flags)
        self._occupied = rows[:, : self._own].any(1)  # rows that may hold other than zero

    def run(self, masks: Iterable[Tensor | None], keep: bool) -> list[StepRecord]:
        """Advance by one step per mask.

        Args:
            masks: m of E4, `[B, H, W]` bool each, True where a cell updates; None for every cell.
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
        grid, rows, rule = self.grid, self.rows, self.rule
        reach, near = self._reachable(), self._near.flags
        if mask is None:
            torch.bitwise_and(reach, grid.interior, out=near)
        else:
            torch.bitwise_and(grid.inside(reach), mask, out=grid.inside(near))  # m of E5
        cells = indices(near)
        old = rows.index_select(0, cells)
        new = self._update(cells, old)
        if rule.alive == "none":
            put(rows, cells, new)
            return StepRecord(cells, old, cells[:0], old[:0], grid.interior)
        updated = self._updated.flags.copy_(self._visible.flags)
        updated.index_copy_(0, cells, new[:, ALPHA] > rule.alive_threshold)  # E5's flag
        if rule.alive_after:
            alive = self._updated.dilate(torch.empty_like(near))  # E7
            alive &= grid.interior
            if rule.alive_before:
                alive &= self._pre.flags  # E6
        else:
            alive = self._pre.flags & grid.interior
        lost = (self._occupied | near) > alive
        gone = indices(lost)
        gone_old = rows.index_select(0, gone)

        put(rows, cells, new)
        if rule.inputs and gone.shape[0]:
            kept = rows.index_select(0, gone)
            kept[:, : self._own] = 0
            put(rows, gone, kept)
        else:
            put(rows, gone, None)
        torch.bitwise_and(updated, alive, out=self._visible.flags)
        self._occupied = alive
        return StepRecord(cells, old, gone, gone_old, alive)

    def _reachable(self) -> Tensor:
        """Return which cells' updates can matter, `[N]` bool; the margin may be anything."""
        if not self.rule.alive_before:
            return self.grid.interior
        pre = self._visible.dilate(self._pre.flags)  # E2
        if not self.rule.alive_after:
            return pre  # nobody else's update keeps a cell alive
        return self._pre.dilate(self._reach.flags)

    def _update(self, cells: Tensor, old: Tensor) -> Tensor:
        """Return the rows `[n, C]` that `cells` `[n]`, whose rows are `old`, have afterwards."""
        if cells.shape[0] == 0:
            return old
        self.grid.fill_margin(self.rows)
        new = updated(self.rule, old, self._network.delta(self._filters.perceive(self.rows, cells)))
        _check_range(new)
        if self.rule.clamp is not None:
            new[:, : self._own].clamp_(*self.rule.clamp)  # E5
        return new


def parts(
    grid: Grid, rule: Rule, parameters: Parameters, rows: Tensor
) -> tuple[Stencil | LearnedStencil, Network | AnyNetwork]:
    """Return perception and network of a rule for rows `[N, C]`."""
    if rule.learn_filters:
        stencil = LearnedStencil(grid, parameters[0], rows.shape[1])
        return stencil, make_network(rule, parameters[1:])
    return fixed_stencil(grid, rows.dtype, rule.taps), make_network(rule, parameters)


def updated(rule: Rule, old: Tensor, delta: Tensor) -> Tensor:
    """Add an update `[n, C - inputs]` to rows `[n, C]`: E5 without limits."""
    if rule.step_size != 1.0:
        delta = delta * rule.step_size
    if not rule.inputs:
        return old + delta
    new = old.clone()
    new[:, : delta.shape[1]] += delta
    return new


def _check_range(values: Tensor, limit: float = math.inf) -> None:
    """Raise `OutOfRangeError` unless the Euclidean norm of `values` is finite and below `limit`."""
    flat = values.reshape(-1)
    if not math.sqrt(float(torch.dot(flat, flat))) < limit:
        raise OutOfRangeError
