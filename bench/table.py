"""Results as lines of text, and how time grows."""

import math
from collections.abc import Iterable, Sequence

from bench.results import OK, Row

HEADER = (
    f"{'case':<34}{'provider':<15}{'alive':>6}{'ms':>10}{'low - high':>19}{'Mcell/s':>9}"
    f"{'ratio':>7}{'low - high':>15}{'MiB':>8}{'ratio':>7}{'matrix':>8}{'copy':>7}"
)


def line(row: Row) -> str:
    """Return a row as one line under `HEADER`."""
    start = f"{row.case:<34}{row.provider:<15}"
    if row.status != OK:
        return f"{start}{row.status}: {row.reason}"
    spread = f"{_scaled(row.seconds_low, 1e3)} - {_scaled(row.seconds_high, 1e3)}"
    ratios = f"{_scaled(row.ratio_low)} - {_scaled(row.ratio_high)}" if row.ratio else ""
    return (
        f"{start}{_scaled(row.alive_mean):>6}{_scaled(row.seconds, 1e3):>10}{spread:>19}"
        f"{_scaled(row.cell_steps_per_second, 1e-6):>9}{_scaled(row.ratio):>7}{ratios:>15}"
        f"{_scaled(row.memory_mib):>8}{_scaled(row.memory_ratio):>7}"
        f"{_percent(row.matrix_share):>8}{_percent(row.copy_share):>7}"
        + (f"  {row.reason}" if row.reason else "")
    )


def _scaled(value: float | None, factor: float = 1.0) -> str:
    """Return a number with three significant digits, or nothing."""
    if value is None:
        return ""
    value *= factor
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(digits, 0), 3)}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def sweep(rows: Iterable[Row], axis: str, provider: str, **fixed: object) -> list[Row]:
    """Return the timed rows of one provider that have the fixed fields, sorted by `axis`."""
    chosen = [
        row
        for row in rows
        if row.status == OK
        and row.provider == provider
        and all(getattr(row, name) == value for name, value in fixed.items())
    ]
    return sorted(chosen, key=lambda row: getattr(row, axis))


SWEEPS = {
    "cells": ("size", {"batch": 1, "steps": 8}),
    "batch": ("batch", {"size": 64, "steps": 8}),
    "steps": ("steps", {"size": 64, "batch": 4}),
}
"""What grows, the field that counts it, and what stays; all in mode rollout+backward."""


def amount(row: Row, what: str) -> int:
    """Return how much a row has of what a sweep is about."""
    return row.size**2 if what == "cells" else int(getattr(row, what))


def growth(rows: Sequence[Row], what: str) -> float | None:
    """Return by which power of `what` the time grows, from the largest half of a sweep."""
    upper = rows[len(rows) // 2 - 1 :] if len(rows) > 3 else rows
    if len(upper) < 2:
        return None
    first, last = upper[0], upper[-1]
    if first.seconds is None or last.seconds is None:
        return None
    factor = math.log(amount(last, what) / amount(first, what))
    return math.log(last.seconds / first.seconds) / factor


def growth_lines(rows: Sequence[Row], state: str = "grown") -> list[str]:
    """Say for every provider how its time grows along each sweep."""
    lines = []
    for provider in dict.fromkeys(row.provider for row in rows):
        powers = []
        for what, (field, fixed) in SWEEPS.items():
            chosen = sweep(rows, field, provider, mode="rollout+backward", state=state, **fixed)
            power = growth(chosen, what)
            if power is not None:
                powers.append(f"{what}^{power:.2f}")
        if powers:
            lines.append(f"{provider}: time grows with " + ", ".join(powers))
    return lines
