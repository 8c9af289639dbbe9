"""Perception and the MLP on a list of cells, and their transposes.

Rows are `[N, C]` with the margin of `grid.py`; perceived features are k-major, `[n, 3*C]`:
all channels through the identity, then through Sobel-x, then through Sobel-y.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.backends.torch_active.grid import Grid

_SOBEL_X = {(-1, -1): -1, (-1, 1): 1, (0, -1): -2, (0, 1): 2, (1, -1): -1, (1, 1): 1}
_SOBEL_Y = {(dy, dx): weight for (dx, dy), weight in _SOBEL_X.items()}
_FILTERS = ({(0, 0): 8}, _SOBEL_X, _SOBEL_Y)  # in eighths
_TAPS = sum(len(taps) for taps in _FILTERS)


class Stencil:
    """The three perception filters of a grid, as weighted sums over rows.

    A sum over a list of rows with weights is what `embedding_bag` computes, and on a CPU it is
    one pass over memory.

    Args:
        grid: the geometry.
        dtype: floating-point type of the rows.
    """

    def __init__(self, grid: Grid, dtype: torch.dtype) -> None:
        taps = [
            (dy * grid.pitch + dx, weight / 8, k)
            for k, filter_taps in enumerate(_FILTERS)
            for (dy, dx), weight in filter_taps.items()
        ]
        # int32 indices: half the traffic of int64
        index = partial(torch.tensor, device=grid.device, dtype=torch.int32)
        self._distances = index([tap[0] for tap in taps])
        # Plane k of row r is row 3*r + k of the features.
        self._planes = index([3 * tap[0] + tap[2] for tap in taps])
        weights = torch.tensor([tap[1] for tap in taps], device=grid.device, dtype=dtype)
        # Sobel is odd: its transpose, from the receiving row's point of view, is minus itself.
        sign = torch.tensor([1 if tap[2] == 0 else -1 for tap in taps], device=grid.device)
        sizes = [len(filter_taps) for filter_taps in _FILTERS]
        starts = index([0, sizes[0], sizes[0] + sizes[1]])
        lists = torch.arange(grid.cells, device=grid.device, dtype=torch.int32)[:, None]
        self._bags = (lists * _TAPS + starts).view(-1)
        self._weights = weights.repeat(grid.cells)
        self._transposed = (weights * sign).expand(grid.cells, _TAPS).contiguous()

    def perceive(self, rows: Tensor, cells: Tensor) -> Tensor:
        """Perceive the neighbourhood of `cells` `[n]` in `rows` `[N, C]`: `[n, 3*C]`."""
        count = cells.shape[0]
        features = F.embedding_bag(
            (cells.int()[:, None] + self._distances).view(-1),
            rows,
            self._bags[: 3 * count],
            mode="sum",
            per_sample_weights=self._weights[: _TAPS * count],
        )
        return features.view(count, -1)

    def perceive_grad(self, grad_features: Tensor, cells: Tensor) -> Tensor:
        """Sum what `cells` `[m]` sent to all perceived features.

        Args:
            grad_features: `[N, 3*C]`, the gradient of every row's perceived features.
            cells: `[m]`, rows whose gradient is wanted.

        Returns:
            `[m, C]`.
        """
        return F.embedding_bag(
            (3 * cells.int())[:, None] + self._planes,
            grad_features.view(-1, grad_features.shape[1] // 3),
            mode="sum",
            per_sample_weights=self._transposed[: cells.shape[0]],
        )


@lru_cache(maxsize=4)
def stencil(grid: Grid, dtype: torch.dtype) -> Stencil:
    """Return the stencil of a grid, kept for the next call: step-by-step use asks every step."""
    return Stencil(grid, dtype)


@dataclass(frozen=True)
class Network:
    """The weights of the update MLP as matrices over k-major features.

    Attributes:
        weight1: `[hidden, 3*C]`.
        bias1: `[hidden]`.
        weight2: `[C, hidden]`.
        bias2: `[C]`.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    @staticmethod
    def from_convolutions(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> "Network":
        """Take the module's 1x1 convolutions, whose input channel `3*c + k` is filter k of c."""
        hidden, channels = w1.shape[0], w2.shape[0]
        k_major = w1.reshape(hidden, channels, 3).transpose(1, 2).reshape(hidden, 3 * channels)
        return Network(k_major, b1, w2.reshape(channels, hidden), b2)

    @cached_property
    def _weight1_t(self) -> Tensor:
        return self.weight1.t().contiguous()

    @cached_property
    def _weight2_t(self) -> Tensor:
        return self.weight2.t().contiguous()

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        return {}

    def buffer(self, name: str, cells: int) -> Tensor:
        """Return uninitialised memory `[cells, hidden]`, the same for every call with `name`.

        The hidden layer is the largest temporary; new memory for it in every step would cost
        more page faults than arithmetic.
        """
        held = self._buffers.get(name)
        if held is None or held.shape[0] < cells:
            held = self.weight1.new_empty(cells + cells // 4, self.weight1.shape[0])
            self._buffers[name] = held
        return held[:cells]

    def hidden(self, features: Tensor) -> Tensor:
        """Compute relu(W₁ p + b₁): `[n, 3*C]` to `[n, hidden]`, valid until the next call."""
        out = self.buffer("hidden", features.shape[0])
        return torch.addmm(self.bias1, features, self._weight1_t, out=out).relu_()

    def delta(self, features: Tensor) -> Tensor:
        """Compute W₂ relu(W₁ p + b₁) + b₂: `[n, 3*C]` to `[n, C]`."""
        return torch.addmm(self.bias2, self.hidden(features), self._weight2_t)


class NetworkGrad:
    """Running sums of the gradients of a network's weights.

    Args:
        network: the weights.
        wanted: False leaves the sums out, for a network whose weights are frozen.
    """

    def __init__(self, network: Network, wanted: bool) -> None:
        self._network = network
        self._wanted = wanted
        self.weight1 = torch.zeros_like(network.weight1)
        self.bias1 = torch.zeros_like(network.bias1)
        self.weight2 = torch.zeros_like(network.weight2)
        self.bias2 = torch.zeros_like(network.bias2)

    def add(self, features: Tensor, grad_delta: Tensor) -> Tensor:
        """Add one list of cells.

        Args:
            features: `[n, 3*C]`, what the cells perceived.
            grad_delta: `[n, C]`, the gradient of their update.

        Returns:
            `[n, 3*C]`, the gradient of the features.
        """
        network = self._network
        hidden = network.hidden(features)
        grad_hidden = network.buffer("grad_hidden", features.shape[0])
        torch.mm(grad_delta, network.weight2, out=grad_hidden)
        torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0, grad_input=grad_hidden)
        if self._wanted:
            self.weight2.addmm_(grad_delta.t(), hidden)
            self.bias2 += grad_delta.sum(0)
            self.weight1.addmm_(grad_hidden.t(), features)
            self.bias1 += grad_hidden.sum(0)
        return grad_hidden @ network.weight1

    def to_convolutions(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the sums in the shapes and the order of `Network.from_convolutions`."""
        channels, hidden = self.weight2.shape
        w1 = self.weight1.view(hidden, 3, channels).transpose(1, 2)
        return (
            w1.reshape(hidden, 3 * channels, 1, 1),
            self.bias1,
            self.weight2.view(channels, hidden, 1, 1),
            self.bias2,
        )
