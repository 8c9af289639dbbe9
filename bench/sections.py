"""The parts of README.md and docs/performance.md that follow from results, as Markdown."""

import re
import statistics
import textwrap
from collections.abc import Iterable

from bench.cases import CLAIMS, Case
from bench.gpu import results
from bench.judge import BOUNDS
from bench.providers import BASELINE, PROVIDERS
from bench.quality import Result
from bench.results import OK, Row
from bench.table import SWEEPS, growth, sweep

OURS = ("cpp", "cpp-steps", "torch", "torch-steps", "triton-fp16", "triton-bf16", "triton-ieee")
WITHOUT_GAIN = 1.3
"""Cases whose ratio is below this are listed as those where the package does not help."""


def headline(rows: list[Row]) -> str:
    """Return the claim of README's opening: training against the tutorial's class."""
    _, names, found = _claims(rows)
    fast = next(name for name in names if name in OURS)
    chosen = [
        row
        for row in found.values()
        if row.provider == fast
        and row.mode == "training"
        and row.key[0] in {str(case) for case in CLAIMS}
    ]
    ratios = [row.ratio for row in chosen if row.ratio]
    memory = [row.memory_ratio for row in chosen if row.memory_ratio]
    return (
        f"A training iteration is {min(ratios):.0f} to {max(ratios):.0f} times as fast as with the "
        f"tutorial's class on a {_cores(rows[0])} CPU, and takes {min(memory):.0f} to "
        f"{max(memory):.0f} times less memory."
    )


def _cores(row: Row) -> str:
    return re.sub(r".*?(\d+) cores.*", r"\1-core", row.machine)


def short(rows: list[Row]) -> str:
    """Return README's table: a line per case, the tutorial's class and the fastest provider."""
    cases, names, found = _claims(rows)
    fast = next(name for name in names if name in OURS)
    row = rows[0]
    lines = [
        _wrap(
            f"4 grids of 64x64 cells, 80 steps, {row.machine}, {row.threads} threads, torch "
            f"{row.torch}, at commit {_commit(row.commit)}. Medians; in brackets the lowest and "
            "the highest of one round. *Fresh* states begin as seeds, *grown* ones are alive in "
            "three quarters of their cells."
        ),
        "",
        "| | tutorial's class | fastnca | times as fast | times less memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        base, ours = found[str(case), BASELINE], found[str(case), fast]
        lines.append(
            f"| {_title(case)} | {_digits(1e3 * (base.seconds or 0))} ms "
            f"| {_digits(1e3 * (ours.seconds or 0))} ms | **{ours.ratio:.1f}** "
            f"({ours.ratio_low:.1f} to {ours.ratio_high:.1f}) | {ours.memory_ratio:.0f} |"
        )
    return "\n".join(lines)


def where(rows: list[Row], source: str) -> str:
    """Say where the rows, those of file `source`, were measured, and how to read them."""
    row = rows[0]
    copied, product = row.copy_gb_per_second, row.matrix_gflop_per_second
    return _wrap(
        f"Measured on {row.machine}, threads: {row.threads}, torch {row.torch}, Python "
        f"{row.python}, at commit {_commit(row.commit)}; every row is in `{source}`. This "
        f"machine copies {copied:.0f} GB/s and multiplies matrices at {product:.0f} GFLOP/s. "
        "*Alive* is the mean share of living cells during the run; from seeds the pattern grows. "
        "A speed-up is the tutorial's median time over the provider's, in brackets the lowest and "
        "the highest of one round. *Matrix* is the share of the matrix rate that evaluating every "
        "cell at this speed would take; leaving dead cells out can bring it above 100 %."
    )


def _commit(commit: str) -> str:
    """Say what was measured: a commit, or one with changes on top of it."""
    return f"{commit[:-1]} with uncommitted changes" if commit.endswith("+") else commit


def speed(rows: list[Row]) -> str:
    """Return the table of times: a line per case, a column per provider."""
    cases, names, found = _claims(rows)
    others = [name for name in names if name != BASELINE]
    header = ["batch 4, 64x64, 80 steps", "alive", "tutorial", *(f"`{name}`" for name in others)]
    lines = [_line([*header, "matrix, tutorial", f"matrix, `{others[0]}`"]), ""]
    for case in cases:
        cells = [_title(case)]
        base = found.get((str(case), BASELINE))
        first = next(row for row in rows if row.case == str(case))
        cells.append(f"{first.alive_mean:.0%}" if first.alive_mean is not None else "")
        cells.append(f"{_digits(1e3 * base.seconds)} ms" if base and base.seconds else "")
        for name in others:
            row = found.get((str(case), name))
            cells.append("")
            if row and row.ratio and row.ratio_low and row.ratio_high:
                spread = f"({row.ratio_low:.1f} to {row.ratio_high:.1f})"
                bold = "**" if name in OURS else ""
                cells[-1] = f"{bold}{row.ratio:.1f}{bold} {spread}"
        for name in (BASELINE, others[0]):
            row = found.get((str(case), name))
            cells.append(f"{row.matrix_share:.0%}" if row and row.matrix_share else "")
        lines.append(_line(cells))
    lines[1] = "|" + " --- |" * lines[0].count(" |")
    return "\n".join(lines)


def memory(rows: list[Row]) -> str:
    """Return the table of memory: a line per case, a column per provider."""
    cases, names, found = _claims(rows)
    lines = [_line(["extra peak memory, MiB (times less)", *(f"`{name}`" for name in names)])]
    lines.append("|" + " --- |" * (len(names) + 1))
    for case in cases:
        cells = [_title(case)]
        for name in names:
            row = found.get((str(case), name))
            cells.append(_digits(row.memory_mib) if row else "")
            if row and row.memory_ratio and name != BASELINE:
                cells[-1] += f" ({row.memory_ratio:.1f})"
        lines.append(_line(cells))
    return "\n".join(lines)


def _claims(rows: list[Row]) -> tuple[list[Case], list[str], dict[tuple[str, str], Row]]:
    """Return the main cases that were measured, their providers, ours first, and their rows."""
    found = {row.key: row for row in rows if row.status == OK}
    cases = [case for case in CLAIMS if any(key[0] == str(case) for key in found)]
    keys = {str(case) for case in cases}
    present = {provider for case, provider in found if case in keys}
    order = [BASELINE, *OURS, *PROVIDERS]
    return cases, [name for name in dict.fromkeys(order) if name in present], found


def _title(case: Case) -> str:
    return f"{case.mode.replace('+', ' + ')}, {case.state}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def powers_of_growth(rows: list[Row]) -> str:
    """How time grows, as powers."""
    lines = [
        "Time of rollout + backward from grown states grows as these powers, over the upper half",
        "of each sweep:",
        "",
        "| provider | cells^p | batch^p | steps^p |",
        "| --- | --- | --- | --- |",
    ]
    for name in PROVIDERS:
        powers = []
        for what, (field, fixed) in SWEEPS.items():
            chosen = sweep(rows, field, name, mode="rollout+backward", state="grown", **fixed)
            power = growth(chosen, what)
            powers.append("" if power is None else f"{power:.2f}")
        if any(powers):
            lines.append(f"| {name} | {' | '.join(powers)} |")
    return "\n".join(lines)


def without_gain(rows: list[Row]) -> str:
    """Where the package helps little or not, and what could not be measured."""
    lines = [
        f"Where it does not help, or less than {WITHOUT_GAIN} times:",
        "",
        "| case | alive | provider | speed-up |",
        "| --- | --- | --- | --- |",
    ]
    poor = [row for row in rows if row.provider in OURS and row.ratio and row.ratio < WITHOUT_GAIN]
    for row in sorted(poor, key=lambda row: row.ratio or 0):
        lines.append(
            f"| {_name(row)} | {row.alive_mean:.0%} | {row.provider} "
            f"| {row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f}) |"
        )
    if not poor:
        lines = [f"In no measured case was the speed-up below {WITHOUT_GAIN}."]
    large = [row for row in rows if row.status != OK and row.provider == BASELINE]
    if large:
        listed = "; ".join(f"{_name(row)} ({row.reason})" for row in large)
        lines += ["", _wrap(f"Beyond this machine for the tutorial's class: {listed}.")]
    return "\n".join(lines)


def _name(row: Case | Row) -> str:
    steps = f"{row.steps} steps" if row.steps > 1 else "1 step"
    mode = row.mode.replace("+", " + ")
    return f"{mode}, {row.size}x{row.size}, batch {row.batch}, {steps}, {row.state}"


def time_to_quality(results: Iterable[Result]) -> str:
    """Quality of the default recipe and of others, and the time they take."""
    results = list(results)
    if not results:
        return ""
    first = results[0]
    commits = ", ".join(dict.fromkeys(_commit(result.commit) for result in results))
    lines = [
        _wrap(
            "Time to quality: `python -m bench.quality` trains each target with a preset at "
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
    return _line(cells)


def gpu(rows: list[results.Row], source: str) -> str:
    """Return the tables of one GPU."""
    row = next(row for row in rows if row.size is not None)
    text = (
        f"Measured on {results.where(rows[0])}; every row is in `{source}`. Grids of "
        f"{row.size}x{row.size}, alive everywhere, {row.steps} steps, medians; `launched` and "
        "`replayed` are `NeuralCA` with fp16 operands, step by step and as CUDA graphs; `texture` "
        "is the rule of that name, everything else the tutorial's."
    )
    tables = [results.rollout_table(rows), results.training_table(rows)]
    return "\n\n".join([_wrap(text), *("\n".join(table) for table in tables)])


def compiled_kernels(text: str) -> str:
    """What the compiler makes of the fused kernels, from their own README."""
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if re.match(r"\| kernel +\| variant", line))
    rows = [
        line
        for line in lines[header:]
        if re.match(r"\| (step|single)_(forward|backward) \| fp16-c16-h128 \| sm_90 ", line)
    ]
    return "\n".join(
        [
            "What the compiler makes of the fused kernels at the tutorial's size, in their fastest",
            "precision (`python -m bench.kernel_report`; more rows are in `kernels/README.md`):",
            "",
            *lines[header : header + 2],
            *rows,
        ]
    )


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _digits(value: float | None) -> str:
    """Return three significant digits, or nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
