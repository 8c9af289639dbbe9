"""What a run writes while it trains: metrics.csv, the same as JSON lines, a progress bar."""

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from fastnca.storage.atomic import write_atomically
from fastnca.training.step import StepResult

COLUMNS = ("iteration", "loss", "gradient_norm", "steps", "learning_rate", "seconds", "skipped")
"""Columns of metrics.csv: seconds are wall-clock seconds of the iteration, skipped is 0 or 1."""


class TrainingLog:
    """Metrics files and progress bar of one call of `PoolTrainer.fit`.

    Args:
        path: the CSV file, or None for none; the JSON lines go beside it. A run that was resumed
            appends, after the rows of iterations that are done again are taken out.
        first: number of iterations done before.
        total: number of iterations at the end.
        flush_interval: iterations between two flushes of the files.
        progress: True shows the bar, on a terminal only.
    """

    def __init__(
        self, path: Path | None, first: int, total: int, flush_interval: int, progress: bool
    ) -> None:
        self._interval = flush_interval
        self._files: list[TextIO] = []
        if path is not None:
            table = _reopen(path, first, _read_csv)
            self._files = [table, _reopen(path.with_suffix(".jsonl"), first, _read_json)]
            self._table = csv.writer(table)
            if table.tell() == 0:
                self._table.writerow(COLUMNS)
        self._bar = tqdm(
            total=total,
            initial=first,
            desc="training",
            unit="it",
            file=sys.stderr,
            disable=None if progress else True,  # None: no bar where nobody watches a terminal
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        for file in self._files:
            file.close()

    def write(self, result: StepResult) -> None:
        """Add one iteration."""
        self._bar.update()
        self._bar.set_postfix_str(f"loss {result.loss:.4f}")
        if not self._files:
            return
        row: dict[str, Any] = {name: getattr(result, name) for name in COLUMNS}
        self._table.writerow([_cell(name, value) for name, value in row.items()])
        # NaN and infinity are no JSON
        row = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._files[1].write(json.dumps({**row, "skipped": bool(row["skipped"])}) + "\n")
        if result.iteration % self._interval == 0:
            for file in self._files:
                file.flush()


def _cell(name: str, value: float) -> str:
    """Write a number as metrics.csv holds it."""
    if name in ("loss", "gradient_norm", "learning_rate"):
        return f"{value:.8g}"
    return f"{value:.4f}" if name == "seconds" else str(int(value))


def _reopen(path: Path, first: int, number: Callable[[str], int]) -> TextIO:
    """Open a metrics file for appending, without lines of iterations after `first`.

    A run that was killed has logged more iterations than its last checkpoint has, and perhaps
    half a line.
    """
    if first == 0 or not path.exists():
        return path.open("w", newline="", encoding="utf-8")
    kept = io.StringIO()
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
                if line.endswith("\n") and number(line) <= first:
                    kept.write(line)
    write_atomically(path, kept.getvalue().encode())
    return path.open("a", newline="", encoding="utf-8")


def _read_csv(line: str) -> int:
    """Return the iteration of a line of metrics.csv, 0 for its header."""
    cells = line.rstrip("\r\n").split(",")
    if len(cells) != len(COLUMNS):
        raise ValueError
    return 0 if tuple(cells) == COLUMNS else int(cells[0])


def _read_json(line: str) -> int:
    """Return the iteration of a JSON line."""
    return int(json.loads(line)["iteration"])
