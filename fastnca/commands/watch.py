"""What one can look at while a run trains: pictures of its pool, TensorBoard, warnings."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastnca.pictures.mosaic import choose_rows, encode_mosaic
from fastnca.storage.atomic import write_atomically
from fastnca.training import PoolTrainer, StepResult

MOSAICS = "pools"
"""Folder of a run that holds the pictures of its pool."""


class Watch:
    """Calls what wants to hear of every iteration; pass it to `PoolTrainer.fit` as `on_step`.

    Args:
        trainer: the run.
        out: its directory.
        best: called with every result.
        mosaic_interval: iterations between two pictures of the pool; 0 for none.
        writer: `find_writer()` to write for TensorBoard, None not to.
    """

    def __init__(
        self,
        trainer: PoolTrainer,
        out: Path,
        best: Callable[[StepResult], None],
        mosaic_interval: int = 0,
        writer: Callable[[str], Any] | None = None,
    ) -> None:
        self._trainer = trainer
        self._out = out
        self._best = best
        first = trainer.processes.first
        self._interval = mosaic_interval if first else 0
        self._board = writer(str(out / "tensorboard")) if writer is not None and first else None

    def __call__(self, result: StepResult) -> None:
        """Hear of one iteration."""
        self._best(result)
        if self._board is not None:
            for name in ("loss", "gradient_norm", "learning_rate", "seconds"):
                self._board.add_scalar(name, getattr(result, name), result.iteration)
        if self._interval and result.iteration % self._interval == 0:
            folder = self._out / MOSAICS
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"{result.iteration:08d}.png", draw_pool(self._trainer))

    def close(self) -> None:
        """Finish the files."""
        if self._board is not None:
            self._board.close()


class _AboveTheBar(logging.Handler):
    """Prints to stderr, and lets a progress bar that is shown there move down."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"fastnca: {record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def warnings_above_the_bar() -> Iterator[None]:
    """Print what fastnca warns of."""
    logger, handler = logging.getLogger("fastnca"), _AboveTheBar(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def forget_pictures(out: Path) -> None:
    """Remove the pictures that an overwritten run left."""
    for picture in (out / MOSAICS).glob("[0-9]" * 8 + ".png"):
        picture.unlink()


def draw_pool(trainer: PoolTrainer) -> bytes:
    """Draw up to 64 evenly spaced states of the pool as PNG."""
    rows = choose_rows(len(trainer.pool))
    return encode_mosaic(trainer.pool.gather(rows))


def find_writer() -> Callable[[str], Any]:
    """Return TensorBoard's writer, which takes the directory of its files.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard, which is not installed: install it with "
            "pip install tensorboard, or leave the flag out"
        ) from error
    writer: Callable[[str], Any] = SummaryWriter
    return writer
