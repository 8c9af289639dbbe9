"""The 3x3 filters of perception: by name, or as numbers."""

import math
import struct
from collections.abc import Sequence
from typing import Any

Taps = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
"""Weights of a 3x3 filter: three rows from top to bottom, each from left to right."""


def _scaled(rows: Sequence[Sequence[float]], divisor: float) -> Taps:
    return tuple(tuple(tap / divisor for tap in row) for row in rows)  # type: ignore[return-value]


FILTERS: dict[str, Taps] = {
    "identity": _scaled(((0, 0, 0), (0, 1, 0), (0, 0, 0)), 1),
    "sobel_x": _scaled(((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)), 8),
    "sobel_y": _scaled(((-1, -2, -1), (0, 0, 0), (1, 2, 1)), 8),
    "laplacian": _scaled(((1, 2, 1), (2, -12, 2), (1, 2, 1)), 8),
}
"""The named filters. Sobel-x grows to the right, Sobel-y downwards."""

MAX_FILTERS = 16


def check_filters(filters: object) -> tuple[str | Taps, ...]:
    """Return filters by name where they have one, and else as numbers.

    Raises:
        TypeError, ValueError: they are no filters; the message says what was expected.
    """
    if isinstance(filters, str) or not isinstance(filters, Sequence):
        raise TypeError(
            f"filters must be a sequence of names or 3x3 numbers, got {filters!r}; names are "
            f"{', '.join(FILTERS)}"
        )
    if not 1 <= len(filters) <= MAX_FILTERS:
        raise ValueError(f"a rule has 1 to {MAX_FILTERS} filters, got {len(filters)}")
    return tuple(_check_filter(each) for each in filters)


def _check_filter(found: Any) -> str | Taps:
    if isinstance(found, str):
        if found not in FILTERS:
            raise ValueError(
                f"filters are {', '.join(FILTERS)} or 3x3 numbers, got the name {found!r}"
            )
        return found
    if hasattr(found, "tolist"):  # a tensor or an array
        found = found.tolist()
    rows = isinstance(found, Sequence) and len(found) == 3
    if not rows or not all(isinstance(row, Sequence) and len(row) == 3 for row in found):
        raise ValueError(f"a filter is a name or three rows of three numbers, got {found!r}")
    taps = _scaled([[_to_float32(tap) for tap in row] for row in found], 1)
    return next((name for name, known in FILTERS.items() if known == taps), taps)


def _to_float32(tap: object) -> float:
    """Return a tap as the module's filters hold it, so that every dtype and backend agrees."""
    number = check_number("a filter's tap", tap)
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        raise ValueError(f"a filter's tap must fit float32, got {number}") from None


def check_number(name: str, value: object) -> float:
    """Return a finite number as a float; `name` is what errors call it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number
