"""The loop around the iterations: log, save, stop when asked."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastnca.storage.model import describe_model
from fastnca.training.interrupt import StopRequest, stop_requests
from fastnca.training.log import TrainingLog
from fastnca.training.memory import MemoryLimitError, is_out_of_memory
from fastnca.training.run import CheckpointError, RunDirectory
from fastnca.training.step import StepResult

if TYPE_CHECKING:
    from fastnca.training.trainer import PoolTrainer

_FAILURES = 3
"""Checkpoints in a row that could not be written after which training stops."""


def fit(
    trainer: "PoolTrainer",
    metrics: Path | None,
    progress: bool,
    on_step: Callable[[StepResult], None] | None,
    run: RunDirectory | None,
) -> list[float]:
    """Train; see `PoolTrainer.fit`."""
    if run is not None:
        describe_model(trainer.model)  # refuses a model that no checkpoint could describe
    first, config = trainer.iteration, trainer.config
    writes = trainer.processes.first
    log = TrainingLog(
        metrics if writes else None,
        first,
        config.iterations,
        config.log_interval,
        progress and writes,
    )
    with log, stop_requests() as request:
        loop = _Loop(trainer, log, request, on_step, run)
        failure = ""
        try:
            loop.run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0] if str(error) else type(error).__name__
        if failure:  # here the tensors that the error held on to are gone
            raise MemoryLimitError(
                f"memory ran out in iteration {trainer.iteration + 1} ({failure}); training was "
                f"estimated to need {trainer.memory}. Lower batch_size or size, cut the batch "
                "(micro_batches) or raise checkpoint_every"
            )
    return trainer.losses[first:]


class _Loop:
    """One call of `fit`."""

    def __init__(
        self,
        trainer: "PoolTrainer",
        log: TrainingLog,
        request: StopRequest,
        on_step: Callable[[StepResult], None] | None,
        run: RunDirectory | None,
    ) -> None:
        self._trainer = trainer
        self._log = log
        self._request = request
        self._on_step = on_step
        self._run = run
        self._failures = 0
        # a look at a GPU's numbers waits for it; a CPU has them anyway
        self._interval = trainer.config.log_interval if trainer.target.is_cuda else 1

    def run(self) -> None:
        """Train until the iterations are done or someone asks to stop."""
        trainer, total = self._trainer, self._trainer.config.iterations
        stop = False
        while trainer.iteration < total and not stop:
            trainer.start(self._request.signal_number is not None)
            done, every = trainer.iteration, trainer.config.save_interval
            save = every > 0 and done % every == 0 and done < total
            if save or done == total or done % self._interval == 0:
                stop = self._read()
                trainer.check()
            if save and not stop:
                self._save(final=False)
        trainer.randomness.rewind()
        self._save(final=True)
        if stop or self._request.signal_number is not None:  # the latter during the last save
            self._request.obey()

    def _read(self) -> bool:
        """Log the iterations since the last look; tell whether a process was asked to stop."""
        results = self._trainer.read()
        for result in results:
            self._log.write(result)
            if self._on_step is not None:
                self._on_step(result)
        return any(result.stop for result in results)

    def _save(self, final: bool) -> None:
        """Write a checkpoint; go on without it unless it was the last chance."""
        if self._run is None:
            return
        try:
            self._run.save(self._trainer)
            self._failures = 0
        except CheckpointError as error:
            self._failures += 1
            if final or self._failures == _FAILURES:
                raise
            if self._trainer.processes.first:
                print(f"fastnca: {error}; training goes on", file=sys.stderr)
