"""What a run learns: seeds, targets, the rollout between them, and the loss that compares."""

import math
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from fastnca.losses import Loss, RGBALoss, TextureLoss
from fastnca.losses.weighted import prepared
from fastnca.module import NeuralCA
from fastnca.rule import TUTORIAL, Rule
from fastnca.states import ALPHA, make_seed_state, size_of
from fastnca.training.config import TrainConfig

_WRAPPERS = ("_orig_mod", "module")
"""Where wrappers keep a model: `torch.compile`, and DataParallel, DDP and AveragedModel."""


class Task:
    """Seeds, targets and loss of a run; goal n is to get from seed n to target n.

    Args:
        model: the model.
        target: `[N, 4, H, W]` or `[4, H, W]`; with a loss of the caller's, any `[N, ...]`.
        config: the options.
        loss: as in `fastnca.losses`; what `config` says if None.
        seed_state: `[N, C, H, W]`; what `config` says, one seed, if None.

    Attributes:
        target: `[N, ...]`, or `[1, ...]` if all goals have one target.
        seed_state: `[N, C, H, W]`.
        goals: how many there are, N, that is, how many seeds.
        loss: what is trained on.
        update_rate: probability that a cell updates.
        custom_loss, custom_seed: those of the caller; None where there are none.
        written: how many channels a step writes; the others are the rule's inputs.

    Raises:
        TypeError, ValueError: as `PoolTrainer`.
    """

    def __init__(
        self,
        model: NeuralCA,
        target: Tensor,
        config: TrainConfig,
        loss: Loss | None = None,
        seed_state: Tensor | None = None,
    ) -> None:
        check_model(model)
        like = next(model.parameters())
        self.rule: Rule = getattr(model, "rule", TUTORIAL)
        self.written = model.num_channels - self.rule.inputs
        self.update_rate, self._loss_steps = config.update_rate, config.loss_steps
        self.target = _check_target(target, like, any_shape=loss is not None)
        given_seed = seed_state
        if seed_state is None:
            seed_state = make_seed_state(
                like,
                model.num_channels,
                size_of(self.target),
                start=config.start,
                fill_hidden=config.fill_hidden,
                inputs=self.rule.inputs,
            )
        self.seed_state = _check_seeds(seed_state, model.num_channels, like)
        self.goals = len(self.seed_state)
        self._check_goals(config)
        if loss is not None and not callable(loss):
            raise TypeError(f"loss must be callable, got {type(loss).__name__}")
        if loss is None:
            self.loss: Loss = (
                TextureLoss() if config.loss == "texture" else RGBALoss(config.clamp_loss)
            )
        else:
            self.loss = loss
        self._check_pictures(config)
        self._prepared = prepared(self.loss, self.target)
        self.custom_loss, self.custom_seed = loss, given_seed

    def _check_goals(self, config: TrainConfig) -> None:
        """Check that there is a living seed for each target, and room in the pool."""
        seeds, targets = len(self.seed_state), len(self.target)
        if self.rule.alive_before and not bool(self.lives(self.seed_state).all()):
            raise ValueError(
                "nothing lives in the seed, so nothing can grow from it: give a cell an alpha "
                "above the rule's alive_threshold, or take a rule without the test, alive='none'"
            )
        if seeds == 1 < targets:
            raise ValueError(
                f"{targets} targets from one seed cannot be told apart; give a seed_state "
                "[N, C, H, W] for each, for instance with a class in the inputs of a rule"
            )
        if targets not in (1, seeds):
            raise ValueError(
                f"there are {seeds} seeds and {targets} targets; give as many of both, or one "
                "target"
            )
        if config.use_pool and seeds > config.pool_size:
            raise ValueError(
                f"a pool of {config.pool_size} states has no room for {seeds} targets; raise "
                "pool_size"
            )

    def _check_pictures(self, config: TrainConfig) -> None:
        """Check targets that are compared with states cell by cell."""
        picture = self.target.dim() == 4 and self.target.shape[1] == 4
        if config.outside and not picture:
            raise ValueError(
                f"outside={config.outside} needs targets [N, 4, H, W], got "
                f"{list(self.target.shape)}; set outside=0"
            )
        cells = self.target.shape[-2:], self.seed_state.shape[-2:]
        if (config.outside or isinstance(self.loss, RGBALoss)) and cells[0] != cells[1]:
            raise ValueError(
                f"the target has {cells[0][0]}x{cells[0][1]} cells and the seed "
                f"{cells[1][0]}x{cells[1][1]}; give both the same size"
            )

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may replay the loss."""
        return bool(getattr(self.loss, "capturable", False))

    @property
    def colors(self) -> int:
        """How many channels, the first ones, the loss wants in [0, 1]."""
        return int(getattr(self.loss, "colors", 0))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that `seeds` and `losses` read, where they lie."""
        return [self.seed_state, self.target, self._prepared]

    def goals_of(self, slots: Tensor, first: int) -> Tensor | None:
        """Return the goals `[B]` of `slots` `[B]` of a pool that begins with slot `first`.

        None stands for the only goal there is.
        """
        return None if self.goals == 1 else (slots + first) % self.goals

    def seeds(self, goals: Tensor | None) -> Tensor:
        """Return the seeds of goals `[B]`: `[B, C, H, W]`, or `[1, C, H, W]` for None."""
        return self.seed_state if goals is None else self.seed_state[goals]

    def losses(self, states: list[Tensor], goals: Tensor | None) -> Tensor:
        """Return the loss of each sample, `[B]`.

        Args:
            states: `[B, C, H, W]` each, the last one last.
            goals: `[B]` int64; None for the only one.

        Raises:
            ValueError: the loss did not return one value per sample.
        """
        count, target = len(states[-1]), self._prepared
        if goals is not None and len(target) > 1:
            target = target[goals]
        if len(target) == 1:
            target = target.expand(count, *target.shape[1:])
        values = self.loss(states, target)
        if not isinstance(values, Tensor) or values.shape != (count,):
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"the loss must return one value per sample, [{count}], got {got}")
        return values

    def losses_of(self, state: Tensor, goals: Tensor | None) -> Tensor:
        """Return the loss of `state` `[B, C, H, W]` as if a rollout stood still there: `[B]`."""
        return self.losses([state] * self._loss_steps, goals)

    def lives(self, states: Tensor) -> Tensor:
        """Tell which of `states` `[B, C, H, W]` have a living cell: `[B]` bool."""
        if self.rule.alive == "none":
            return torch.ones(len(states), dtype=torch.bool, device=states.device)
        return (states[:, ALPHA] > self.rule.alive_threshold).flatten(1).any(1)

    def untrained_loss(self) -> float:
        """Return the loss of what has learned nothing: an empty grid, or the seed.

        Infinite where that is no measure: it is not a positive number.
        """
        with torch.no_grad():
            if isinstance(self.loss, RGBALoss):
                return float(self.target.square().mean())
            goals = torch.arange(self.goals, device=self.seed_state.device)
            loss = float(self.losses_of(self.seed_state, goals if self.goals > 1 else None).mean())
        return loss if 0 < loss < math.inf else math.inf


class Rollout(nn.Module):
    """A whole rollout as one forward pass: what `DistributedDataParallel` wraps.

    Args:
        model: the model.
        update_rate: probability that a cell updates.
        loss_steps: how many states of the rollout are returned.
        checkpoint_every: as in `NeuralCA.run_steps`.
    """

    def __init__(
        self, model: NeuralCA, update_rate: float, loss_steps: int = 1, checkpoint_every: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self._rate, self._parts = update_rate, loss_steps
        self._options: dict[str, Any] = {}
        if checkpoint_every > 1:
            self._options["checkpoint_every"] = checkpoint_every

    def forward(
        self, state: Tensor, steps: int, seed: int | Tensor, count: Tensor | None = None
    ) -> list[Tensor]:
        """Roll out, with masks of `seed`.

        Args:
            state: `[B, C, H, W]`.
            steps: number of steps, at least `loss_steps`.
            seed: fixes the masks.
            count: `[]` int64, how many of the steps are taken; with one part only.

        Returns:
            States after 1/k, 2/k, ... of the steps, rounded down, k of them.
        """
        options = self._options if count is None else {**self._options, "count": count}
        states, done = [], 0
        for part in range(1, self._parts + 1):
            last = part * steps // self._parts
            if done:
                options = {**options, "first_step": done}
            state = self.model.run_steps(state, last - done, self._rate, seed=seed, **options)
            states.append(state)
            done = last
        return states


def check_model(model: NeuralCA) -> None:
    """Check that a trainer can train a model.

    Raises:
        TypeError: it wraps a model, or has no `run_steps`.
        ValueError: it is on the meta device, or none of its parameters requires a gradient.
    """
    wrapped = [name for name in _WRAPPERS if isinstance(getattr(model, name, None), nn.Module)]
    if wrapped or not hasattr(model, "run_steps"):
        advice = "make one with fastnca.NeuralCA"
        if wrapped:
            advice = f"pass model.{wrapped[0]}; to train on several devices, pass processes="
        raise TypeError(f"model must be a NeuralCA, got {type(model).__name__}; {advice}")
    parameters = list(model.parameters())
    if any(parameter.is_meta for parameter in parameters):
        raise ValueError(
            "model must hold numbers, got parameters on the meta device; make it on the device "
            "that trains it"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            "model must have a parameter that requires a gradient, got none; call "
            "model.update_net.requires_grad_()"
        )


def _check_target(target: Tensor, like: Tensor, any_shape: bool) -> Tensor:
    """Return `target` with a row per goal, or refuse it."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.dim() == 3 and not any_shape:
        target = target[None]
    picture = target.dim() == 4 and target.shape[1] == 4 and target.numel() > 0
    if not picture and not (any_shape and target.dim() >= 1 and target.numel() > 0):
        raise ValueError(f"target must be RGBA [N, 4, height, width], got {list(target.shape)}")
    if target.dtype != like.dtype and (target.is_floating_point() or not any_shape):
        raise TypeError(f"target is {target.dtype} and the model {like.dtype}; convert one")
    if target.device != like.device:
        raise ValueError(f"target is on {target.device} and the model on {like.device}; move one")
    if not bool(torch.isfinite(target).all()):
        raise ValueError("target holds NaN or infinite values")
    return target.detach()


def _check_seeds(seed_state: Tensor, channels: int, like: Tensor) -> Tensor:
    """Return seeds of the caller's, or refuse them."""
    if not isinstance(seed_state, Tensor):
        raise TypeError(f"seed_state must be a torch.Tensor, got {type(seed_state).__name__}")
    if seed_state.dim() != 4 or seed_state.shape[1] != channels or not seed_state.numel():
        raise ValueError(
            f"seed_state must be [N, {channels}, height, width], got {list(seed_state.shape)}"
        )
    if seed_state.dtype != like.dtype or seed_state.device != like.device:
        raise ValueError(
            f"seed_state is {seed_state.dtype} on {seed_state.device} and the model {like.dtype} "
            f"on {like.device}; convert one"
        )
    if not bool(torch.isfinite(seed_state).all()):
        raise ValueError("seed_state holds NaN or infinite values")
    return seed_state.detach()
