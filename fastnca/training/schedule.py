"""What changes in the course of a run: learning rate, steps, damage."""

import math
from dataclasses import replace

import torch

from fastnca.training.config import TrainConfig
from fastnca.training.draw import Draw

COUNTED = ("warm_up", "ramp", "damage_start")
"""Options that count iterations from the start of a run, beside `milestones`."""


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Return the learning rate of an iteration.

    Args:
        config: the options.
        iteration: iterations done before it.

    Returns:
        The rate that the recipe asks for, with its warm-up.
    """
    rate = config.learning_rate
    if config.schedule == "milestones":
        rate *= config.decay ** sum(iteration >= milestone for milestone in config.milestones)
    else:
        start = config.hold * config.iterations
        left = 1 - min(1.0, max(0.0, iteration - start) / max(1.0, config.iterations - start))
        if config.schedule == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        rate *= config.decay + (1 - config.decay) * left
    return rate * min(1.0, (iteration + 1) / max(1, config.warm_up))


def in_proportion(config: TrainConfig, iterations: int) -> TrainConfig:
    """Return a recipe in another number of iterations.

    Args:
        config: the recipe, with at least one iteration.
        iterations: how many the run has instead.

    Returns:
        The recipe with `milestones` and the options `COUNTED` at the same shares of the run.
    """
    scale = iterations / config.iterations
    counted = {name: round(getattr(config, name) * scale) for name in COUNTED}
    milestones = tuple(round(milestone * scale) for milestone in config.milestones)
    return replace(config, iterations=iterations, milestones=milestones, **counted)


def adapt(draw: Draw, config: TrainConfig, iteration: int) -> Draw:
    """Return a draw with the steps, the damage and the spared states of that iteration.

    Args:
        draw: what was drawn.
        config: the options.
        iteration: iterations done before.

    Returns:
        A draw with the same slots and seed; discs of radius 0 cover no cell.
    """
    if iteration < config.ramp:
        share = config.ramp_from + (1 - config.ramp_from) * iteration / config.ramp
        draw = replace(draw, steps=max(1, round(draw.steps * share)))
    if iteration < config.damage_start:
        draw = replace(
            draw, radii=torch.zeros_like(draw.radii), spares=torch.zeros_like(draw.spares)
        )
    return draw
