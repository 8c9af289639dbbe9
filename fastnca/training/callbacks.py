"""Callbacks: what hears of every iteration, and the metrics files among them."""

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from torch import Tensor
from tqdm import tqdm

from fastnca.storage.atomic import write_atomically

if TYPE_CHECKING:
    from fastnca.training.trainer import PoolTrainer


class DivergedError(RuntimeError):
    """Loss or gradient was not finite in too many iterations in a row.

    The model then holds the last weights that gave a finite loss and gradient.
    """


class CollapsedError(RuntimeError):
    """Training went wrong again after the last repair: the seed died, or states exploded.

    The model then holds the last weights whose seed lived.
    """


@dataclass(frozen=True)
class StepResult:
    """One iteration.

    Attributes:
        iteration: its number, from 1.
        loss: mean loss of the batch.
        gradient_norm: Euclidean norm of all gradients before clipping; NaN if there was none.
        steps: steps of the rollout.
        learning_rate: that was used.
        seconds: wall-clock time of the iteration; on a GPU the mean since the last look.
        skipped: True if loss or gradient was not finite, so that nothing was changed.
        stop: True if one of the processes was asked to stop.
        states: states that were rolled out, in all processes.
        dead: how many of them had no living cell afterwards.
        exploded: how many became the seed again because of their values.
        seeds: how many were the seed before.
        dead_seeds: how many of those had no living cell afterwards.
    """

    iteration: int
    loss: float
    gradient_norm: float
    steps: int
    learning_rate: float
    seconds: float
    skipped: bool
    stop: bool = False
    states: int = 0
    dead: int = 0
    exploded: int = 0
    seeds: int = 0
    dead_seeds: int = 0


@dataclass(frozen=True)
class PendingStep:
    """An iteration that was started.

    Attributes:
        numbers: what `Iteration.run` returned, perhaps still on its way.
        iteration: its number, from 1.
        steps: steps of the rollout.
        learning_rate: that was used.
    """

    numbers: Tensor
    iteration: int
    steps: int
    learning_rate: float

    def finish(self, values: list[float], seconds: float, states: int) -> StepResult:
        """Return what the iteration did, now that its numbers have been read.

        Args:
            values: `numbers`.
            seconds: wall-clock time of the iteration.
            states: states that were rolled out.
        """
        bad, loss, exploded, asked, dead, seeds, dead_seeds, norm = values
        return StepResult(
            iteration=self.iteration,
            loss=loss,
            gradient_norm=norm if math.isfinite(loss) else math.nan,
            steps=self.steps,
            learning_rate=self.learning_rate,
            seconds=seconds,
            skipped=bad > 0,
            stop=asked > 0,
            states=states,
            dead=int(dead),
            exploded=int(exploded),
            seeds=int(seeds),
            dead_seeds=int(dead_seeds),
        )


class Callback:
    """What hears of a run; override what is needed.

    A trainer calls its callbacks in their order, in every process. What one raises ends `fit`,
    after a checkpoint if the run has a directory.

    Attributes:
        name: of its file in checkpoints; empty if it has no state.
    """

    name = ""

    def on_attach(self, trainer: "PoolTrainer") -> None:
        """Called when a trainer takes the callback on, and again before each `load_state_dict`."""

    def on_fit_start(self, trainer: "PoolTrainer") -> None:
        """Called before the first iteration of `fit`."""

    def on_update(self, trainer: "PoolTrainer", numbers: Tensor) -> None:
        """Called after an iteration was started; it must not wait for the device.

        Args:
            trainer: the trainer; the model's weights are those after the iteration.
            numbers: what `Iteration.run` returned, still on the device.
        """

    def on_step_end(self, trainer: "PoolTrainer", result: StepResult) -> None:
        """Called after every iteration; on a GPU when its numbers are read, several at once."""

    def on_rollback(self, trainer: "PoolTrainer") -> None:
        """Called after the model went back to earlier weights."""

    def on_fit_end(self, trainer: "PoolTrainer") -> None:
        """Called when `fit` ends, whatever ended it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors of finite numbers; names, shapes and dtypes are the same at any time."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` returned."""


class FunctionCallback(Callback):
    """Calls `function(result)` after every iteration."""

    def __init__(self, function: Callable[[StepResult], object]) -> None:
        self._function = function

    def on_step_end(self, trainer: "PoolTrainer", result: StepResult) -> None:
        """Call the function."""
        self._function(result)


COLUMNS = ("iteration", "loss", "gradient_norm", "steps", "learning_rate", "seconds", "skipped")
"""Columns of metrics.csv: seconds are wall-clock seconds of the iteration, skipped is 0 or 1."""


class TrainingLog(Callback):
    """Metrics as CSV and as JSON lines, and a progress bar, written by the main process.

    Args:
        path: the CSV file, or None for none; the JSON lines go beside it. A run that was resumed
            appends, after the rows of iterations that are done again are taken out.
        progress: True shows the bar, on a terminal only.
    """

    def __init__(self, path: str | PathLike[str] | None, progress: bool = True) -> None:
        self._path = None if path is None else Path(path)
        self._progress = progress
        self._files: list[TextIO] = []
        self._bar: Any = None

    def on_fit_start(self, trainer: "PoolTrainer") -> None:
        """Open the files and show the bar."""
        first, writes = trainer.iteration, trainer.processes.is_main
        if self._path is not None and writes:
            for path, read in (
                (self._path, _read_csv),
                (self._path.with_suffix(".jsonl"), _read_json),
            ):
                self._files.append(_reopen(path, first, read))
            self._table = csv.writer(self._files[0])
            if self._files[0].tell() == 0:
                self._table.writerow(COLUMNS)
        self._bar = tqdm(
            total=trainer.config.iterations,
            initial=first,
            desc="training",
            unit="it",
            file=sys.stderr,
            # None: no bar where nobody watches a terminal
            disable=None if self._progress and writes else True,
        )

    def on_step_end(self, trainer: "PoolTrainer", result: StepResult) -> None:
        """Add one iteration."""
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(f"loss {result.loss:.4f}")
        if not self._files:
            return
        row: dict[str, Any] = {name: getattr(result, name) for name in COLUMNS}
        self._table.writerow([_cell(name, value) for name, value in row.items()])
        # NaN and infinity are no JSON
        row = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._files[1].write(json.dumps({**row, "skipped": bool(row["skipped"])}) + "\n")
        if result.iteration % trainer.config.log_interval == 0:
            for file in self._files:
                file.flush()

    def on_fit_end(self, trainer: "PoolTrainer") -> None:
        """Close the files and the bar."""
        if self._bar is not None:
            self._bar.close()
        for file in self._files:
            file.close()
        self._files, self._bar = [], None


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
