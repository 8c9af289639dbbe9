"""Pool training: one iteration, and the loop around it."""

import math
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.masks import draw_seed
from fastnca.module import NeuralCA
from fastnca.states import create_seed, get_visible_state
from fastnca.training.config import TrainConfig
from fastnca.training.damage import damage_discs
from fastnca.training.interrupt import StopRequest, stop_requests
from fastnca.training.log import TrainingLog
from fastnca.training.pool import SamplePool
from fastnca.training.step import StepResult


class DivergedError(RuntimeError):
    """Loss or gradient was not finite in too many iterations in a row.

    The model then holds the last weights that gave a finite loss and gradient.
    """


class PoolTrainer:
    """Train a Neural CA on states that live in a pool.

    Args:
        model: the model; it is put into training mode.
        target: `[1, 4, S, S]` or `[4, S, S]`, RGBA, of the model's dtype and device.
        config: the options; the tutorial's if None.

    Attributes:
        model: the model.
        target: `[1, 4, S, S]`.
        config: the options.
        pool: the states.
        optimizer: Adam over the model's parameters.
        iteration: iterations done.
        skipped: iterations without a finite loss and gradient, all in all.
        losses: loss of every iteration, skipped ones included.

    Raises:
        TypeError: the target is not of the model's dtype.
        ValueError: shape or device of the target does not fit, or it is not finite.
    """

    def __init__(self, model: NeuralCA, target: Tensor, config: TrainConfig | None = None) -> None:
        self.config = config or TrainConfig()
        self.model = model
        self.target = _check_target(target, model.perception.filters)
        self.seed_state = create_seed(
            self.target.shape[-1],
            model.num_channels,
            fill_hidden=self.config.fill_hidden,
            device=self.target.device,
            dtype=self.target.dtype,
        )
        self.pool = SamplePool(
            self.seed_state, self.config.pool_size if self.config.use_pool else 1
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.config.learning_rate)
        self.generator: torch.Generator | None = None
        if self.config.seed is not None:
            self.generator = torch.Generator().manual_seed(self.config.seed)
        self.iteration = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.losses: list[float] = []
        self.good_weights = self.copy_weights()

    def step(self) -> StepResult:
        """Run one iteration: draw, roll out, differentiate, update, write back.

        An iteration whose loss or gradient is not finite changes neither model, optimiser nor
        pool, and is counted.

        Returns:
            What happened.

        Raises:
            DivergedError: this was the last of `max_skips` skipped iterations in a row.
        """
        start = time.perf_counter()
        config = self.config
        self.model.train()
        slots, states = self._draw()
        steps = int(torch.randint(config.min_steps, config.max_steps, (), generator=self.generator))
        states = self.model.run_steps(
            states, steps, config.update_rate, seed=draw_seed(self.generator)
        )
        sample_losses = self._sample_losses(states)
        loss = sample_losses.mean()
        norm = self._differentiate(loss) if math.isfinite(loss.item()) else math.nan
        learning_rate = self._set_learning_rate()
        skipped = not math.isfinite(norm)
        self.iteration += 1
        self.losses.append(loss.item())
        if skipped:
            self.skipped += 1
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self.good_weights = self.copy_weights()
            self.optimizer.step()
            self._write_back(slots, states, sample_losses)
        if self.skipped_in_a_row >= config.max_skips:
            self._stop_diverged()
        seconds = time.perf_counter() - start
        return StepResult(
            self.iteration, self.losses[-1], norm, steps, learning_rate, seconds, skipped
        )

    def fit(
        self,
        *,
        metrics: str | PathLike[str] | None = None,
        progress: bool = True,
        on_step: Callable[[StepResult], None] | None = None,
    ) -> list[float]:
        """Train until `config.iterations` iterations are done in all.

        The first Ctrl-C or SIGTERM lets the iteration finish, a second one does not.

        Args:
            metrics: CSV file to write; continued if iterations were done before.
            progress: True shows a bar with loss and remaining time, on a terminal only.
            on_step: called after every iteration.

        Returns:
            The losses of this call.

        Raises:
            DivergedError: as `step`.
            KeyboardInterrupt: after the iteration in which Ctrl-C came.
            SystemExit: 143, after the iteration in which SIGTERM came.
        """
        first = self.iteration
        path = None if metrics is None else Path(metrics)
        log = TrainingLog(path, first, self.config.iterations, self.config.log_interval, progress)
        with log, stop_requests() as request:
            while self.iteration < self.config.iterations:
                result = self.step()
                log.write(result)
                if on_step is not None:
                    on_step(result)
                _obey(request)
        return self.losses[first:]

    def copy_weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's `state_dict`."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything that `resume` needs into directory `path`.

        Raises:
            OSError: the files cannot be written.
        """
        from fastnca.training.checkpoint import save_trainer

        save_trainer(self, Path(path))

    def resume(self, path: str | PathLike[str]) -> None:
        """Continue where `save` left off, bit for bit on the same machine and versions.

        Args:
            path: the directory that `save` wrote.

        Raises:
            FileFormatError: a file is damaged.
            FileNotFoundError: there is no saved run.
            ValueError: the saved run has another model size, target or other options;
                `iterations` and `log_interval` may differ.
        """
        from fastnca.training.checkpoint import resume_trainer

        resume_trainer(self, Path(path))

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Draw the states of an iteration, reseeded and damaged as the recipe says."""
        config = self.config
        if not config.use_pool:
            states = self.pool.states[:1].repeat(config.batch_size, 1, 1, 1)
            return torch.zeros(0, dtype=torch.int64), states
        slots, states = self.pool.sample(
            config.batch_size, replacement=config.replacement, generator=self.generator
        )
        if config.reseed == "before" or config.damage:
            with torch.no_grad():
                order = self._sample_losses(states).argsort(descending=True)
            slots, states = slots[order.cpu()], states[order]
            if config.reseed == "before":
                states[0] = self.seed_state[0]
            if config.damage:
                best = slice(config.batch_size - config.damage, None)
                states[best] = damage_discs(states[best], self.generator)
        return slots, states

    def _sample_losses(self, states: Tensor) -> Tensor:
        """Return the mean squared error of each state against the target: `[B]`."""
        rgba = get_visible_state(states) if self.config.clamp_loss else states[:, :4]
        target = self.target.expand(len(states), -1, -1, -1)
        return F.mse_loss(rgba, target, reduction="none").mean(dim=(1, 2, 3))

    def _differentiate(self, loss: Tensor) -> float:
        """Compute and treat the gradients; return their norm before treatment."""
        self.optimizer.zero_grad()
        loss.backward()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.config.clip_norm if self.config.gradient == "clip" else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
        if self.config.gradient == "normalize":
            for parameter in trained:
                gradient = parameter.grad
                if gradient is not None:
                    gradient /= gradient.norm() + 1e-8
        return norm

    def _write_back(self, slots: Tensor, states: Tensor, sample_losses: Tensor) -> None:
        """Put the rolled-out states into the pool."""
        if not self.config.use_pool:
            return
        self.pool.commit(slots, states)
        if self.config.reseed == "after":
            worst = slots[int(sample_losses.argmax())]
            self.pool.states[worst] = self.seed_state[0]

    def _set_learning_rate(self) -> float:
        """Set the learning rate of this iteration."""
        passed = sum(self.iteration >= milestone for milestone in self.config.milestones)
        rate = self.config.learning_rate * self.config.decay**passed
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _stop_diverged(self) -> None:
        """Put the last good weights back and raise `DivergedError`."""
        self.model.load_state_dict(self.good_weights)
        raise DivergedError(
            f"loss or gradient was not finite in {self.skipped_in_a_row} iterations in a row, up "
            f"to iteration {self.iteration}; the model is back at its last good weights. Lower "
            "learning_rate, or use gradient='normalize'"
        )


def _obey(request: StopRequest) -> None:
    """Leave the loop if the process was asked to stop."""
    if request.signal_number is None:
        return
    if request.by_keyboard:
        raise KeyboardInterrupt
    raise SystemExit(128 + request.signal_number)


def _check_target(target: Tensor, like: Tensor) -> Tensor:
    """Return `target` as `[1, 4, S, S]`; see `PoolTrainer` for what is refused."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.dim() == 3:
        target = target[None]
    square = target.dim() == 4 and target.shape[2] == target.shape[3] > 0
    if not square or tuple(target.shape[:2]) != (1, 4):
        raise ValueError(f"target must be RGBA [1, 4, size, size], got {list(target.shape)}")
    if target.dtype != like.dtype:
        raise TypeError(f"target is {target.dtype} and the model {like.dtype}; convert one")
    if target.device != like.device:
        raise ValueError(f"target is on {target.device} and the model on {like.device}; move one")
    if not bool(torch.isfinite(target).all()):
        raise ValueError("target holds NaN or infinite values")
    return target.detach()
