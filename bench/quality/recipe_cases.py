"""Recipes that `python -m bench recipes` compares, as data."""

from typing import Any

from fastnca.training import TrainConfig

BASE: dict[str, Any] = {
    "iterations": 1900,
    "pool_size": 64,
    "batch_size": 4,
    "learning_rate": 4e-3,
    "betas": (0.75, 0.9),
    "schedule": "linear",
    "hold": 0.3,
    "decay": 0.02,
    "min_steps": 48,
    "max_steps": 104,
    "ramp": 950,
    "ramp_from": 0.33,
    "replacement": False,
    "reseed": "before",
    "reseed_count": 2,
    "reseed_spare": 0,
    "damage": 2,
    "damage_rate": 0.5,
    "damage_radius": (0.1, 0.45),
    "damage_offset": 0.25,
    "damage_start": 570,
    "clamp_loss": False,
    "outside": 0.4,
    "overflow": 0.0,
    "gradient": "balance",
    "fill_hidden": True,
    "repairs": 3,
}
"""The recipe that all others change: the preset `quick` as it was at commit 90cc276. It is written
out, so that rows of the study keep their meaning when the preset changes."""

_TUTORIAL: dict[str, Any] = {
    name: getattr(TrainConfig(), name)
    for name in BASE
    if name not in {"iterations", "pool_size", "batch_size"}
}

RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "tutorial": _TUTORIAL,
    "regenerating": {
        **_TUTORIAL,
        "milestones": (500,),
        "decay": 0.1,
        "replacement": False,
        "reseed": "before",
        "reseed_count": 1,
        "damage": 1,
        "damage_start": 0,
        "clamp_loss": False,
        "gradient": "normalize",
        "fill_hidden": True,
    },
    "fast-start": {
        "learning_rate": 8e-3,
        "schedule": "milestones",
        "milestones": (330, 1080, 1580),
        "decay": 0.3,
        "min_steps": 40,
        "max_steps": 80,
        "ramp_from": 0.4,
    },
    "steps-40-80": {"min_steps": 40, "max_steps": 80},
    "steps-64-96": {"min_steps": 64, "max_steps": 96},
    "no-ramp": {"ramp": 0},
    "no-outside": {"outside": 0.0},
    "third-outside": {"outside": 0.1},
    "no-ramp-no-outside": {"ramp": 0, "outside": 0.0},
    "overflow": {"overflow": 0.1},
    "clamped-loss": {"clamp_loss": True},
    "clip": {"gradient": "clip", "clip_norm": 0.1},
    "half-rate": {"learning_rate": 2e-3},
    "double-rate": {"learning_rate": 8e-3},
    "constant-rate": {"decay": 1.0},
    "linear-from-start": {"hold": 0.0},
    "linear-from-half": {"hold": 0.5},
    "cosine": {"schedule": "cosine", "hold": 0.0},
    "warm-up": {"warm_up": 150},
    "betas-0.9-0.999": {"betas": (0.9, 0.999)},
    "betas-0.9-0.95": {"betas": (0.9, 0.95)},
    "batch-2": {"batch_size": 2, "reseed_count": 1, "damage": 1, "learning_rate": 3e-3},
    "batch-8": {"batch_size": 8, "reseed_count": 4, "damage": 4},
    "pool-16": {"pool_size": 16},
    "pool-256": {"pool_size": 256},
    "with-replacement": {"replacement": True},
    "one-seed": {"reseed_count": 1},
    "normalize": {"gradient": "normalize"},
    "one-seed-normalize": {"reseed_count": 1, "gradient": "normalize"},
    "reseed-after": {"reseed": "after", "reseed_count": 1, "gradient": "normalize"},
    "damage-from-start": {"damage_start": 0},
    "damage-late": {"damage_start": 1140},
    "no-damage": {"damage": 0},
    "one-damaged": {"damage": 1, "damage_rate": 1.0},
    "two-damaged": {"damage_rate": 1.0},
    "former-damage": {"damage_rate": 0.75, "damage_radius": (0.1, 0.4), "damage_offset": 0.5},
    "far-discs": {"damage_offset": 0.5},
    "smaller-discs": {"damage_radius": (0.1, 0.4)},
    "more-damage": {"damage_rate": 0.75},
    "larger-discs": {"damage_radius": (0.1, 0.5)},
    "spare": {"reseed_spare": 1},
    "spare-larger-discs": {"reseed_spare": 1, "damage_radius": (0.1, 0.5)},
    "spare-early": {"reseed_spare": 1, "damage_start": 190},
    "alpha-seed": {"fill_hidden": False},
    "no-averaging": {"average": 0.0},
}
"""Recipes by name: what each changes in `BASE`. "average" is no option of `TrainConfig` but the
decay of `EmaTracker`."""
