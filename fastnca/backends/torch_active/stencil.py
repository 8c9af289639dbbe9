"""Perception on a list of cells (E1), and its transpose (E12).

Rows are `[N, C]` with the margin of `grid.py`; perceived features are k-major, `[n, K*C]`: all
channels through the first filter, then through the second, and so on.
"""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.backends.torch_active.grid import Grid
from fastnca.rule import Taps


class Stencil:
    """Fixed filters, equal for all channels, as weighted sums over rows.

    A sum over a list of rows with weights is what `embedding_bag` computes, and on a CPU it is
    one pass over memory.

    Args:
        grid: the geometry.
        dtype: floating-point type of the rows.
        filters: the taps of the K filters.
    """

    def __init__(self, grid: Grid, dtype: torch.dtype, filters: tuple[Taps, ...]) -> None:
        self._count = len(filters)
        taps = [
            (dy * grid.pitch + dx, filters[k][dy + 1][dx + 1], k)
            for k in range(len(filters))
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if filters[k][dy + 1][dx + 1] != 0 or (dy == 0 and dx == 0)  # no list is empty
        ]
        # int32 indices: half the traffic of int64
        index = partial(torch.tensor, device=grid.device, dtype=torch.int32)
        self._taps = len(taps)
        self._distances = index([distance for distance, _, _ in taps])
        # Filter k of row r is row K*r + k of the features; what a row sends to the row at a
        # distance is received from the row at the opposite one.
        self.guard = grid.pitch + 1
        self._sent = index([self._count * (self.guard - distance) + k for distance, _, k in taps])
        weights = torch.tensor([tap for _, tap, _ in taps], device=grid.device, dtype=dtype)
        sizes = [sum(each == k for _, _, each in taps) for k in range(self._count)]
        starts = index([sum(sizes[:k]) for k in range(self._count)])
        lists = torch.arange(grid.cells, device=grid.device, dtype=torch.int32)[:, None]
        self._bags = (lists * self._taps + starts).view(-1)
        self._weights = weights.repeat(grid.cells)

    def perceive(self, rows: Tensor, cells: Tensor) -> Tensor:
        """Perceive the neighbourhood of `cells` `[n]` in `rows` `[N, C]`: `[n, K*C]` (E1)."""
        count = cells.shape[0]
        features = F.embedding_bag(
            (cells.int()[:, None] + self._distances).view(-1),
            rows,
            self._bags[: self._count * count],
            mode="sum",
            per_sample_weights=self._weights[: self._taps * count],
        )
        return features.view(count, -1)

    def perceive_grad(self, grad_features: Tensor, cells: Tensor) -> Tensor:
        """Sum what `cells` `[m]` sent to all perceived features: Σ_k F_kᵀ ∂p_k (E12).

        Args:
            grad_features: `[guard + N + guard, K*C]`, the gradient of every row's features.
            cells: `[m]`, rows whose gradient is wanted.

        Returns:
            `[m, C]`.
        """
        return F.embedding_bag(
            (self._count * cells.int())[:, None] + self._sent,
            grad_features.view(-1, grad_features.shape[1] // self._count),
            mode="sum",
            per_sample_weights=self._weights[: self._taps * cells.shape[0]].view(-1, self._taps),
        )

    def add_grad(self, rows: Tensor, cells: Tensor, grad_features: Tensor) -> None:
        """Fixed filters have no gradient."""

    def grad(self) -> None:
        """Fixed filters have no gradient."""


class LearnedStencil:
    """Filters of their own for every channel, with a gradient.

    Args:
        grid: the geometry.
        filters: `[K*C, 1, 3, 3]`; filter `K*c + k` is filter k of channel c.
        channels: channels C of a row.
    """

    def __init__(self, grid: Grid, filters: Tensor, channels: int) -> None:
        self._shape = filters.shape
        self._taps = filters.view(channels, -1, 9).transpose(0, 1)  # [K, C, 9]
        self._grad = torch.zeros_like(self._taps)
        distances = [dy * grid.pitch + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        self._distances = torch.tensor(distances, device=grid.device)
        self.guard = grid.pitch + 1

    def _neighbours(self, rows: Tensor, cells: Tensor, sign: int) -> Tensor:
        """Gather `[n, 9, ...]` rows around `cells` `[n]`, or opposite to that."""
        index = (cells[:, None] + sign * self._distances).view(-1)
        return rows.index_select(0, index).view(cells.shape[0], 9, rows.shape[1])

    def perceive(self, rows: Tensor, cells: Tensor) -> Tensor:
        """See `Stencil.perceive`."""
        features = torch.einsum("ntc,kct->nkc", self._neighbours(rows, cells, 1), self._taps)
        return features.reshape(cells.shape[0], -1)

    def perceive_grad(self, grad_features: Tensor, cells: Tensor) -> Tensor:
        """See `Stencil.perceive_grad`."""
        sent = self._neighbours(grad_features, cells + self.guard, -1)
        sent = sent.view(cells.shape[0], 9, *self._taps.shape[:2])
        return torch.einsum("ntkc,kct->nc", sent, self._taps)

    def add_grad(self, rows: Tensor, cells: Tensor, grad_features: Tensor) -> None:
        """Add to the gradient of the filters what `cells` `[n]` contribute.

        Args:
            rows: `[N, C]`, the state that was perceived.
            cells: `[n]`.
            grad_features: `[n, K*C]`, the gradient of what they perceived.
        """
        sent = grad_features.view(cells.shape[0], *self._taps.shape[:2])
        self._grad += torch.einsum("ntc,nkc->kct", self._neighbours(rows, cells, 1), sent)

    def grad(self) -> Tensor:
        """Return the gradient of the filters, `[K*C, 1, 3, 3]`."""
        return self._grad.transpose(0, 1).reshape(self._shape)


@lru_cache(maxsize=4)
def fixed_stencil(grid: Grid, dtype: torch.dtype, filters: tuple[Taps, ...]) -> Stencil:
    """Return the stencil of a grid, kept for the next call: step-by-step use asks every step."""
    return Stencil(grid, dtype, filters)
