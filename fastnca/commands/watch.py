"""Callbacks of `fastnca train`: pictures of the pool, TensorBoard; and warnings above the bar."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastnca.pictures.mosaic import choose_rows, encode_mosaic
from fastnca.pictures.render import visible
from fastnca.storage.atomic import write_atomically
from fastnca.training import Callback, PoolTrainer, StepResult

MOSAICS = "pools"
"""Folder of a run that holds the pictures of its pool."""


class PoolPictures(Callback):
    """Pictures of the pool, drawn in the main process.

    Args:
        out: directory of the run.
        interval: iterations between two pictures.
    """

    def __init__(self, out: Path, interval: int) -> None:
        self._folder = out / MOSAICS
        self._interval = interval

    def on_step_end(self, trainer: PoolTrainer, result: StepResult) -> None:
        """Draw the pool if it is time to."""
        if trainer.processes.is_main and result.iteration % self._interval == 0:
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._folder / f"{result.iteration:08d}.png", draw_pool(trainer))


class TensorBoard(Callback):
    """Scalars for TensorBoard, written by the main process.

    Args:
        out: directory of the run.
        writer: `find_writer()`.
    """

    def __init__(self, out: Path, writer: Callable[[str], Any]) -> None:
        self._folder, self._writer = str(out / "tensorboard"), writer
        self._board: Any = None

    def on_fit_start(self, trainer: PoolTrainer) -> None:
        """Open the file."""
        if trainer.processes.is_main:
            self._board = self._writer(self._folder)

    def on_step_end(self, trainer: PoolTrainer, result: StepResult) -> None:
        """Write the scalars of one iteration."""
        if self._board is not None:
            for name in ("loss", "gradient_norm", "learning_rate", "seconds"):
                self._board.add_scalar(name, getattr(result, name), result.iteration)

    def on_fit_end(self, trainer: PoolTrainer) -> None:
        """Close the file."""
        if self._board is not None:
            self._board.close()
            self._board = None


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


def remove_old_mosaics(out: Path) -> None:
    """Remove the pictures that an overwritten run left."""
    for picture in (out / MOSAICS).glob("[0-9]" * 8 + ".png"):
        picture.unlink()


def draw_pool(trainer: PoolTrainer) -> bytes:
    """Draw up to 64 evenly spaced states of the pool as PNG."""
    rows = choose_rows(len(trainer.pool))
    return encode_mosaic(visible(trainer.model, trainer.pool.gather(rows)))


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
