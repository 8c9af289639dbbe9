"""The loop around the iterations of `PoolTrainer.fit`: read results, save, stop when asked."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from fastnca.memory import MemoryLimitError, is_out_of_memory
from fastnca.storage.model import describe_model
from fastnca.storage.runs import CheckpointError, RunDirectory

if TYPE_CHECKING:
    from fastnca.training.trainer import PoolTrainer

_MAX_FAILURES = 3
"""Checkpoints in a row that could not be written after which training stops."""


def fit(trainer: "PoolTrainer", callbacks: Iterable[Any], run: RunDirectory | None) -> None:
    """Train; see `PoolTrainer.fit`.

    Args:
        trainer: the trainer.
        callbacks: the log, before those of the trainer, and more of them after those.
        run: where checkpoints go.
    """
    if run is not None:
        describe_model(trainer.model)  # refuses a model that no checkpoint could describe
    before, (log, *more), failure = list(trainer.callbacks), callbacks, ""
    trainer.callbacks.insert(0, log)
    trainer.callback_error = None
    try:
        for each in more:
            trainer.add_callback(each)
        trainer.notify("on_fit_start")
        with stop_requests() as request:
            _run_iterations(trainer, request, run)
    except Exception as error:
        if error is trainer.callback_error and run and trainer.processes.world_size == 1:
            with contextlib.suppress(CheckpointError):
                run.save(trainer)
        if not is_out_of_memory(error):
            raise
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        try:
            trainer.notify("on_fit_end")
        finally:
            trainer.callbacks, trainer.callback_error = before, None
    if failure:  # here the tensors that the error held on to are gone
        raise MemoryLimitError(
            f"memory ran out in iteration {trainer.iteration + 1} ({failure}); training was "
            f"estimated to need {trainer.memory}. Lower batch_size or size, cut the batch "
            "(micro_batches) or raise checkpoint_every"
        )


def _run_iterations(
    trainer: "PoolTrainer", request: "StopRequest", run: RunDirectory | None
) -> None:
    """Train until the iterations are done or someone asks to stop."""
    config, stop, failures = trainer.config, False, 0
    # a look at a GPU's numbers waits for it; a CPU has them anyway
    interval = config.log_interval if trainer.seed_state.is_cuda else 1
    while trainer.iteration < config.iterations and not stop:
        trainer.start(request.signal_number is not None)
        done, every = trainer.iteration, config.save_interval
        last = done == config.iterations
        save = every > 0 and done % every == 0 and not last
        if save or last or done % interval == 0:
            stop = any(result.stop for result in trainer.collect())
            trainer.check()
        if save and not stop and run is not None:
            try:
                run.save(trainer)
                failures = 0
            except CheckpointError as error:
                failures += 1
                if failures == _MAX_FAILURES:
                    raise
                if trainer.processes.is_main:
                    print(f"fastnca: {error}; training goes on", file=sys.stderr)
    trainer.sampler.rewind()
    if run is not None:
        run.save(trainer)
    if stop or request.signal_number is not None:  # the latter during the last save
        request.exit_like_signal()


class ForcedStop(KeyboardInterrupt):
    """The process was asked to stop a second time, and leaves everything as it is."""


class StopRequest:
    """Whether, and by which signal, the process was asked to stop.

    Attributes:
        signal_number: the signal, or None while nobody asked.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def exit_like_signal(self) -> None:
        """End the process as the signal would have.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            SystemExit: 128 and the number of the signal; of SIGTERM if it was another process
                that was asked.
        """
        if self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal_number or signal.SIGTERM))

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise ForcedStop
        self.signal_number = number


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM instead of dying of it; the second one interrupts at once.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    request, signals = StopRequest(), (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._receive) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
