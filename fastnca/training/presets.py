"""Recipes by name: what each changes in the tutorial's."""

from typing import Any

# "Growing Neural Cellular Automata" (Mordvintsev et al., Distill 2020) and its notebook: Adam,
# 2e-3 and a tenth of it after 2000 of 8000 iterations, 64 to 95 steps, batch 8, pool 1024.
_DISTILL: dict[str, Any] = {
    "iterations": 8000,
    "pool_size": 1024,
    "batch_size": 8,
    "replacement": False,
    "reseed": "before",
    "clamp_loss": False,
    "gradient": "normalize",
    "milestones": (2000,),
    "fill_hidden": True,
    "repairs": 3,
}
# Found by the runs in docs/recipe.md, which says why.
_QUICK: dict[str, Any] = {
    "iterations": 1900,
    "pool_size": 64,
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
    "reseed_spare": 1,
    "damage": 2,
    "damage_rate": 0.5,
    "damage_radius": (0.1, 0.45),
    "damage_offset": 0.25,
    "damage_start": 570,
    "clamp_loss": False,
    "outside": 0.4,
    "gradient": "balance",
    "fill_hidden": True,
    "repairs": 3,
}
# Textures, with the loss of `fastnca.losses.TextureLoss`: three of them in docs/textures.md.
_TEXTURE: dict[str, Any] = {
    "iterations": 1100,
    "pool_size": 64,
    "learning_rate": 4e-3,
    "betas": (0.75, 0.9),
    "warm_up": 10,
    "schedule": "linear",
    "hold": 0.3,
    "decay": 0.05,
    "min_steps": 32,
    "max_steps": 80,
    "replacement": False,
    "start": "zeros",
    "loss": "texture",
    "overflow": 1.0,
    "gradient": "normalize",
    "repairs": 3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "quick": _QUICK,
    "growing": {**_DISTILL, "use_pool": False, "reseed": "none"},
    "persistent": _DISTILL,
    "regenerating": {**_DISTILL, "damage": 3},
    "texture": _TEXTURE,
}
"""Recipes by name: the tutorial's, a short one that grows and heals, the three experiments of the
Distill article, and one for textures."""

DEFAULT_PRESET = "quick"
"""Preset of the command line."""
