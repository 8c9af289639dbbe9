"""How a trained texture compares with its target, on grids of several sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.losses import TextureLoss
from fastnca.module import NeuralCA
from fastnca.report.measure import EXPLODED, advance


@dataclass(frozen=True)
class TextureQuality:
    """Rollouts of a texture, after some steps.

    Attributes:
        steps: how many.
        losses: mean texture loss of the rollouts on each grid; NaN if one exploded.
        largest: largest absolute value of a state, of all rollouts.
        exploded: share of rollouts with a value that is not finite or beyond ±`EXPLODED`.
        states: `[1, C, H, W]`, a sample of each grid.
    """

    steps: int
    losses: tuple[float, ...]
    largest: float
    exploded: float
    states: tuple[Tensor, ...]


def measure_texture(
    model: NeuralCA,
    seed_states: Sequence[Tensor],
    target: Tensor,
    steps: Sequence[int],
    *,
    runs: int = 2,
    update_rate: float = 0.5,
) -> list[TextureQuality]:
    """Grow a texture and compare it with its target.

    Args:
        model: the model; its mode is left alone.
        seed_states: `[1, C, H, W]`, a grid each.
        target: `[1, 4, H, W]`, of any size.
        steps: when to look.
        runs: rollouts of each grid, each with masks of its own.
        update_rate: probability that a cell updates.

    Returns:
        One entry per number of steps, in ascending order.
    """
    loss = TextureLoss()
    with torch.no_grad():
        wanted = loss.prepare(target).expand(runs, -1, -1, -1)
    states = [seed.repeat(runs, 1, 1, 1) for seed in seed_states]
    results, done = [], 0
    for moment in sorted(set(steps)):
        states = [advance(model, each, done, moment - done, update_rate) for each in states]
        wild = [~(each.abs().amax(dim=(1, 2, 3)) <= EXPLODED) for each in states]
        with torch.no_grad():
            means = [float(loss([each], wanted).mean()) for each in states]
        pairs = zip(means, wild, strict=True)
        losses = tuple(math.nan if bool(each.any()) else mean for mean, each in pairs)
        largest = max(float(each.abs().max()) for each in states)
        share = float(torch.cat(wild).float().mean())
        samples = tuple(each[:1] for each in states)
        results.append(TextureQuality(moment, losses, largest, share, samples))
        done = moment
    return results


def untrained_loss(seed_state: Tensor, target: Tensor) -> float:
    """Return the texture loss of a model that has learned nothing: that of its seed."""
    loss = TextureLoss()
    with torch.no_grad():
        return float(loss([seed_state], loss.prepare(target)).mean())
