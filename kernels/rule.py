"""What of a rule the kernels are compiled for: constants of one kernel text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

MAX_FILTERS = 4
"""Features of a channel that the joined features have room for."""

PAIRS = ((8, 0), (2, 6), (5, 3), (7, 1))
"""Opposite neighbours of a 3x3 neighbourhood, whose cells are numbered from left to right, then
down: bottom right and top left, top right and bottom left, right and left, bottom and top."""


@dataclass(frozen=True)
class Filter:
    """A 3x3 filter as a part that turning around negates, and one that it leaves alone.

    Of two opposite neighbours a and b it adds `odd * (a - b) + even * (a + b)`. The transposed
    filter has the opposite odd part (E12).

    Attributes:
        scale: power of two by which the taps are multiplied; the weights carry its inverse.
        center: scaled tap of the cell itself.
        odd: scaled taps of the differences of `PAIRS`.
        even: scaled taps of their sums.
    """

    scale: float
    center: float
    odd: tuple[float, ...]
    even: tuple[float, ...]

    @property
    def terms(self) -> tuple[tuple[int, int, float], ...]:
        """Its taps that are not zero: 0 for the center, 1 or 2 for a difference or a sum; which."""
        taps = (self.center,), self.odd, self.even
        found = ((kind, n, tap) for kind, each in enumerate(taps) for n, tap in enumerate(each))
        return tuple(term for term in found if term[2]) or ((0, 0, 0.0),)

    @property
    def crosses(self) -> bool:
        """Whether it reads a neighbour."""
        return any(self.odd) or any(self.even)


@dataclass(frozen=True)
class Plane:
    """One or two filters whose gradients cross cells, and are stored for the next launch.

    Attributes:
        numbers: of the filters in their bank.
        filters: the filters.
        pairs: opposite neighbours, as the kernels number them.
    """

    numbers: tuple[int, ...]
    filters: tuple[Filter, ...]
    pairs: ClassVar[tuple[tuple[int, int], ...]] = PAIRS

    @property
    def terms(self) -> tuple[tuple[int, int, int, float], ...]:
        """Their taps that are not zero: which of `PAIRS`; 0 or 1 for a difference or a sum; filter.

        In the order in which neighbours are loaded.
        """
        found = (
            (pair, kind, n, getattr(each, part)[pair])
            for pair in range(len(PAIRS))
            for kind, part in enumerate(("odd", "even"))
            for n, each in enumerate(self.filters)
        )
        return tuple(term for term in found if term[3])

    @property
    def mixed(self) -> bool:
        """Whether they are neither all odd nor all even, beside their centers."""
        odd, even = (
            any(any(getattr(each, part)) for each in self.filters) for part in ("odd", "even")
        )
        return odd and even


@dataclass(frozen=True, eq=False)
class KernelRule:
    """What of a rule is a compile-time constant of the kernels.

    Compared by identity: `make_rule` returns the same object for the same arguments.

    Attributes:
        filters: one to four filters.
        circular: whether the grid is a torus; otherwise zeros lie beyond its border.
        alive: whether cells must be alive before and after a step; otherwise all live.
        final_bias: whether the second layer has a bias.
        first_input: first of the channels that are read and never written; 0 if there are none.
    """

    filters: tuple[Filter, ...]
    circular: bool = False
    alive: bool = True
    final_bias: bool = True
    first_input: int = 0

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """The planes of gradients that cross cells.

        Filters of equal symmetry stand beside each other: the gather of a plane whose filters are
        all odd, or all even, is the cheapest.
        """
        numbers = [n for n, each in enumerate(self.filters) if each.crosses]
        numbers.sort(key=lambda n: (any(self.filters[n].even), any(self.filters[n].odd)))
        shared = (tuple(numbers[n : n + 2]) for n in range(0, len(numbers), 2))
        return tuple(Plane(each, tuple(self.filters[n] for n in each)) for each in shared)

    @property
    def bias_is_feature(self) -> bool:
        """Whether a constant feature is left for the first bias to meet."""
        return len(self.filters) < MAX_FILTERS

    @property
    def masked(self) -> bool:
        """Whether a neighbour may be absent: beyond the border, or dead."""
        return self.alive or not self.circular


def _make_filter(taps: Sequence[Sequence[float]]) -> Filter:
    """Split a 3x3 filter into its parts.

    Taps are multiplied by the power of two, at most 8, that brings the smallest of them to 1 or
    more: products by 1 cost nothing, and no operand comes closer to the limit of fp16 than the
    Sobel filters bring it.
    """
    flat = [tap for row in taps for tap in row]
    smallest = min((abs(tap) for tap in flat if tap), default=1.0)
    scale = 2.0 ** min(max(-math.floor(math.log2(smallest)), 0), 3)
    flat = [tap * scale for tap in flat]
    return Filter(
        scale,
        flat[4],
        tuple((flat[a] - flat[b]) / 2 for a, b in PAIRS),
        tuple((flat[a] + flat[b]) / 2 for a, b in PAIRS),
    )


@lru_cache(maxsize=256)
def make_rule(
    taps: tuple[tuple[tuple[float, ...], ...], ...],
    circular: bool = False,
    alive: bool = True,
    final_bias: bool = True,
    first_input: int = 0,
) -> KernelRule:
    """Return what the kernels are compiled for.

    Args:
        taps: one to four 3x3 filters.
        circular: see `KernelRule`, as are the others.
        alive: whether cells must be alive.
        final_bias: whether the second layer has a bias.
        first_input: first input channel.
    """
    filters = tuple(_make_filter(each) for each in taps)
    return KernelRule(filters, circular, alive, final_bias, first_input)
