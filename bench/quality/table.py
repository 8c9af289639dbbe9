"""The table of the default recipe and others, as Markdown."""

import statistics
from collections.abc import Iterable

from bench.markdown import line, wrap
from bench.quality.judge import BOUNDS
from bench.quality.time_to_quality import Result


def time_to_quality(results: Iterable[Result]) -> str:
    """Quality of the default recipe and of others, and the time they take."""
    results = list(results)
    if not results:
        return ""
    first = results[0]
    commits = ", ".join(dict.fromkeys(result.commit for result in results))
    lines = [
        wrap(
            "Time to quality: `python -m bench quality` trains each target with a preset at "
            f"{first.size}x{first.size} and judges the saved model by four rollouts with random "
            "updates. *Error* is the mean squared error of clamped RGBA as a "
            "share of an empty grid's, worst of the seeds. All bounds hold when it is at most "
            f"{BOUNDS['grown_96']:.1%} after 96 steps, {BOUNDS['grown_192']:.1%} after 192 and "
            f"480, {BOUNDS['healed']:.1%} healed, {BOUNDS['grown_2000']:.1%} after 2,000 steps, "
            "and no living cell is farther than two cells from the target. Seconds are medians of "
            "the seeds; those of the tutorial's class are projected from its time for one step, "
            "with the same recipe, until the bounds hold or training ends. "
            f"{first.machine}, threads: {first.threads}, torch "
            f"{first.torch}, commit{'s' * (', ' in commits)} {commits}:"
        ),
        "",
        "| target | preset | iterations | seeds | all bounds hold | 96 steps | 192 | 480 | "
        "healed | 2,000 | no scraps | training | until the bounds hold | the tutorial's class |",
        "| --- |" + " --- |" * 13,
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.target, result.preset), []).append(result)
    return "\n".join([*lines, *map(_quality, groups.values())])


def _quality(runs: list[Result]) -> str:
    """Return the line of a target and a preset."""

    def worst(name: str) -> str:
        return f"{max(getattr(run, name) / run.empty for run in runs):.1%}"

    fine = [all(run.holds().values()) for run in runs]
    reached = [run for run in runs if run.reached]
    cells = [
        runs[0].target,
        runs[0].preset,
        f"{statistics.median_low(run.iterations for run in runs):,}",
        str(len(runs)),
        f"{sum(fine)} of {len(runs)}",
        *(worst(name) for name in ("grown_96", "grown_192", "grown_480", "healed", "grown_2000")),
        f"{sum(run.scraps == 0 for run in runs)} of {len(runs)}",
        f"{statistics.median(run.seconds for run in runs):.0f} s",
    ]
    first = [run.reached_seconds for run in reached]
    cells.append(f"{statistics.median(first):.0f} s" if first else "never")
    cells.append(f"{statistics.median(run.tutorial_seconds for run in runs):.0f} s")
    return line(cells)
