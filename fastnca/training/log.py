"""What a run writes while it trains: metrics.csv and a progress bar."""

import csv
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from fastnca.training.step import StepResult

COLUMNS = ("iteration", "loss", "gradient_norm", "steps", "learning_rate", "seconds", "skipped")
"""Columns of metrics.csv: seconds are wall-clock seconds of the iteration, skipped is 0 or 1."""


class TrainingLog:
    """Metrics file and progress bar of one call of `PoolTrainer.fit`.

    Args:
        path: the CSV file, or None for none. A run that was resumed appends.
        first: number of iterations done before.
        total: number of iterations at the end.
        flush_interval: iterations between two flushes of the file.
        progress: True shows the bar, on a terminal only.
    """

    def __init__(
        self, path: Path | None, first: int, total: int, flush_interval: int, progress: bool
    ) -> None:
        self._interval = flush_interval
        self._file = None
        if path is not None:
            self._file = path.open("a" if first else "w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            if self._file.tell() == 0:
                self._writer.writerow(COLUMNS)
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
        if self._file is not None:
            self._file.close()

    def write(self, result: StepResult) -> None:
        """Add one iteration."""
        self._bar.update()
        self._bar.set_postfix_str(f"loss {result.loss:.4f}")
        if self._file is None:
            return
        self._writer.writerow(
            [
                result.iteration,
                f"{result.loss:.8g}",
                f"{result.gradient_norm:.8g}",
                result.steps,
                f"{result.learning_rate:.8g}",
                f"{result.seconds:.4f}",
                int(result.skipped),
            ]
        )
        if result.iteration % self._interval == 0:
            self._file.flush()
