"""The update network of a published model, found among the tensors of a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastnca.filters import FILTERS

MAX_CHANNELS = 1024
MAX_HIDDEN = 8192
MAX_LAYERS = 9
MAX_WEIGHTS = 1 << 20
"""A model is grown under every layout in question, which must not take hours."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTERS = ("n_averaged", "num_batches_tracked")


class NoModelError(ValueError):
    """Tensors are no network that a rule can express; the message says why."""


@dataclass(frozen=True)
class Network:
    """Layers as their file has them: the order of the first one's columns is still open.

    Attributes:
        weights: `[out, in]` float32 of each layer, the first one's columns as in the file.
        biases: `[out]` float32 of each layer; None where the file has none.
        source: what kind of file it is, for people.
        taps: `[C, K, 3, 3]` float32, the filters of every channel, if the file has them.
        layout: the layout that the authors' programs use, as `parse_layout` reads it; empty if
            nobody says.
        families: what models of such a file may be, the likeliest first, as in
            `fastnca.importing.growth.FAMILIES`; empty if that is open.
        sha256: digest of the file, in hexadecimal; empty before it is known.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    source: str
    taps: Tensor | None = None
    layout: str = ""
    families: tuple[str, ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        widths = [self.weights[0].shape[1], *(weight.shape[0] for weight in self.weights)]
        if not 1 <= len(self.weights) <= MAX_LAYERS or max(widths[1:-1], default=0) > MAX_HIDDEN:
            raise NoModelError(f"{len(self.weights)} layers of {widths[1:]} units are out of range")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise NoModelError(f"{self.channels} channels are out of range")
        if widths[0] % self.channels or not 1 <= self.filters <= 16:
            raise NoModelError(
                f"its first layer reads {widths[0]} values and its last one writes "
                f"{self.channels} channels: a rule reads a whole number of filters per channel, "
                "so the model reads something else, too"
            )
        if (count := sum(weight.numel() for weight in self.weights)) > MAX_WEIGHTS:
            raise NoModelError(f"{count:,} weights; at most {MAX_WEIGHTS:,} are grown")
        for tensor in (*self.weights, *(bias for bias in self.biases if bias is not None)):
            if not bool(torch.isfinite(tensor).all()):
                raise NoModelError("a weight is NaN or infinite")

    @property
    def channels(self) -> int:
        """Channels C of the state."""
        return self.weights[-1].shape[0]

    @property
    def filters(self) -> int:
        """Number of filters K per channel."""
        return self.weights[0].shape[1] // self.channels

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(weight.shape[0] for weight in self.weights[:-1])


def find_network(tensors: Mapping[str, Any], source: str, **known: Any) -> Network:
    """Find the network among named tensors.

    Layers are matrices `[out, in]` or 1x1 convolutions `[out, in, 1, 1]` in their order, each
    bias is the vector of its layer's size with the most similar name, and a depthwise `[K*C, 1, 3,
    3]` holds the filters.

    Args:
        tensors: by name, on the CPU; integers and scalars are passed over.
        source: what kind of file it is, for people.
        **known: other fields of `Network`.

    Raises:
        NoModelError: there is no such network, or something beside it that a rule cannot express.
    """
    weights: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    stencils: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS or tensor.dim() == 0 or name.endswith(_COUNTERS):
            continue
        shape = list(tensor.shape)
        value = tensor.detach().to(torch.float32)
        if len(shape) in (2, 4) and shape[2:] in ([], [1, 1]) and shape != [3, 3]:
            weights[name] = value.reshape(shape[0], shape[1])
        elif len(shape) == 1:
            vectors[name] = value
        elif shape[-2:] == [3, 3] and math.prod(shape[1:-2]) == 1:
            stencils[name] = value.reshape(-1, 3, 3)
        else:
            raise NoModelError(f"{name!r} {shape} {_kind(shape)}, which no rule can express")
    if any(name.rpartition(".")[2] in ("running_mean", "running_var") for name in vectors):
        raise NoModelError("the network normalises over the batch, which no rule can express")
    order = _chain(weights)
    biases, unused = _match_biases(order, weights, vectors)
    if unused:
        raise NoModelError(f"nothing in a rule corresponds to {', '.join(map(repr, unused[:4]))}")
    network = Network([weights[name] for name in order], biases, source, **known)
    return _with_taps(network, stencils)


def _kind(shape: list[int]) -> str:
    if len(shape) == 5:
        return "is a three-dimensional convolution"
    if len(shape) == 4 and shape[2:] == [3, 3]:
        return "is a 3x3 convolution across channels"
    return "has a shape of its own"


def _chain(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the layers from the first to the last."""
    names = list(weights)
    for order in (names, names[::-1]):
        pairs = pairwise(order)
        if all(weights[a].shape[0] == weights[b].shape[1] for a, b in pairs) and order:
            first, last = weights[order[0]], weights[order[-1]]
            if first.shape[1] % last.shape[0] == 0 and len(order) > 1:
                return order
    shapes = ", ".join(f"{name!r} {list(each.shape)}" for name, each in [*weights.items()][:4])
    raise NoModelError(
        "it has no layers of 1x1 convolutions that follow each other, from the filters of every "
        f"channel to its update; it has {shapes or 'no matrix at all'}"
    )


def _match_biases(
    order: Sequence[str], weights: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> tuple[list[Tensor | None], list[str]]:
    """Return the bias of each layer, and the names of vectors that are none."""
    free = dict(vectors)
    biases: list[Tensor | None] = []
    for name in order:
        fitting = [each for each in free if len(free[each]) == len(weights[name])]
        biases.append(free.pop(max(fitting, key=partial(_alike, name))) if fitting else None)
    return biases, list(free)


def _alike(one: str, other: str) -> int:
    """Count the letters that two names begin with together."""
    unequal = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unequal, min(len(one), len(other)))


def _with_taps(network: Network, stencils: dict[str, Tensor]) -> Network:
    """Add the filters that the file holds; check those that it holds one by one."""
    features, channels = network.weights[0].shape[1], network.channels
    whole = [taps for taps in stencils.values() if len(taps) == features]
    if len(whole) == 1 and len(stencils) == 1:
        taps = whole[0].reshape(channels, network.filters, 3, 3)
        return replace(network, taps=taps, layout=network.layout or "interleaved")
    for name, taps in stencils.items():
        if not any(_is_known(each) for each in taps[:1]) or not bool((taps == taps[:1]).all()):
            raise NoModelError(f"the filter {name!r} is none of {', '.join(FILTERS)}")
    return network


def _is_known(tap: Tensor) -> bool:
    """Tell whether a 3x3 filter is a named one, possibly times 8 or turned round."""
    for taps in FILTERS.values():
        mine = torch.tensor(taps)
        if any(torch.allclose(tap, factor * mine) for factor in (1, -1, 8, -8)):
            return True
    return False
