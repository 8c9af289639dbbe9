"""How a trained model behaves beyond what it was trained on."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.states import (
    ALIVE_THRESHOLD,
    ALPHA,
    clear_cells,
    disc,
    get_visible_state,
    middle_square,
    rectangle,
)

EXPLODED = 100.0
"""A state with a larger value, or with one that is not a number, counts as exploded."""

GROW_STEPS = 100
"""Steps from the seed before damage."""

_SEED = 0
_TOGETHER = 100  # steps of one rollout


@dataclass(frozen=True)
class Stability:
    """Rollouts from the seed, after some steps.

    Attributes:
        steps: how many.
        loss: median over the rollouts of the mean squared error of RGBA; a rollout with values
            that are not finite counts as infinite.
        alive: mean number of living cells (alpha above the threshold) of the rollouts that did
            not explode, as a multiple of the target's; NaN if all did.
        dead: share of rollouts that did not explode and have no living cell, in [0, 1].
        exploded: share of rollouts with a value that is not finite or beyond ±`EXPLODED`, in
            [0, 1].
    """

    steps: int
    loss: float
    alive: float
    dead: float
    exploded: float


@dataclass(frozen=True)
class Recovery:
    """Rollouts that were damaged after `GROW_STEPS` steps.

    Attributes:
        name: of the damage.
        before: median loss before it, as in `Stability`.
        after: median loss right after it.
        recovered: median loss at the last of `moments`.
        moments: steps after the damage, three of them.
        states: `[5, C, H, W]`, one rollout before, right after, and at each of `moments`.
    """

    name: str
    before: float
    after: float
    recovered: float
    moments: tuple[int, int, int]
    states: Tensor


def measure_stability(
    model: NeuralCA,
    seed_state: Tensor,
    target: Tensor,
    steps: Sequence[int],
    *,
    runs: int = 4,
    update_rate: float = 0.5,
) -> list[Stability]:
    """Grow several times from the seed, with random updates, and look at given moments.

    Args:
        model: the model; its mode is left alone.
        seed_state: `[1, C, H, W]`.
        target: `[1, 4, H, W]`.
        steps: the moments.
        runs: rollouts, each with masks of its own.
        update_rate: probability that a cell updates.

    Returns:
        One entry per moment, in order.
    """
    state = seed_state.repeat(runs, 1, 1, 1)
    results, done = [], 0
    for moment in sorted(set(steps)):
        state = advance(model, state, done, moment - done, update_rate)
        results.append(_look(state, target, moment))
        done = moment
    return results


def measure_recovery(
    model: NeuralCA,
    seed_state: Tensor,
    target: Tensor,
    *,
    runs: int = 4,
    update_rate: float = 0.5,
    steps: int = 200,
) -> list[Recovery]:
    """Damage grown states in fixed ways and let them recover.

    Args:
        model: the model; its mode is left alone.
        seed_state: `[1, C, H, W]`.
        target: `[1, 4, H, W]`.
        runs: rollouts per damage, each with masks of its own.
        update_rate: probability that a cell updates.
        steps: of the recovery, at least 3.

    Returns:
        One entry per damage.
    """
    inputs = model.rule.inputs
    grown = advance(model, seed_state.repeat(runs, 1, 1, 1), 0, GROW_STEPS, update_rate)
    results = []
    for name, cells in _damages(*seed_state.shape[2:]):
        state = clear_cells(grown, cells, inputs)
        before, after = _median_loss(grown, target), _median_loss(state, target)
        states = [grown[0], state[0]]
        moments, done = (steps // 3, steps * 2 // 3, steps), 0
        for moment in moments:
            state = advance(model, state, GROW_STEPS + done, moment - done, update_rate)
            states.append(state[0])
            done = moment
        recovered = _median_loss(state, target)
        results.append(Recovery(name, before, after, recovered, moments, torch.stack(states)))
    return results


def _damages(height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield name and cells, `[H, W]` bool, of every damage."""
    shape = "square" if height == width else "rectangle"
    middle = middle_square((height, width))
    yield f"{shape} in the middle", rectangle(height, width, middle)
    yield "left half", rectangle(height, width, (0, 0, height, max(1, width // 2)))
    yield "lower half", rectangle(height, width, (height // 2, 0, height, width))
    center, radius = torch.tensor([[-0.3, 0.3]]), torch.tensor([0.35])
    yield "disc at the upper right", disc(height, width, center, radius)[0]


@torch.no_grad()
def advance(model: NeuralCA, state: Tensor, done: int, steps: int, rate: float) -> Tensor:
    """Advance with the masks of training, whatever the model's mode."""
    training = model.training
    model.train()
    try:
        for first in range(0, steps, _TOGETHER):
            count = min(_TOGETHER, steps - first)
            state = model.run_steps(state, count, rate, seed=_SEED, first_step=done + first)
    finally:
        model.train(training)
    return state


def _look(state: Tensor, target: Tensor, steps: int) -> Stability:
    alive = (state[:, ALPHA] > ALIVE_THRESHOLD).sum(dim=(1, 2))
    wild = ~(state.abs().amax(dim=(1, 2, 3)) <= EXPLODED)  # true of NaN, too
    covered = int((target[:, ALPHA] > ALIVE_THRESHOLD).sum())
    return Stability(
        steps,
        _median_loss(state, target),
        float(alive[~wild].float().mean()) / max(1, covered),
        float((~wild & (alive == 0)).float().mean()),
        float(wild.float().mean()),
    )


def _median_loss(state: Tensor, target: Tensor) -> float:
    difference = get_visible_state(state) - target
    losses = difference.square().mean(dim=(1, 2, 3)).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(statistics.median(losses.tolist()))
