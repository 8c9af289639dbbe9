"""Pool training: one iteration, and the loop around it."""

import logging
import secrets
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.states import create_seed
from fastnca.training.checks import check_model, check_target, count_slots
from fastnca.training.companions import Companions
from fastnca.training.config import TrainConfig
from fastnca.training.draw import Randomness
from fastnca.training.graphed import GraphedIteration
from fastnca.training.host_pool import HostPool
from fastnca.training.memory import Estimate
from fastnca.training.pool import SamplePool
from fastnca.training.processes import Processes
from fastnca.training.recovery import Recovery
from fastnca.training.schedule import adapt, learning_rate
from fastnca.training.step import StepResult, Unread
from fastnca.training.update import Update, copy_weights

if TYPE_CHECKING:
    from fastnca.training.run import RunDirectory

_log = logging.getLogger("fastnca")


class PoolTrainer:
    """Train a Neural CA on states that live in a pool.

    Args:
        model: the model; it is put into training mode.
        target: `[1, 4, S, S]` or `[4, S, S]`, RGBA, of the model's dtype and device.
        config: the options; the tutorial's if None.
        processes: those that train together; this one alone if None.

    Attributes:
        model: the model.
        target: `[1, 4, S, S]`.
        config: the options.
        processes: those that train together.
        memory: what the run needs.
        pool: the states of this process.
        randomness: where slots, steps, masks and damage are drawn.
        iteration: iterations done.
        skipped: iterations without a finite loss and gradient, all in all.
        reseeded: states that became the seed again because of their values.
        losses: loss of every iteration, skipped ones included, averaged over the processes.
        after_start: called with what `Iteration.run` returned; they must not wait for the device.
        companions: what checkpoints hold beside the trainer.
        run_id: names the run in its checkpoints; a resumed run keeps it.

    Raises:
        MemoryLimitError: the pool fits no memory.
        TypeError: the model is no `NeuralCA`, or the target not of its dtype.
        ValueError: the model has no numbers or nothing to train, the target does not fit or is
            not finite, or there are fewer states than processes.
    """

    def __init__(
        self,
        model: NeuralCA,
        target: Tensor,
        config: TrainConfig | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config = config or TrainConfig()
        self.model = check_model(model)
        self.target = check_target(target, next(model.parameters()))
        self.processes = processes or Processes()
        self.seed_state = create_seed(
            self.target.shape[-1],
            model.num_channels,
            fill_hidden=self.config.fill_hidden,
            device=self.target.device,
            dtype=self.target.dtype,
        )
        slots = count_slots(self.config, self.processes)
        self.memory = Estimate.of(model, self.seed_state, self.config, slots)
        kind = HostPool if self.memory.host else SamplePool
        dtype = torch.float16 if self.config.half_pool else None
        self.pool = kind(self.seed_state, slots, dtype=dtype)
        self.randomness = Randomness(self.config, slots, self.processes.rank, self.processes.size)
        self.update = Update(model, self.config)
        self.iterate = GraphedIteration(
            model, self.target, self.seed_state, self.config, self.pool, self.update, self.processes
        )
        self.iteration = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.reseeded = 0
        self.losses: list[float] = []
        self.after_start: list[Callable[[Tensor], None]] = []
        self.after_repair: list[Callable[[], None]] = []
        self.companions = Companions()
        self.run_id = secrets.token_hex(8)
        self.recovery = Recovery(
            model, self.update, self.pool, self.seed_state, self.target, self.config
        )
        if self.config.repairs:
            self.companions.add("recovery", self.recovery, self.iteration)
        self._unread: list[Unread] = []
        self._since = 0.0

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the model's parameters."""
        return self.update.optimizer

    @property
    def good_weights(self) -> dict[str, Tensor]:
        """The `state_dict` that last gave a finite loss and gradient."""
        return self.update.good_weights

    def step(self) -> StepResult:
        """Run one iteration: draw, roll out, differentiate, update, write back.

        An iteration whose loss or gradient is not finite changes neither model, optimiser nor
        pool, and is counted.

        Returns:
            What happened.

        Raises:
            DivergedError: this was the last of `max_skips` skipped iterations in a row.
        """
        self.start()
        result = self.read()[-1]
        self.check()
        return result

    def start(self, stop: bool = False) -> None:
        """Start an iteration without waiting for what it computes; `read` tells.

        Args:
            stop: whether this process was asked to stop; the other processes will hear of it.
        """
        if not self._unread:
            self._since = time.perf_counter()
        self.model.train()
        draw = adapt(self.randomness.next(), self.config, self.iteration)
        rate = learning_rate(self.config, self.iteration) * self.recovery.rate
        numbers = self.iterate.run(draw, rate, stop)
        for listener in self.after_start:
            listener(numbers)
        self.iteration += 1
        self._unread.append(Unread(numbers, self.iteration, draw.steps, rate))
        if self.memory.host and self.config.use_pool:
            self.pool.prefetch(self.randomness.peek().slots)

    def read(self) -> list[StepResult]:
        """Wait for the iterations that were started since the last call, and return them."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        values = torch.stack([each.numbers for each in unread]).tolist()
        seconds = (time.perf_counter() - self._since) / len(unread)
        self._since = time.perf_counter()
        return [self._book(*pair, seconds) for pair in zip(unread, values, strict=True)]

    def check(self) -> None:
        """Look at what `read` returned: warn, repair or stop a run that has gone wrong.

        Raises:
            CollapsedError: the seed died or states exploded, once more after the last repair.
            DivergedError: `max_skips` iterations in a row were skipped; the same.
        """
        if self.recovery.act(self.iteration, self.processes.first):
            self.skipped_in_a_row = 0
            for listener in self.after_repair:
                listener()

    def fit(
        self,
        *,
        metrics: str | PathLike[str] | None = None,
        progress: bool = True,
        on_step: Callable[[StepResult], None] | None = None,
        run: "RunDirectory | None" = None,
    ) -> list[float]:
        """Train until `config.iterations` iterations are done in all.

        The first Ctrl-C or SIGTERM lets the iteration finish and saves, a second one does not.

        Args:
            metrics: CSV file to write, and beside it the same as JSON lines; continued if
                iterations were done before.
            progress: True shows a bar with loss and remaining time, on a terminal only.
            on_step: called after every iteration; on a GPU, when its numbers are read.
            run: where checkpoints go, every `save_interval` iterations and at the end.

        Returns:
            The losses of this call.

        Raises:
            CheckpointError: three checkpoints in a row, or the last one, could not be written.
            DivergedError: as `step`.
            KeyboardInterrupt: after the iteration in which Ctrl-C came.
            MemoryLimitError: memory ran out.
            StopNow: Ctrl-C or SIGTERM came twice.
            SystemExit: 143, after the iteration in which SIGTERM came.
        """
        from fastnca.training.loop import fit

        return fit(self, None if metrics is None else Path(metrics), progress, on_step, run)

    def copy_weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's `state_dict`."""
        return copy_weights(self.model)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything that `resume` needs into a checkpoint in directory `path`.

        Raises:
            CheckpointError: it could not be written.
            DirectoryInUseError: another trainer works in the directory.
            FileExistsError: the directory belongs to another run.
        """
        from fastnca.training.run import RunDirectory

        run = RunDirectory(Path(path), self.processes)
        with run.hold():
            run.save(self)

    def resume(self, path: str | PathLike[str]) -> None:
        """Continue where `save` left off, bit for bit on the same machine and versions.

        Args:
            path: the directory that `save` wrote; its newest intact checkpoint is taken. What is
                skipped, what starts anew and what is not exact is logged as a warning.

        Raises:
            DirectoryInUseError: another trainer works in the directory.
            FileFormatError: no checkpoint is intact.
            FileNotFoundError: there is no saved run.
            ValueError: the saved run has another model size, target or other options; those in
                `fastnca.training.checkpoint.FREE_OPTIONS` may differ.
        """
        from fastnca.training.run import RunDirectory

        run = RunDirectory(Path(path), self.processes)
        with run.hold():
            for note in run.resume(self).notes:
                _log.warning(note)

    def leave(self) -> None:
        """End the work with other processes; the model stays, training is over."""
        self.iterate.leave()
        self.processes.leave()

    def set_progress(
        self,
        iteration: int,
        skipped: int,
        skipped_in_a_row: int,
        reseeded: int,
        losses: list[float],
    ) -> None:
        """Take over the counters of a saved run."""
        self.iteration = iteration
        self.skipped = skipped
        self.skipped_in_a_row = skipped_in_a_row
        self.recovery.restart(iteration, skipped_in_a_row)
        self.reseeded = reseeded
        self.losses = losses

    def _book(self, unread: Unread, values: list[float], seconds: float) -> StepResult:
        """Count one iteration."""
        result = unread.finish(values, seconds, self.config.batch_size * self.processes.size)
        self.losses.append(result.loss)
        if result.skipped:
            self.skipped += 1
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self.reseeded += result.exploded
        self.recovery.examine(result)
        return result
