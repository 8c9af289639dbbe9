"""The order of the first layer's columns: how programs arrange what a cell perceives.

A program that perceives C channels through K filters has to put the K*C numbers into some order.
"interleaved" is column K*c + k for filter k of channel c, as in a depthwise convolution; "blocks"
is column C*k + c, one filter after the other. Which filter is k, its sign and its scale are the
program's choice as well. Nothing of this can be seen in a file of weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from torch import Tensor

from fastnca.filters import FILTERS
from fastnca.importing.network import Network

ARRANGEMENTS = ("interleaved", "blocks")

FILTERS_OF = {
    2: ("identity", "laplacian"),
    3: ("identity", "sobel_x", "sobel_y"),
    4: ("identity", "sobel_x", "sobel_y", "laplacian"),
}
"""Filters that programs with so many of them have, in the order of this package."""

_FACTORED = re.compile(r"(-?)(?:(\d+(?:\.\d+)?)\*)?(\w+)")


@dataclass(frozen=True)
class Layout:
    """Meaning of the columns of a first layer.

    Attributes:
        arrangement: one of `ARRANGEMENTS`.
        filters: names of the K filters in the order of the columns; empty where the file itself
            has the filters.
        factors: the program's filter k is this many times the one with that name.
    """

    arrangement: str
    filters: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Write the layout as `parse_layout` reads it."""
        names = [
            f"{'-' if factor < 0 else ''}{'' if abs(factor) == 1 else f'{abs(factor):g}*'}{name}"
            for name, factor in zip(self.filters, self.factors, strict=True)
        ]
        return self.arrangement + (":" + ",".join(names) if names else "")


def parse_layout(text: str, filters: int) -> Layout:
    """Read a layout.

    Args:
        text: "interleaved" or "blocks", and after a colon, if it is not the usual one, the order
            of the filters: `blocks:identity,sobel_y,sobel_x`. A minus in front of a name stands
            for a filter of the other sign, `8*` for one that is eight times as large.
        filters: their number K.

    Raises:
        ValueError: it is no layout for so many filters.
    """
    arrangement, colon, rest = text.partition(":")
    if arrangement not in ARRANGEMENTS:
        raise ValueError(
            f"layout must be auto, {' or '.join(ARRANGEMENTS)}, perhaps with the order of the "
            f"filters as in blocks:identity,sobel_y,sobel_x, got {text!r}"
        )
    usual = FILTERS_OF.get(filters, ())
    if not colon:
        return Layout(arrangement, usual, (1.0,) * len(usual))
    names, factors = [], []
    for word in rest.split(","):
        found = _FACTORED.fullmatch(word.strip())
        if found is None or found[3] not in FILTERS or float(found[2] or 1) == 0:
            raise ValueError(f"layout {text!r}: {word!r} is none of {', '.join(FILTERS)}")
        names.append(found[3])
        factors.append(float(found[2] or 1) * (-1 if found[1] else 1))
    if len(names) != filters or len(set(names)) != filters:
        raise ValueError(f"layout {text!r} must name {filters} different filters")
    return Layout(arrangement, tuple(names), tuple(factors))


def layouts_to_try(network: Network) -> Iterator[Layout]:
    """Yield layouts that growth can tell apart, the one that the authors' programs use first.

    Exchanging Sobel-x and Sobel-y, or the sign of one of them, turns or mirrors the pattern and
    nothing else, because every other part of a rule is the same in all directions. So growth
    cannot tell those from each other, and they are taken from `network.layout`.
    """
    known = FILTERS_OF.get(network.filters, ())
    if network.taps is not None or not known:
        yield from (Layout(arrangement) for arrangement in ARRANGEMENTS)
        return
    first = parse_layout(network.layout or "interleaved", network.filters)
    seen = {str(first)}
    yield first
    known_factors = dict(zip(first.filters, first.factors, strict=True))
    for arrangement in ARRANGEMENTS:
        for scale in (1.0,) if network.layout else (1.0, 8.0):
            for order in _orders(first.filters):
                scales = [1.0 if name == "identity" else scale for name in order]
                factors = [known_factors[name] for name in order]
                layout = Layout(
                    arrangement, order, tuple(a * b for a, b in zip(scales, factors, strict=True))
                )
                if str(layout) not in seen:
                    seen.add(str(layout))
                    yield layout


def _orders(filters: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the orders in which the Sobel filters keep theirs."""
    sobels = [name for name in filters if name.startswith("sobel")]
    return [
        order
        for order in permutations(filters)
        if [name for name in order if name.startswith("sobel")] == sobels
    ]


def arrange(network: Network, layout: Layout) -> Tensor:
    """Return the first layer's weight as this package has it: `[hidden, K*C]`, interleaved.

    Column K*c + k belongs to filter k of `FILTERS_OF`; where the file has the filters, to the
    file's filter k.
    """
    weight, filters = network.weights[0], network.filters
    if layout.arrangement == "blocks":
        columns = weight.unflatten(1, (filters, network.channels)).transpose(1, 2)
    else:
        columns = weight.unflatten(1, (network.channels, filters))
    if layout.filters:
        order = [layout.filters.index(name) for name in FILTERS_OF[filters]]
        columns = columns[:, :, order] * columns.new_tensor(layout.factors)[order]
    arranged: Tensor = columns.flatten(1)
    return arranged.contiguous()
