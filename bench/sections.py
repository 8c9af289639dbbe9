"""The parts of README.md and docs/performance.md that follow from results, as Markdown."""

import re
from collections.abc import Sequence

from bench.cases import CLAIMS, TEXTURES, Case
from bench.gpu import results
from bench.markdown import digits, line, times, wrap
from bench.providers import BASELINE, PROVIDERS
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
        wrap(
            f"4 grids of 64x64 cells, 80 steps, {row.machine}, {row.threads} threads, torch "
            f"{row.torch}, at commit {row.commit}. Medians; in brackets the lowest and "
            "the highest of one round. *Fresh* states begin as seeds, *grown* ones with three "
            "quarters of their cells alive; the *lizard* is a published model, grown."
        ),
        "",
        "| | tutorial's class | fastnca | times as fast | times less memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        base, ours = found[str(case), BASELINE], found[str(case), fast]
        lines.append(
            f"| {_title(case)} | {digits(1e3 * (base.seconds or 0))} ms "
            f"| {digits(1e3 * (ours.seconds or 0))} ms | **{ours.ratio:.1f}** "
            f"({ours.ratio_low:.1f} to {ours.ratio_high:.1f}) | {ours.memory_ratio:.0f} |"
        )
    return "\n".join(lines)


def where(rows: list[Row], source: str) -> str:
    """Say where the rows, those of file `source`, were measured, and how to read them."""
    row = rows[0]
    copied, product = row.copy_gb_per_second, row.matrix_gflop_per_second
    return wrap(
        f"Measured on {row.machine}, threads: {row.threads}, torch {row.torch}, Python "
        f"{row.python}, at commit {row.commit}; every row is in `{source}`. This "
        f"machine copies {copied:.0f} GB/s and multiplies matrices at {product:.0f} GFLOP/s. "
        "*Alive* is the mean share of living cells during the run; from seeds the pattern grows. "
        "The *lizard* is the published regenerating model of *Growing Neural Cellular Automata*, "
        "grown for 200 steps. "
        "A speed-up is the tutorial's median time over the provider's, in brackets the lowest and "
        "the highest of one round. *Matrix* is the share of the matrix rate that evaluating every "
        "cell at this speed would take; leaving dead cells out can bring it above 100 %."
    )


def speed(rows: list[Row], of: Sequence[Case] = CLAIMS) -> str:
    """Return the table of times: a line per case, a column per provider."""
    cases, names, found = _claims(rows, of)
    if not cases:
        return ""
    others = [name for name in names if name != BASELINE]
    same = of is CLAIMS
    header = [
        "batch 4, 64x64, 80 steps" if same else "case",
        "alive",
        "tutorial",
        *(f"`{name}`" for name in others),
    ]
    lines = [line([*header, "matrix, tutorial", f"matrix, `{others[0]}`"]), ""]
    for case in cases:
        cells = [_title(case) if same else _name(case)]
        base = found.get((str(case), BASELINE))
        first = next(row for row in rows if row.case == str(case))
        cells.append(f"{first.alive_mean:.0%}" if first.alive_mean is not None else "")
        cells.append(f"{digits(1e3 * base.seconds)} ms" if base and base.seconds else "")
        for name in others:
            row = found.get((str(case), name))
            cells.append("")
            if row and row.ratio and row.ratio_low and row.ratio_high:
                spread = f"({times(row.ratio_low)} to {times(row.ratio_high)})"
                bold = "**" if name in OURS else ""
                cells[-1] = f"{bold}{times(row.ratio)}{bold} {spread}"
        for name in (BASELINE, others[0]):
            row = found.get((str(case), name))
            cells.append(f"{row.matrix_share:.0%}" if row and row.matrix_share else "")
        lines.append(line(cells))
    lines[1] = "|" + " --- |" * lines[0].count(" |")
    return "\n".join(lines)


def memory(rows: list[Row]) -> str:
    """Return the table of memory: a line per case, a column per provider."""
    cases, names, found = _claims(rows)
    lines = [line(["extra peak memory, MiB (times less)", *(f"`{name}`" for name in names)])]
    lines.append("|" + " --- |" * (len(names) + 1))
    for case in cases:
        cells = [_title(case)]
        for name in names:
            row = found.get((str(case), name))
            cells.append(digits(row.memory_mib) if row else "")
            if row and row.memory_ratio and name != BASELINE:
                cells[-1] += f" ({row.memory_ratio:.1f})"
        lines.append(line(cells))
    return "\n".join(lines)


def textures(rows: list[Row]) -> str:
    """Return the table of the texture rule."""
    text = (
        "The texture rule has 12 channels, 96 hidden units, identity, two Sobel filters and a "
        "Laplacian, a torus, no alive test and no last bias. Every cell lives, so only the update "
        "mask saves work. `tutorial` is the reference's own module here, called step by step."
    )
    table = speed(rows, TEXTURES)
    return f"{wrap(text)}\n\n{table}" if table else ""


def _claims(
    rows: list[Row], of: Sequence[Case] = CLAIMS
) -> tuple[list[Case], list[str], dict[tuple[str, str], Row]]:
    """Return the main cases that were measured, their providers, ours first, and their rows."""
    found = {row.key: row for row in rows if row.status == OK}
    cases = [case for case in of if any(key[0] == str(case) for key in found)]
    keys = {str(case) for case in cases}
    present = {provider for case, provider in found if case in keys}
    order = [BASELINE, *OURS, *PROVIDERS]
    return cases, [name for name in dict.fromkeys(order) if name in present], found


def _title(case: Case) -> str:
    return f"{case.mode.replace('+', ' + ')}, {case.state}"


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
        lines += ["", wrap(f"Beyond this machine for the tutorial's class: {listed}.")]
    return "\n".join(lines)


def _name(row: Case | Row) -> str:
    steps = f"{row.steps} steps" if row.steps > 1 else "1 step"
    mode = row.mode.replace("+", " + ")
    return f"{mode}, {row.size}x{row.size}, batch {row.batch}, {steps}, {row.state}"


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
    return "\n\n".join([wrap(text), *("\n".join(table) for table in tables)])


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
            "precision (`python -m bench kernels`; more rows are in `kernels/README.md`):",
            "",
            *lines[header : header + 2],
            *rows,
        ]
    )
