"""One training iteration, as operations on tensors of the model's device.

Nothing here reads a value back: which states are reseeded, whether the iteration counts, what is
written to the pool are decided by tensors. What comes from the host is an `IterationDraw`.
"""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastnca.backends.choose import choose_backend
from fastnca.backends.cpp import reserved_threads
from fastnca.distributed import Processes
from fastnca.losses.penalties import OutsidePenalty, OverflowLoss
from fastnca.module import NeuralCA
from fastnca.states import ALPHA
from fastnca.training.config import TrainConfig
from fastnca.training.optimizer import ModelOptimizer
from fastnca.training.pool import SamplePool, keep_last
from fastnca.training.sampling import IterationDraw, cut_discs, to_device_async
from fastnca.training.task import Rollout, Task

LIMIT = 1e4
"""A state with a larger value, or with one that is not a number, goes back to the pool as seed."""

_SEEDS = 2**63 - 1  # seeds of masks have 63 bits


@dataclass(frozen=True)
class Batch:
    """States at the start of a rollout.

    Attributes:
        slots: `[B]` int64 on the device, where they came from; empty without a pool.
        goals: `[B]` int64 on the device, what each is to become; None if there is one goal.
        order: `[B]` int64 on the device, their places in the draw; None if they are in its order.
        drawn: `[B, C, H, W]`, as they were in the pool.
        states: `[B, C, H, W]`, reseeded and damaged as the recipe says.
    """

    slots: Tensor
    goals: Tensor | None
    order: Tensor | None
    drawn: Tensor
    states: Tensor


class Iteration:
    """The iteration of a trainer.

    Args:
        model: the model.
        task: seeds, targets, loss.
        config: the options.
        pool: this process's states.
        optimizer: the optimiser.
        processes: those that train together.
    """

    def __init__(
        self,
        model: NeuralCA,
        task: Task,
        config: TrainConfig,
        pool: SamplePool,
        optimizer: ModelOptimizer,
        processes: Processes,
    ) -> None:
        self._model = model
        self._task = task
        self._config = config
        self._pool = pool
        self._optimizer = optimizer
        self._processes = processes
        self._first_slot = processes.shard(config.pool_size)[0] if config.use_pool else 0
        self._overflow = OverflowLoss(task.colors)
        self._outside = OutsidePenalty(task.target) if config.outside else None
        options = config.update_rate, config.loss_steps, config.checkpoint_every
        self._rollout: nn.Module = Rollout(model, *options)
        if processes.world_size > 1:
            device = task.seed_state.device
            with warnings.catch_warnings():
                # torch 2.13 deprecates the argument and names no substitute for it yet
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._rollout = DistributedDataParallel(
                    self._rollout,
                    device_ids=[device] if device.type == "cuda" else None,
                    broadcast_buffers=False,
                )

    def run(self, draw: IterationDraw, learning_rate: float, stop: bool = False) -> Tensor:
        """Draw, roll out, differentiate, update, write back.

        If loss or gradient is not finite, in any process, neither model, optimiser nor pool is
        changed.

        Args:
            draw: the random choices.
            learning_rate: of this iteration.
            stop: whether this process was asked to stop.

        Returns:
            `[8]` on the device, of the model's dtype, float32 if that is a shorter one: number of
            processes without a finite loss and gradient, mean loss, states that were reseeded
            because of their values, number of processes that were asked to stop, states without
            a living cell after the rollout, states that were the seed before it, those of them
            without a living cell after it, norm of the gradient.
        """
        with reserved_threads() if self._is_compiled() else contextlib.nullcontext():
            return self._compute(draw, learning_rate, stop)

    def close(self) -> None:
        """Drop the DistributedDataParallel wrapper, whose threads end with the process group."""
        self._rollout = nn.Identity()
        gc.collect()  # DistributedDataParallel refers to itself

    def _is_compiled(self) -> bool:
        """Tell whether the `cpp` backend computes the rollout."""
        model, state = self._model, self._task.seed_state[:1]
        return (
            isinstance(model, NeuralCA)
            and choose_backend(model, model.backend, model.precision, state) == "cpp"
        )

    def _compute(
        self, draw: IterationDraw, learning_rate: float | Tensor, stop: bool = False
    ) -> Tensor:
        """Do what `run` says; with a draw on the device, the rate is `[]` there, too."""
        batch = self.prepare(draw)
        seed_states = self._task.seeds(batch.goals)
        self._optimizer.zero_grad()
        states, sample_losses = self._differentiate(batch, draw, learning_rate)
        norm = self._optimizer.clip_or_normalize()
        loss = sample_losses.mean()
        diverged = ~(states.abs().amax(dim=(1, 2, 3)) <= LIMIT)
        weights = torch.stack([p.isfinite().all() for p in self._optimizer.parameters]).all()
        bad = ~(loss.isfinite() & norm.isfinite() & weights)
        asked = torch.full_like(loss, float(stop))
        dtype = torch.promote_types(loss.dtype, torch.float32)  # no float64: Metal has none
        dead = ~diverged & ~self._task.lives(states)
        marks = slice(ALPHA, ALPHA + 1) if self._task.rule.alive != "none" else slice(None)
        seeds = (batch.states[:, marks] == seed_states[:, marks]).flatten(1).all(1)
        counts = (diverged & ~bad).sum(), dead.sum(), seeds.sum(), (seeds & dead).sum()
        parts = bad, loss, counts[0], asked, *counts[1:]
        numbers = self._processes.all_reduce(torch.stack([part.to(dtype) for part in parts]))
        is_finite = numbers[0] == 0
        self._optimizer.step(is_finite, learning_rate)
        self._write_back(draw, batch, states, sample_losses, diverged, is_finite)
        numbers[1] /= self._processes.world_size
        return torch.cat([numbers, norm.to(dtype)[None]])

    @torch.no_grad()
    def prepare(self, draw: IterationDraw) -> Batch:
        """Fetch the states of a draw, and reseed and damage them as the recipe says."""
        config, task = self._config, self._task
        device = task.seed_state.device
        slots = to_device_async(draw.slots, device)
        goals = task.goals_of(slots, self._first_slot)
        if not config.use_pool:
            states = task.seeds(goals)
            states = states if goals is not None else states.repeat(config.batch_size, 1, 1, 1)
            return Batch(slots, goals, None, states, states)
        states = self._pool.gather(draw.slots)
        if config.reseed != "before" and not config.damage:
            return Batch(slots, goals, None, states, states)
        order = task.losses_of(states, goals).argsort(descending=True)
        slots, drawn = slots[order], states[order]
        goals = None if goals is None else goals[order]
        states = drawn.clone()
        if config.reseed == "before":
            states[: config.reseed_count] = task.seeds(goals)[: config.reseed_count]
        if config.damage:
            discs = (to_device_async(each, device) for each in (draw.centers, draw.radii))
            whole = states[-config.damage :, : task.written]
            states[-config.damage :, : task.written] = cut_discs(whole, *discs)
        return Batch(slots, goals, order, drawn, states)

    def _differentiate(
        self, batch: Batch, draw: IterationDraw, learning_rate: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll out and add up the gradients of the mean loss, one piece after the other.

        Returns:
            The states after the rollout `[B, C, H, W]` and their losses `[B]`.
        """
        whole = batch.states
        pieces = list(self._pieces(whole))
        finished, losses = [], []
        for number, (rows, complete) in enumerate(pieces):
            goals = None if batch.goals is None else batch.goals[rows]
            with contextlib.nullcontext() if complete else self._no_sync():
                seed = (draw.seed + number) & _SEEDS
                states = self._rollout(whole[rows], draw.steps, seed, draw.count)
                sample_losses = self._task.losses(states, goals)
                loss = self._add_penalties(sample_losses.mean(), states, goals, learning_rate)
                part = (rows.stop - rows.start) / len(whole)
                (loss if len(pieces) == 1 else loss * part).backward()
            if complete and self._config.gradient == "balance":
                self._optimizer.set_aside()
            finished.append(states[-1].detach())
            losses.append(sample_losses.detach())
        if len(pieces) == 1:
            return finished[0], losses[0]
        return torch.cat(finished), torch.cat(losses)

    def _add_penalties(
        self, loss: Tensor, states: list[Tensor], goals: Tensor | None, rate: float | Tensor
    ) -> Tensor:
        """Return `loss` `[]` with the penalties `outside` and `overflow` of the recipe."""
        penalty = torch.zeros_like(loss)
        if self._outside is not None:
            if not isinstance(rate, Tensor):  # float32, as on the device
                rate = torch.full((), rate, dtype=torch.float32, device=loss.device)
            share = rate / self._config.learning_rate
            penalty = penalty + self._config.outside * self._outside(states[-1], goals, share)
        if self._config.overflow:
            penalty = penalty + self._config.overflow * self._overflow(states).mean()
        return loss + penalty if self._outside or self._config.overflow else loss

    def _pieces(self, states: Tensor) -> Iterator[tuple[slice, bool]]:
        """Yield the rows that are rolled out together, and whether they complete a group.

        The batch is one group; if gradients are balanced, the seeds are one and the others another.
        """
        counts = [len(states)]
        if self._config.gradient == "balance":
            counts = [self._config.reseed_count, len(states) - self._config.reseed_count]
        first = 0
        for count in counts:
            parts = min(self._config.micro_batches, count)
            for number in range(parts):  # as `Tensor.tensor_split`: the longer pieces first
                rows = count // parts + (number < count % parts)
                yield slice(first, first + rows), number + 1 == parts
                first += rows

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Leave the exchange of gradients between processes to the last micro-batch."""
        if isinstance(self._rollout, DistributedDataParallel):
            return self._rollout.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def _write_back(
        self,
        draw: IterationDraw,
        batch: Batch,
        states: Tensor,
        sample_losses: Tensor,
        diverged: Tensor,
        is_finite: Tensor,
    ) -> None:
        """Put the rolled-out states into the pool; the drawn ones if the iteration is skipped."""
        if not self._config.use_pool:
            return
        reseeded = diverged
        if self._config.reseed == "after":
            worst = batch.slots.index_select(0, sample_losses.argmax()[None])
            reseeded = diverged | (batch.slots == worst)
        seeds = self._task.seeds(batch.goals)
        states = torch.where(reseeded[:, None, None, None], seeds, states)
        if count := self._config.reseed_spare:
            spared = slice(self._config.reseed_count - count, self._config.reseed_count)
            spares = to_device_async(draw.spares, states.device)
            states[spared] = torch.where(spares, batch.drawn[spared], states[spared])
        states = torch.where(is_finite, states, batch.drawn)
        if batch.order is not None:
            states = keep_last(batch.slots, states)[batch.order.argsort()]
        self._pool.commit(draw.slots, states)
