"""Results: one row per case and provider, kept as CSV."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

OK, WRONG, FAILED, SKIPPED = "ok", "wrong", "failed", "skipped"


@dataclass(frozen=True)
class Row:
    """What one provider did in one case, and where.

    Ratios are the tutorial's value over this provider's, so more is better, and 1 is the tutorial.

    Attributes:
        mode, size, batch, steps, state: the case, see `bench.cases.Case`.
        provider: name, see `bench.providers`.
        status: "ok", "wrong" (its results are not the reference's), "failed" (it raised an error)
            or "skipped" (it cannot take part).
        reason: why there is no time, or no memory figure; empty otherwise.
        alive_start: share of living cells at the start.
        alive_mean: its mean over the run.
        rounds: number of timed runs.
        first_seconds: of the first call, compilation included.
        seconds, seconds_low, seconds_high: median, lowest, highest of the rounds.
        cell_steps_per_second: cells times steps over `seconds`.
        ratio: tutorial's median over this median.
        ratio_low, ratio_high: lowest and highest ratio within one round.
        memory_mib: extra peak memory of one run, see `bench.memory`.
        memory_ratio: tutorial's over this one's.
        matrix_share: operations of evaluating every cell, per second, over the matrix rate. More
            than 1 is possible for who leaves dead cells out.
        copy_share: bytes that must move at least, per second, over the copy bandwidth.
        copy_gb_per_second, matrix_gflop_per_second: those ceilings.
        machine and what follows: see `bench.machine.Machine`.
    """

    mode: str
    size: int
    batch: int
    steps: int
    state: str
    provider: str
    status: str
    reason: str = ""
    alive_start: float | None = None
    alive_mean: float | None = None
    rounds: int | None = None
    first_seconds: float | None = None
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    cell_steps_per_second: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    memory_mib: float | None = None
    memory_ratio: float | None = None
    matrix_share: float | None = None
    copy_share: float | None = None
    copy_gb_per_second: float | None = None
    matrix_gflop_per_second: float | None = None
    machine: str = ""
    device: str = ""
    threads: int | None = None
    malloc: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    jax: str = ""
    fastnca: str = ""
    commit: str = ""

    @property
    def case(self) -> str:
        """The case as `bench.cases.Case` prints it."""
        return f"{self.mode}:{self.size}:{self.batch}:{self.steps}:{self.state}"

    @property
    def key(self) -> tuple[str, str]:
        """Case and provider."""
        return self.case, self.provider


T = TypeVar("T")


def write_csv(path: Path, rows: Iterable[Any], kind: type = Row) -> None:
    """Write rows, dataclasses of one kind, with a header; numbers have six significant digits."""
    names = [field.name for field in fields(kind)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_to_text(getattr(row, name)) for name in names] for row in rows)


def read_csv(path: Path, kind: type[T] = Row) -> list[T]:  # type: ignore[assignment]
    """Read what `write_csv` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has other columns, or a field is not a number.
    """
    hints = get_type_hints(kind)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or set(reader.fieldnames) != set(hints):
            raise ValueError(f"{path} does not have the columns of a benchmark's results")
        return [
            kind(**{name: _from_text(text, hints[name]) for name, text in line.items()})
            for line in reader
        ]


def read_if_there(path: Path, kind: type[T]) -> list[T]:
    """Read what `write_csv` wrote; no rows if there is no such file."""
    return read_csv(path, kind) if path.exists() else []


def _to_text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _from_text(text: str, hint: object) -> str | int | float | None:
    if hint is str:
        return text
    if text == "":
        return None
    return float(text) if hint in (float, float | None) else int(text)
