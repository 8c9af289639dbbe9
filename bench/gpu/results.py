"""Turn what a run on a GPU left into committed rows and the GPU tables of the pages.

    python -m bench gpu-results OUTDIR [--commit HASH]

Writes `bench/results/gpu-NAME.csv`, NAME from the device, and the generated parts of the pages.
Numbers of a rehearsal, and of a run whose parity did not pass, are refused.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.gpu.parts import PARTS
from bench.results import OK, write_csv

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
PREFIX = "gpu-"
ORDER = (
    "tutorial",
    "compile",
    "launched",
    "replayed",
    "texture, launched",
    "texture, replayed",
)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        provider: see `bench.gpu.timing` and `bench.gpu.launches`, whose begin with "launch, ".
        mode: "rollout", "rollout+backward", "training", "final loss", or what the host spends on
            one call of the model and on its gradients, "step, host" and "step backward, host"; of
            `bench.gpu.launches`, "forward" or "backward".
        batch, size, steps: grids, their height and width, and steps of a rollout.
        status: "ok" or "failed".
        reason: why it failed.
        rounds: number of timed runs.
        milliseconds, milliseconds_low, milliseconds_high: median, least and most of the rounds.
        picoseconds_per_cell_step: of a rollout; for "rollout+backward", of the backward pass alone.
        memory_mib: extra peak memory of a run.
        loss: mean of the last losses.
        machine and what follows: where it was measured, see `bench.machine.Machine`.
    """

    provider: str
    mode: str
    batch: int | None = None
    size: int | None = None
    steps: int | None = None
    status: str = OK
    reason: str = ""
    rounds: int | None = None
    milliseconds: float | None = None
    milliseconds_low: float | None = None
    milliseconds_high: float | None = None
    picoseconds_per_cell_step: float | None = None
    memory_mib: float | None = None
    loss: float | None = None
    machine: str = ""
    device: str = ""
    cuda: str = ""
    torch: str = ""
    triton: str = ""
    python: str = ""
    fastnca: str = ""
    commit: str = ""


WHERE = ("machine", "device", "cuda", "torch", "triton", "python", "fastnca", "commit")
"""The fields of a row that say where it was measured."""


def read_rows(path: Path) -> list[Row]:
    """Read rows, a JSON object a line; a last line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(Row(**json.loads(line)))
        except json.JSONDecodeError:
            break
    return rows


def read_parts(path: Path) -> dict[str, dict[str, Any]]:
    """Read what became of each part."""
    with path.open(newline="") as file:
        return {line["part"]: line for line in csv.DictReader(file)}


def parity(parts: dict[str, dict[str, Any]]) -> str:
    """Say whether the parts that prove the numbers passed: "passed", or what did not."""
    wrong = []
    for name in (part.name for part in PARTS.values() if part.proves):
        status = parts[name]["status"] if name in parts else "not run"
        if status != "passed":
            wrong.append(f"{name} {status}")
    return "; ".join(wrong) or "passed"


def rollout_table(rows: Iterable[Row]) -> list[str]:
    """Return a Markdown table of picoseconds per cell and step."""
    found = {(row.provider, row.batch, row.mode): row for row in rows}
    lines = [
        "| ps per cell and step | batch | forward | backward |",
        "| --- | --- | --- | --- |",
    ]
    for provider, batch in _kinds(rows, ("rollout", "rollout+backward")):
        cells = []
        for mode in ("rollout", "rollout+backward"):
            row = found.get((provider, batch, mode))
            cells.append(_number(row, row.picoseconds_per_cell_step) if row else "")
        lines.append(f"| {provider} | {batch} | {cells[0]} | {cells[1]} |")
    return lines


def training_table(rows: Iterable[Row]) -> list[str]:
    """Return a Markdown table of milliseconds and MiB of a training iteration."""
    found = {(row.provider, row.batch): row for row in rows if row.mode == "training"}
    lines = [
        "| training iteration | batch | ms (least to most) | times faster | MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for provider, batch in _kinds(rows, ("training",)):
        row, base = found[provider, batch], found.get(("tutorial", batch))
        gain = ""
        if base and base.milliseconds and row.milliseconds:
            gain = f"{base.milliseconds / row.milliseconds:.1f}"
        time = _number(row, row.milliseconds)
        if row.milliseconds_low is not None and row.milliseconds_high is not None:
            time += f" ({row.milliseconds_low:.4g} to {row.milliseconds_high:.4g})"
        memory = _number(row, row.memory_mib)
        lines.append(f"| {provider} | {batch} | {time} | {gain} | {memory} |")
    return lines


def launch_table(rows: Iterable[Row], most: int = 6) -> list[str]:
    """Return a Markdown table of the fastest launches of `bench.gpu.launches`."""
    cases: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        if row.provider.startswith("launch, ") and row.milliseconds is not None:
            cases.setdefault((row.mode, row.batch), []).append(row)
    lines = ["| launch | of | batch | steps | ms |", "| --- | --- | --- | --- | --- |"]
    for (mode, batch), found in cases.items():
        order = sorted(found, key=lambda row: row.milliseconds or 0.0)
        table = [row for row in order[most:] if row.provider == "launch, table"]
        for row in order[:most] + table:
            name = row.provider.removeprefix("launch, ")
            lines.append(f"| {name} | {mode} | {batch} | {row.steps} | {row.milliseconds:.4g} |")
    return lines if cases else []


def _kinds(rows: Iterable[Row], modes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return provider and batch of the rows in these modes, in the order of the tables."""
    kinds = {(row.provider, row.batch) for row in rows if row.mode in modes}
    known = [(provider, batch) for provider, batch in kinds if batch is not None]
    return sorted(known, key=lambda kind: (kind[1], ORDER.index(kind[0])))


def _number(row: Row, value: float | None) -> str:
    if row.status != OK:
        return row.reason
    return "" if value is None else f"{value:.4g}"


def where(row: Row) -> str:
    """Say on what a row was measured."""
    return (
        f"{row.machine}, CUDA {row.cuda or 'none'}, torch {row.torch}, triton {row.triton}, "
        f"Python {row.python}, fastnca {row.fastnca} at commit {row.commit}"
    )


def summary(rows: list[Row], parts: dict[str, dict[str, Any]], rehearse: bool) -> str:
    """Return the last page of a run, as Markdown."""
    lines = ["# Run on a GPU: rehearsal on a CPU" if rehearse else "# Run on a GPU", ""]
    if rehearse:
        lines += ["This is a rehearsal: tests were collected, not run, and no time means anything."]
    else:
        lines += [f"Parity: **{parity(parts)}**."]
    if rows:
        lines += ["", f"{where(rows[0])}."]
    lines += ["", "| part | status | seconds | tests | failed | skipped | reason |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for name, part in parts.items():
        seconds = f"{float(part['seconds']):.0f}"
        counts = f"{part['tests']} | {part['failures']} | {part['skips']}"
        lines.append(f"| {name} | {part['status']} | {seconds} | {counts} | {part['reason']} |")
    if rows:
        lines += ["", *rollout_table(rows), "", *training_table(rows)]
    if launches := launch_table(rows):
        lines += ["", *launches]
    host = [f"{r.mode} {1e3 * r.milliseconds:.0f} us" for r in rows if "host" in r.mode]
    if host:
        lines += ["", f"One step of the tutorial's own loop: {', '.join(host)}."]
    losses = [f"{row.provider} {row.loss:.5f}" for row in rows if row.loss is not None]
    if losses:
        lines += ["", f"Final loss from one seed: {', '.join(losses)}."]
    return "\n".join(lines) + "\n"


def collect(folder: Path, commit: str | None = None) -> list[Row]:
    """Read the rows of a run that may be published.

    Raises:
        ValueError: it was a rehearsal, its parity did not pass, or it has no rows.
    """
    rows = read_rows(folder / "rows.jsonl")
    if not rows:
        raise ValueError(f"{folder} has no rows")
    if any(row.device != "cuda" for row in rows):
        raise ValueError(f"{folder} holds a rehearsal, whose times mean nothing")
    said = parity(read_parts(folder / "parts.csv"))
    if said != "passed":
        raise ValueError(f"the run in {folder} did not prove its numbers: {said}")
    return [replace(row, commit=commit or row.commit) for row in rows]


def main(arguments: list[str] | None = None) -> int:
    """Write the rows and the pages."""
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu-results", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, metavar="OUTDIR", help="what the run left")
    parser.add_argument("--commit", help="of the code that ran, where that had no git")
    options = parser.parse_args(arguments)
    try:
        rows = collect(options.folder, options.commit)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    name = rows[0].machine.lower().removeprefix("nvidia ").replace(" ", "-")
    path = RESULTS / f"{PREFIX}{name}.csv"
    write_csv(path, rows, Row)
    print(f"written: {path}")
    from bench.pages import write_text  # reads these results in turn

    write_text()
    return 0
