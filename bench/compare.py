"""Compare results with earlier ones: ratios, never times, which differ from day to day.

The measures are `ratio` (the tutorial's time over the provider's, in the same process) and
`memory_ratio`. A regression is a measure below (1 - tolerance) times the reference's, unless the
spreads of the two, from the lowest to the highest round, overlap: then neither run can tell them
apart. A result that was right and is wrong now is one, too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.providers import BASELINE
from bench.results import OK, WRONG, Row

MEASURES = ("ratio", "memory_ratio")


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        compared: number of measures that both sides have.
        ratios: number of ratios among them that have a spread on both sides.
        agree: number of those whose spreads overlap.
        missing: cases and providers that the reference has and that have no result now.
        regressions: one sentence each.
        lines: one line per measure, for reading.
    """

    compared: int
    ratios: int
    agree: int
    missing: list[str]
    regressions: list[str]
    lines: list[str]

    @property
    def exit_code(self) -> int:
        """0 if nothing got worse, 1 otherwise, and where nothing could be compared at all."""
        return 0 if self.compared and not self.regressions else 1


def compare(rows: Iterable[Row], reference: Iterable[Row], tolerance: float) -> Comparison:
    """Compare `rows` with `reference`, case by case and provider by provider.

    Raises:
        ValueError: the tolerance is not in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"the tolerance is a share in [0, 1), got {tolerance}")
    known = {row.key: row for row in reference if row.status == OK and row.provider != BASELINE}
    compared, ratios, agree = 0, 0, 0
    missing, regressions, lines = [], [], []
    for row in rows:
        before = known.get(row.key)
        if before is None:
            continue
        name = f"{row.case} {row.provider}"
        if row.status == WRONG:
            regressions.append(f"{name} was right and is wrong now: {row.reason}")
        elif row.status != OK:
            missing.append(f"{name}: {row.reason}")
        for measure in MEASURES if row.status == OK else ():
            now, then = getattr(row, measure), getattr(before, measure)
            if now is None or then is None:
                continue
            compared += 1
            overlap = _overlap(row, before) if measure == "ratio" else None
            ratios += overlap is not None
            agree += overlap is True
            worse = now < (1 - tolerance) * then and not overlap
            mark = "!" if worse else "~" if overlap is False else " "
            lines.append(f"{mark} {name:<46} {measure:<13} {then:8.2f} {now:8.2f}")
            if worse:
                regressions.append(f"{name}: {measure} {now:.2f}, was {then:.2f}")
    return Comparison(compared, ratios, agree, missing, regressions, lines)


def _overlap(row: Row, before: Row) -> bool | None:
    """Tell whether the spreads of two ratios have something in common; None if one has none."""
    if row.ratio_low is None or row.ratio_high is None:
        return None
    if before.ratio_low is None or before.ratio_high is None:
        return None
    return row.ratio_low <= before.ratio_high and before.ratio_low <= row.ratio_high


def report(comparison: Comparison, tolerance: float) -> str:
    """Say in lines what came of a comparison."""
    lines = [f"  {'case and provider':<46} {'measure':<13} {'then':>8} {'now':>8}"]
    lines += comparison.lines
    lines.append(
        f"{comparison.agree} of {comparison.ratios} ratios agree: their spreads, from the lowest "
        "to the highest round, overlap (~ and ! do not)"
    )
    lines += [f"not compared: {text}" for text in comparison.missing]
    lines += [f"regression beyond {tolerance:.0%}: {text}" for text in comparison.regressions]
    if not comparison.compared:
        lines.append("nothing could be compared: the results have no case and provider in common")
    return "\n".join(lines)
