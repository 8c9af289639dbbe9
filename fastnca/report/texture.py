"""How a trained texture compares with its target, on its own grid and on a larger one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.losses import TextureLoss
from fastnca.module import NeuralCA
from fastnca.report.measure import EXPLODED, advance

LARGER = 2
"""How many times as high and wide the larger grid is."""


@dataclass(frozen=True)
class TextureQuality:
    """Rollouts of a texture, after some steps.

    Attributes:
        steps: how many.
        loss: mean texture loss of the rollouts on the grid of the target; NaN if one exploded.
        larger: the same on a grid `LARGER` times as high and wide.
        largest: largest absolute value of a state, of all rollouts.
        exploded: share of rollouts with a value that is not finite or beyond ±`EXPLODED`.
        states: `[2, C, H, W]` and `[1, C, LARGER * H, LARGER * W]`, samples of both grids.
    """

    steps: int
    loss: float
    larger: float
    largest: float
    exploded: float
    states: tuple[Tensor, Tensor]


def measure_texture(
    model: NeuralCA,
    seed_state: Tensor,
    target: Tensor,
    steps: Sequence[int],
    *,
    runs: int = 2,
    update_rate: float = 0.5,
) -> list[TextureQuality]:
    """Grow a texture and compare it with its target.

    Args:
        model: the model; its mode is left alone.
        seed_state: `[1, C, H, W]`.
        target: `[1, 4, H, W]`.
        steps: when to look.
        runs: rollouts of each grid, each with masks of its own.
        update_rate: probability that a cell updates.

    Returns:
        One entry per number of steps, in ascending order.
    """
    loss = TextureLoss()
    with torch.no_grad():
        wanted = loss.prepare(target)
    states = [seed_state.repeat(runs, 1, *((scale,) * 2)) for scale in (1, LARGER)]
    results, done = [], 0
    for moment in sorted(set(steps)):
        states = [advance(model, each, done, moment - done, update_rate) for each in states]
        done, losses, exploded = moment, [], []
        for each in states:
            wild = ~(each.abs().amax(dim=(1, 2, 3)) <= EXPLODED)
            exploded.append(wild)
            with torch.no_grad():
                mean = float(loss([each], wanted.expand(len(each), -1, -1, -1)).mean())
            losses.append(math.nan if bool(wild.any()) else mean)
        share = float(torch.cat(exploded).float().mean())
        largest = max(float(each.abs().max()) for each in states)
        samples = states[0][:2], states[1][:1]
        results.append(TextureQuality(moment, losses[0], losses[1], largest, share, samples))
    return results


def untrained_loss(seed_state: Tensor, target: Tensor) -> float:
    """Return the texture loss of a model that has learned nothing: that of its seed."""
    loss = TextureLoss()
    with torch.no_grad():
        return float(loss([seed_state], loss.prepare(target)).mean())
