"""One training iteration, as operations on tensors of the model's device.

Nothing here reads a value back: which states are reseeded, whether the iteration counts, what is
written to the pool are decided by tensors. What comes from the host is a `Draw`.
"""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastnca.backends.choose import choose_backend
from fastnca.backends.cpp import reserved_threads
from fastnca.module import NeuralCA
from fastnca.states import ALPHA, get_visible_state, lives
from fastnca.training.config import TrainConfig
from fastnca.training.damage import cut_discs
from fastnca.training.draw import Draw
from fastnca.training.penalty import Penalty
from fastnca.training.pool import SamplePool, keep_last, send
from fastnca.training.processes import Processes
from fastnca.training.update import Update

LIMIT = 1e4
"""A state with a larger value, or with one that is not a number, goes back to the pool as seed."""

_SEEDS = 2**63 - 1  # seeds of masks have 63 bits


class Rollout(nn.Module):
    """A whole rollout as one forward pass: what `DistributedDataParallel` wraps.

    Args:
        model: the model.
        config: the options.
    """

    def __init__(self, model: NeuralCA, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self._rate = config.update_rate
        self._options: dict[str, Any] = {}
        if config.checkpoint_every > 1:
            self._options["checkpoint_every"] = config.checkpoint_every

    def forward(
        self, states: Tensor, steps: int, seed: int | Tensor, count: Tensor | None = None
    ) -> Tensor:
        """Roll `[B, C, H, W]` out by `steps` steps, or `count` of them, with masks of `seed`."""
        options = self._options if count is None else {**self._options, "count": count}
        return self.model.run_steps(states, steps, self._rate, seed=seed, **options)


@dataclass(frozen=True)
class Batch:
    """States at the start of a rollout.

    Attributes:
        slots: `[B]` int64 on the device, where they came from; empty without a pool.
        order: `[B]` int64 on the device, their places in the draw; None if they are in its order.
        drawn: `[B, C, H, W]`, as they were in the pool.
        states: `[B, C, H, W]`, reseeded and damaged as the recipe says.
    """

    slots: Tensor
    order: Tensor | None
    drawn: Tensor
    states: Tensor


class Iteration:
    """The iteration of a trainer.

    Args:
        model: the model.
        target: `[1, 4, S, S]`.
        seed_state: `[1, C, S, S]`.
        config: the options.
        pool: this process's states.
        update: the optimiser.
        processes: those that train together.
    """

    def __init__(
        self,
        model: NeuralCA,
        target: Tensor,
        seed_state: Tensor,
        config: TrainConfig,
        pool: SamplePool,
        update: Update,
        processes: Processes,
    ) -> None:
        self._model = model
        self._target = target
        self._seed_state = seed_state
        self._config = config
        self._pool = pool
        self._update = update
        self._processes = processes
        self._penalty = Penalty(target, config)
        self._rollout: nn.Module = Rollout(model, config)
        if processes.size > 1:
            ids = [target.device] if target.is_cuda else None
            with warnings.catch_warnings():
                # torch 2.13 deprecates the argument and names no substitute for it yet
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self._rollout = DistributedDataParallel(
                    self._rollout, device_ids=ids, broadcast_buffers=False
                )

    def run(self, draw: Draw, learning_rate: float, stop: bool = False) -> Tensor:
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

    def leave(self) -> None:
        """Let go of what holds the process group, so that ending it ends its threads."""
        self._rollout = nn.Identity()
        gc.collect()  # DistributedDataParallel refers to itself

    def _is_compiled(self) -> bool:
        """Tell whether the `cpp` backend computes the rollout."""
        model = self._model
        return (
            isinstance(model, NeuralCA)
            and choose_backend(model, model.backend, model.precision, self._seed_state) == "cpp"
        )

    def _compute(self, draw: Draw, learning_rate: float | Tensor, stop: bool = False) -> Tensor:
        """Do what `run` says; with a draw on the device, the rate is `[]` there, too."""
        batch = self.prepare(draw)
        self._update.clear()
        states, sample_losses = self._differentiate(batch.states, draw, learning_rate)
        norm = self._update.treat()
        loss = sample_losses.mean()
        wild = ~(states.abs().amax(dim=(1, 2, 3)) <= LIMIT)
        bad = ~(loss.isfinite() & norm.isfinite())
        asked = torch.full_like(loss, float(stop))
        dtype = torch.promote_types(loss.dtype, torch.float32)  # no float64: Metal has none
        dead = ~wild & ~lives(states)
        seeds = (batch.states[:, ALPHA] == self._seed_state[:, ALPHA]).flatten(1).all(1)
        counts = (wild & ~bad).sum(), dead.sum(), seeds.sum(), (seeds & dead).sum()
        parts = bad, loss, counts[0], asked, *counts[1:]
        numbers = self._processes.sum(torch.stack([part.to(dtype) for part in parts]))
        fine = numbers[0] == 0
        self._update.apply(fine, learning_rate)
        self._write_back(draw, batch, states, sample_losses, wild, fine)
        numbers[1] /= self._processes.size
        return torch.cat([numbers, norm.to(dtype)[None]])

    @torch.no_grad()
    def prepare(self, draw: Draw) -> Batch:
        """Fetch the states of a draw, and reseed and damage them as the recipe says."""
        config = self._config
        if not config.use_pool:
            states = self._seed_state.repeat(config.batch_size, 1, 1, 1)
            return Batch(torch.zeros(0, dtype=torch.int64), None, states, states)
        states = self._pool.gather(draw.slots)
        slots = send(draw.slots, states.device)
        if config.reseed != "before" and not config.damage:
            return Batch(slots, None, states, states)
        order = self._sample_losses(states).argsort(descending=True)
        slots, drawn = slots[order], states[order]
        states = drawn.clone()
        if config.reseed == "before":
            states[: config.reseed_count] = self._seed_state
        if config.damage:
            discs = send(draw.centers, states.device), send(draw.radii, states.device)
            states[-config.damage :] = cut_discs(states[-config.damage :], *discs)
        return Batch(slots, order, drawn, states)

    def _differentiate(
        self, states: Tensor, draw: Draw, learning_rate: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll out and add up the gradients of the mean loss, one piece after the other.

        Args:
            states: `[B, C, H, W]`.
            draw: the random choices.
            learning_rate: of this iteration.

        Returns:
            The states after the rollout `[B, C, H, W]` and their losses `[B]`.
        """
        pieces = list(self._pieces(states))
        finished, losses = [], []
        for number, (piece, complete) in enumerate(pieces):
            with contextlib.nullcontext() if complete else self._no_sync():
                end = self._rollout(piece, draw.steps, (draw.seed + number) & _SEEDS, draw.count)
                sample_losses = self._sample_losses(end)
                loss = sample_losses.mean()
                objective = loss + self._penalty(end, learning_rate) if self._penalty.used else loss
                part = len(piece) / len(states)
                (objective if len(pieces) == 1 else objective * part).backward()
            if complete and self._config.gradient == "balance":
                self._update.set_aside()
            finished.append(end.detach())
            losses.append(sample_losses.detach())
        if len(pieces) == 1:
            return finished[0], losses[0]
        return torch.cat(finished), torch.cat(losses)

    def _pieces(self, states: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield what is rolled out together, and whether it completes a group.

        The batch is one group; if gradients are balanced, the seeds are one and the others another.
        """
        counts = [len(states)]
        if self._config.gradient == "balance":
            counts = [self._config.reseed_count, len(states) - self._config.reseed_count]
        for group in states.split(counts):
            pieces = group.tensor_split(min(self._config.micro_batches, len(group)))
            for number, piece in enumerate(pieces, 1):
                yield piece, number == len(pieces)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Leave the exchange of gradients between processes to the last micro-batch."""
        if isinstance(self._rollout, DistributedDataParallel):
            return self._rollout.no_sync()
        return contextlib.nullcontext()

    def _sample_losses(self, states: Tensor) -> Tensor:
        """Return the mean squared error of each state against the target: `[B]`."""
        rgba = get_visible_state(states) if self._config.clamp_loss else states[:, :4]
        target = self._target.expand(len(states), -1, -1, -1)
        return F.mse_loss(rgba, target, reduction="none").mean(dim=(1, 2, 3))

    @torch.no_grad()
    def _write_back(
        self,
        draw: Draw,
        batch: Batch,
        states: Tensor,
        sample_losses: Tensor,
        wild: Tensor,
        fine: Tensor,
    ) -> None:
        """Put the rolled-out states into the pool; the drawn ones if the iteration is void."""
        if not self._config.use_pool:
            return
        reseeded = wild
        if self._config.reseed == "after":
            worst = batch.slots.index_select(0, sample_losses.argmax()[None])
            reseeded = wild | (batch.slots == worst)
        states = torch.where(reseeded[:, None, None, None], self._seed_state, states)
        if count := self._config.reseed_spare:
            spared = slice(self._config.reseed_count - count, self._config.reseed_count)
            spares = send(draw.spares, states.device)
            states[spared] = torch.where(spares, batch.drawn[spared], states[spared])
        states = torch.where(fine, states, batch.drawn)
        if batch.order is not None:
            states = keep_last(batch.slots, states)[batch.order.argsort()]
        self._pool.commit(draw.slots, states)
