"""Options of a training run."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from fastnca.masks import check_seed, check_update_rate
from fastnca.training.presets import PRESETS


@dataclass(frozen=True)
class TrainConfig:
    """Options of pool training; the defaults are the tutorial's.

    Attributes:
        iterations: optimiser steps of `PoolTrainer.fit`.
        pool_size: states kept between iterations, shared out among the processes.
        batch_size: states per iteration and process.
        learning_rate: of Adam.
        betas: of Adam, each in [0, 1).
        warm_up: iterations over which the learning rate rises linearly to its value.
        schedule: how the learning rate falls: "milestones" multiplies it by `decay` at each of
            them, "linear" and "cosine" take it to `decay` times its value at the last iteration.
        hold: share of the iterations, in [0, 1), before a linear or cosine fall begins.
        milestones: iterations at which the learning rate is multiplied by `decay`.
        decay: see `schedule`.
        min_steps: fewest steps of a rollout.
        max_steps: exclusive upper limit of the steps of a rollout.
        ramp: iterations over which the steps of a rollout grow, from `ramp_from` times what is
            drawn to all of it, so that patterns learn to stop growing before the edge of the grid.
        ramp_from: see `ramp`, in (0, 1].
        update_rate: probability in [0, 1] that a cell updates in a step.
        use_pool: False starts every rollout from the seed (Distill's "growing" experiment).
        replacement: True draws a batch with replacement, so a state may occur twice.
        start: the seed: "cell", zero but for one cell in the middle, or "zeros", as textures have.
        reseed: which sample becomes the seed again: "after", the worst of the batch when it goes
            back to the pool; "before", the worst of the drawn states before the rollout; "none".
        reseed_count: how many of the drawn states become the seed with reseed="before".
        reseed_spare: how many of those, the ones with the lowest loss, stay in the pool as they
            were drawn, from iteration `damage_start` on; the seed in their place is rolled out
            and not kept. So states of the pool grow older, and patterns learn to last.
        damage: number of drawn states with the lowest loss that lose a random disc before the
            rollout.
        damage_rate: probability in (0, 1] that a state chosen for damage loses its disc.
        damage_radius: smallest and largest radius of a disc, in half-widths of the grid.
        damage_offset: largest distance of a disc's centre from the grid's along each axis, in
            half-widths of the grid, in [0, 1]. A lower one cuts deeper into a pattern.
        damage_start: iterations before the first damage.
        loss: "rgba", the mean squared error of the visible channels, or "texture", the distance of
            `fastnca.losses.TextureLoss`. `PoolTrainer(loss=...)` takes any other.
        loss_steps: states of a rollout that the loss sees, evenly spaced, the last one included;
            gradients are exact through the whole rollout.
        clamp_loss: True compares RGBA clamped to [0, 1] with the target, False as it is.
        outside: weight of a penalty on alpha above 0 where the target is empty, its mean over the
            grid. Within two cells of the target it falls with the square root of the learning
            rate, or it thins out the rim; beyond them it is three times as heavy and stays.
        overflow: weight of a penalty on hidden channels outside of [-1, 1] and RGBA outside of
            [0, 1], the mean of how far they are; without the RGBA loss all are limited by [-1, 1].
        gradient: "clip" limits the norm of all gradients to `clip_norm`, "normalize" divides
            each tensor's gradient by its own norm, "balance" does so to that of the samples that
            start as the seed and to that of the others before their sum, "none" leaves them.
        clip_norm: limit for "clip".
        fill_hidden: True seeds alpha and all hidden channels with 1, as Distill does.
        seed: fixes sampling, step counts, masks and damage; None draws from torch's default
            generator.
        max_skips: skipped iterations in a row, without a finite loss and gradient, that stop it.
        repairs: how often a run whose seed dies, whose states explode, whose gradients vanish or
            whose loss rises goes back to good weights, with half the learning rate; 0 warns only.
        log_interval: iterations between flushes of the metrics; on a GPU, between looks at losses.
        half_pool: True keeps the pool in float16, at half the memory.
        pool_memory: where the pool lies: "device"; "host", pinned memory that is read ahead of
            the device; "auto", the device if it has room.
        micro_batches: parts of a batch that are rolled out one after the other.
        checkpoint_every: the triton backend keeps every k-th state of a rollout for the backward
            pass and recomputes the others.
        save_interval: iterations between two checkpoints of a run that has a directory; 0 saves
            at the end only.
        keep: newest checkpoints that stay, beside the one with the lowest loss.

    Raises:
        TypeError, ValueError: a value has the wrong type, or is out of range.
    """

    iterations: int = 500
    pool_size: int = 256
    batch_size: int = 4
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warm_up: int = 0
    schedule: str = "milestones"
    hold: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    min_steps: int = 64
    max_steps: int = 96
    ramp: int = 0
    ramp_from: float = 0.4
    update_rate: float = 0.5
    use_pool: bool = True
    replacement: bool = True
    start: str = "cell"
    reseed: str = "after"
    reseed_count: int = 1
    reseed_spare: int = 0
    damage: int = 0
    damage_rate: float = 1.0
    damage_radius: tuple[float, float] = (0.1, 0.4)
    damage_offset: float = 0.5
    damage_start: int = 0
    loss: str = "rgba"
    loss_steps: int = 1
    clamp_loss: bool = True
    outside: float = 0.0
    overflow: float = 0.0
    gradient: str = "clip"
    clip_norm: float = 1.0
    fill_hidden: bool = False
    seed: int | None = None
    max_skips: int = 10
    repairs: int = 0
    log_interval: int = 10
    half_pool: bool = False
    pool_memory: str = "auto"
    micro_batches: int = 1
    checkpoint_every: int = 1
    save_interval: int = 250
    keep: int = 2

    def __post_init__(self) -> None:
        for name, least in _MIN.items():
            _check_int(name, getattr(self, name), least)
        for name, (low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high)
        for field in fields(self):
            if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
                value = getattr(self, field.name)
                raise TypeError(f"{field.name} must be true or false, got {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        check_update_rate(self.update_rate)
        self._check_pairs()
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for milestone in self.milestones:
            _check_int("milestones", milestone, 0)
        if self.seed is not None:
            check_seed(self.seed)
        for broken, sentence in self._conflicts():
            if broken:
                raise ValueError(sentence)

    def _check_pairs(self) -> None:
        """Check Adam's coefficients and the radii of discs, and keep them as tuples."""
        for name in ("betas", "damage_radius"):
            pair = tuple(getattr(self, name))
            numbers = (isinstance(x, int | float) and not isinstance(x, bool) for x in pair)
            if len(pair) != 2 or not all(numbers):
                raise TypeError(f"{name} must be two numbers, got {getattr(self, name)!r}")
            object.__setattr__(self, name, pair)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {self.betas}")
        if not 0 < self.damage_radius[0] <= self.damage_radius[1] < math.inf:
            raise ValueError(
                "damage_radius must be a smallest and a largest radius, positive and finite, got "
                f"{self.damage_radius}"
            )

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        """Yield what options demand of each other: whether it is broken, and a sentence."""
        before, batch = self.reseed == "before", self.batch_size
        used = self.damage + self.reseed_count * before
        also = f" and reseed_count={self.reseed_count}" if before else ""
        yield (
            self.max_steps <= self.min_steps,
            "max_steps is exclusive and must be above min_steps, got "
            f"{self.min_steps} and {self.max_steps}",
        )
        yield (
            self.loss_steps > self.min_steps,
            f"loss_steps={self.loss_steps} states need as many steps; raise min_steps, which is "
            f"{self.min_steps}",
        )
        yield (
            self.use_pool and not self.replacement and batch > self.pool_size,
            f"a batch of {batch} cannot be drawn without replacement from a pool of "
            f"{self.pool_size}",
        )
        yield (
            self.micro_batches > batch,
            f"micro_batches={self.micro_batches} parts of a batch of {batch} would be empty; "
            "lower micro_batches",
        )
        yield (
            not self.use_pool and (self.damage > 0 or before),
            "damage and reseed='before' need use_pool=True",
        )
        yield (
            used > batch,
            f"a batch of {batch} has no room for damage={self.damage}{also}; raise batch_size or "
            "lower what is asked for",
        )
        yield (
            not before and self.reseed_count > 1,
            f"reseed_count={self.reseed_count} needs reseed='before'",
        )
        yield (
            self.reseed_spare > (self.reseed_count if before else 0),
            f"reseed_spare={self.reseed_spare} needs reseed='before' and a reseed_count of at "
            "least as many",
        )
        yield (
            self.gradient == "balance" and not (before and self.reseed_count < batch),
            "gradient='balance' needs seeds and others in a batch: reseed='before' and "
            "reseed_count below batch_size",
        )
        yield self.hold == 1, f"hold must be below 1, got {self.hold}"
        yield (
            self.loss != "rgba" and self.outside > 0,
            f"outside={self.outside} is a penalty on alpha and needs loss='rgba'",
        )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return a recipe, with `changes` to single options; `scaled_to` changes its length.

        Args:
            name: one of `PRESETS`.
            **changes: options that differ from the recipe.

        Returns:
            The configuration.

        Raises:
            TypeError: an option has the wrong type or does not exist.
            ValueError: the name is unknown or an option out of range.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(changes.keys() - known):
            raise TypeError(f"unknown training options: {', '.join(unknown)}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-serialisable values."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def scaled_to(self, iterations: int) -> Self:
        """Return the recipe in another number of iterations, all that it counts in proportion."""
        scale = iterations / self.iterations
        counted = {name: round(getattr(self, name) * scale) for name in COUNTED}
        milestones = tuple(round(milestone * scale) for milestone in self.milestones)
        return replace(self, iterations=iterations, milestones=milestones, **counted)


COUNTED = ("warm_up", "ramp", "damage_start")
"""Options that count iterations from the start of a run, beside `milestones`."""

_MIN = {
    **dict.fromkeys(("iterations", "ramp", "warm_up", "reseed_spare", "damage"), 0),
    **dict.fromkeys(("damage_start", "repairs", "save_interval"), 0),
    **dict.fromkeys(("pool_size", "batch_size", "min_steps", "loss_steps", "reseed_count"), 1),
    **dict.fromkeys(("max_skips", "log_interval", "micro_batches", "checkpoint_every", "keep"), 1),
    "max_steps": 2,
}
_RANGES = {  # above the lowest value where it is None
    **dict.fromkeys(("learning_rate", "clip_norm", "decay"), (None, math.inf)),
    **dict.fromkeys(("ramp_from", "damage_rate"), (None, 1.0)),
    **dict.fromkeys(("outside", "overflow"), (0.0, math.inf)),
    **dict.fromkeys(("hold", "damage_offset"), (0.0, 1.0)),
}
_CHOICES = {
    "schedule": ("milestones", "linear", "cosine"),
    "start": ("cell", "zeros"),
    "reseed": ("after", "before", "none"),
    "loss": ("rgba", "texture"),
    "gradient": ("clip", "normalize", "balance", "none"),
    "pool_memory": ("auto", "device", "host"),
}


def _check_int(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def _check_number(name: str, value: object, low: float | None, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (0 <= value < math.inf) or (low is None and value == 0):
        least = "positive" if low is None else "at least 0"
        raise ValueError(f"{name} must be {least} and finite, got {value}")
    if value > high:
        raise ValueError(f"{name} must be at most {high:g}, got {value}")
