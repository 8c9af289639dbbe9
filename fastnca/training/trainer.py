"""The pool trainer: iterations, the loop around them, and their state."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from fastnca.distributed import Processes
from fastnca.losses import Loss
from fastnca.memory import Estimate
from fastnca.module import NeuralCA
from fastnca.storage.runs import RunDirectory
from fastnca.storage.training_state import State
from fastnca.training.callbacks import (
    Callback,
    FunctionCallback,
    PendingStep,
    StepResult,
    TrainingLog,
)
from fastnca.training.config import TrainConfig
from fastnca.training.facts import check_facts, describe_run
from fastnca.training.graphs import GraphedIteration
from fastnca.training.loop import fit
from fastnca.training.optimizer import ModelOptimizer, learning_rate
from fastnca.training.pool import HostPool, SamplePool, shard_slots
from fastnca.training.recovery import Recovery
from fastnca.training.sampling import IterationSampler, adapt
from fastnca.training.task import Task

_MEMORY = ("batch_size", "update_rate", "micro_batches", "checkpoint_every", "half_pool")

_Callback = Callback | Callable[[StepResult], object]


class PoolTrainer:
    """Train a Neural CA on states that live in a pool.

    Args:
        model: the model; it is put into training mode.
        target: `[N, 4, H, W]` or `[4, H, W]`, RGBA, of the model's dtype and device. Slot i of
            the pool has target i mod N.
        config: the options; the tutorial's if None.
        processes: those that train together; this one alone if None.
        loss: `loss(states, target)` as in `fastnca.losses`, for targets `[N, ...]` of any kind;
            what `config` says if None.
        seed_state: `[N, C, H, W]`, where rollouts start; what `config` says (`start`,
            `fill_hidden`) if None. Its last channels may hold the inputs of a rule.
        callbacks: `Callback`s, or functions of a `StepResult`.

    Attributes:
        model, config, processes: as above.
        task: seeds, targets and loss.
        target, seed_state: `[N, 4, H, W]` and `[N, C, H, W]`.
        pool: the states of this process.
        iteration, skipped, reseeded: iterations done; those without a finite loss and gradient;
            states that became the seed again because of their values.
        losses: loss of every iteration, skipped ones included, averaged over the processes.

    Raises:
        MemoryLimitError: the pool fits no memory.
        TypeError, ValueError: the model cannot be trained, or what is given does not fit it.
    """

    def __init__(
        self,
        model: NeuralCA,
        target: Tensor,
        config: TrainConfig | None = None,
        processes: Processes | None = None,
        *,
        loss: Loss | None = None,
        seed_state: Tensor | None = None,
        callbacks: Iterable[_Callback] = (),
    ) -> None:
        self.config = config = config or TrainConfig()
        self.model = model
        self.processes = processes or Processes()
        self.task = Task(model, target, config, loss, seed_state)
        self.target, self.seed_state = self.task.target, self.task.seed_state
        first, slots = shard_slots(config, self.processes)
        self.memory = Estimate.of(
            model,
            self.seed_state,
            slots,
            steps=config.max_steps - 1,
            pool_memory=config.pool_memory,
            **{name: getattr(config, name) for name in _MEMORY},
        )
        kind = HostPool if self.memory.host else SamplePool
        dtype = torch.float16 if config.half_pool else None
        self.pool = kind(self.task.seed_state, slots, dtype=dtype, first=first)
        drawn = slots if config.use_pool else self.task.goals
        ranks = self.processes.rank, self.processes.world_size
        self.sampler = IterationSampler(config, drawn, *ranks)
        self.optimizer = ModelOptimizer(model, config)
        parts = self.task, config, self.pool, self.optimizer, self.processes
        self.iterate = GraphedIteration(model, *parts)
        self.recovery = Recovery(model, self.optimizer, self.pool, self.task, config, first)
        self.iteration = self.skipped = self.skipped_in_a_row = self.reseeded = 0
        self.losses: list[float] = []
        self.run_id = secrets.token_hex(8)
        self._pending: list[PendingStep] = []
        self._results: list[StepResult] = []
        self._since = 0.0
        self.callback_error: Exception | None = None
        self.callbacks: list[Callback] = []
        for each in callbacks:
            self.add_callback(each)

    def step(self) -> StepResult:
        """Run one iteration: draw, roll out, differentiate, update, write back.

        An iteration whose loss or gradient is not finite changes neither model, optimiser nor
        pool, and is counted.

        Raises:
            DivergedError: this was the last of `max_skips` skipped iterations in a row.
        """
        self.start()
        result = self.collect()[-1]
        self.check()
        return result

    def start(self, stop: bool = False) -> None:
        """Start an iteration without waiting for the device; `stop` asks all processes to end."""
        if not self._pending:
            self._since = time.perf_counter()
        self.model.train()
        draw = adapt(self.sampler.next(), self.config, self.iteration)
        rate = learning_rate(self.config, self.iteration) * self.recovery.rate
        numbers = self.iterate.run(draw, rate, stop)
        self.iteration += 1
        self._pending.append(PendingStep(numbers, self.iteration, draw.steps, rate))
        self.notify("on_update", numbers)
        if self.memory.host and self.config.use_pool:
            self.pool.prefetch(self.sampler.peek().slots)

    def collect(self) -> list[StepResult]:
        """Wait for the iterations that were started since the last call, and return them."""
        self._wait()
        results, self._results = self._results, []
        for result in results:
            self.notify("on_step_end", result)
        return results

    def check(self) -> None:
        """Warn, go back to good weights or stop if the collected results show a fault.

        Raises:
            CollapsedError: the seed died or states exploded, once more after the last repair.
            DivergedError: `max_skips` iterations in a row were skipped; the same.
        """
        if self.recovery.act(self.iteration, self.processes.is_main):
            self.skipped_in_a_row = 0
            self.notify("on_rollback")

    def fit(
        self,
        *,
        metrics: str | PathLike[str] | None = None,
        progress: bool = True,
        callbacks: Iterable[_Callback] = (),
        run: RunDirectory | None = None,
    ) -> list[float]:
        """Train until `config.iterations` iterations are done in all; return this call's losses.

        The first Ctrl-C or SIGTERM lets the iteration finish and saves, a second one does not.

        Args:
            metrics: CSV file to write or continue, and JSON lines beside it.
            progress: True shows a bar with loss and remaining time, on a terminal only.
            callbacks: more of them, for this call.
            run: where checkpoints go, every `save_interval` iterations and at the end.

        Raises:
            CheckpointError: three checkpoints in a row, or the last one, could not be written.
            DivergedError, CollapsedError: as `step` and `check`.
            KeyboardInterrupt, SystemExit: after the iteration in which Ctrl-C or SIGTERM came.
            MemoryLimitError: memory ran out.
        """
        first = self.iteration
        fit(self, [TrainingLog(metrics, progress), *callbacks], run)
        return self.losses[first:]

    def add_callback(self, callback: _Callback) -> Callback:
        """Add a callback, before `resume` if checkpoints hold its state, and return it."""
        added = callback if isinstance(callback, Callback) else FunctionCallback(callback)
        added.on_attach(self)
        self.callbacks.append(added)
        return added

    def state_dict(self) -> State:
        """Return everything that the run's future depends on, in this process, without copies."""
        self._wait()
        callbacks = {each.name: each.state_dict() for each in self.callbacks if each.name}
        if self.config.repairs:
            callbacks["recovery"] = self.recovery.state_dict()
        return {
            "facts": describe_run(self.model, self.task, self.config),
            "run_id": self.run_id,
            "iteration": self.iteration,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "reseeded": self.reseeded,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pool": self.pool.states,
            "generators": self.sampler.state(),
            "callbacks": callbacks,
        }

    def load_state_dict(self, state_dict: State) -> None:
        """Continue from what `state_dict` returned, of a trainer with the same arguments.

        Raises:
            ValueError: the run has another model size, target, loss or other options than this
                one; those in `fastnca.training.facts.FREE_OPTIONS` may differ.
        """
        state = state_dict
        self.check_facts(state["facts"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.run_id, self.losses = state["run_id"], state["losses"].tolist()
        self.iteration, self.skipped = state["iteration"], state["skipped"]
        self.skipped_in_a_row, self.reseeded = state["skipped_in_a_row"], state["reseeded"]
        if (states := self.pool.states) is not state["pool"]:
            states.copy_(state["pool"])
        if state["generators"]:
            self.sampler.load_state(state["generators"])
        else:
            self.sampler.reseed(self.iteration)
        self._pending, self._results = [], []
        self.recovery.restart(self.iteration, self.skipped_in_a_row)
        if self.config.repairs and "recovery" in state["callbacks"]:
            self.recovery.load_state_dict(state["callbacks"]["recovery"])
        for callback in self.callbacks:
            callback.on_attach(self)
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])

    def check_facts(self, saved: Mapping[str, Any], where: str = "") -> None:
        """Refuse the facts of another run, with a ValueError that begins with `where`."""
        check_facts(saved, describe_run(self.model, self.task, self.config), where)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state dict into a checkpoint in directory `path`; see `RunDirectory`."""
        run = RunDirectory(path, self.processes)
        with run.hold():
            run.save(self)

    def resume(self, path: str | PathLike[str]) -> None:
        """Continue from the newest intact checkpoint in directory `path`.

        The run goes on bit for bit on the same machine and versions; what is skipped or not exact
        is logged as a warning.
        """
        run = RunDirectory(path, self.processes)
        with run.hold():
            run.resume(self).log()

    def close(self) -> None:
        """End the work with other processes; the model stays, training is over."""
        self.iterate.close()
        self.processes.close()

    def notify(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback; the error of one names it."""
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(self, *arguments)
            except Exception as error:
                name = type(callback).__name__
                error.add_note(f"raised by {hook} of {name}, after iteration {self.iteration}")
                self.callback_error = error
                raise

    def _wait(self) -> None:
        """Wait for the iterations that were started, and count them."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = torch.stack([each.numbers for each in pending]).tolist()
        seconds = (time.perf_counter() - self._since) / len(pending)
        self._since = time.perf_counter()
        states = self.config.batch_size * self.processes.world_size
        for each, value in zip(pending, values, strict=True):
            result = each.finish(value, seconds, states)
            self.losses.append(result.loss)
            self.skipped += result.skipped
            self.skipped_in_a_row = (self.skipped_in_a_row + 1) * result.skipped
            self.reseeded += 0 if result.skipped else result.exploded
            self.recovery.examine(result)
            self._results.append(result)
