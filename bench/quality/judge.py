"""Does a model grow, stay as it is and heal: what is asked of the default recipe."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca import NeuralCA, get_visible_state
from fastnca.states import ALIVE_THRESHOLD, ALPHA, middle_square, rectangle
from fastnca.training import CollapsedError, DivergedError, EmaTracker, PoolTrainer
from fastnca.training.ema import DAMAGE_STEPS, HEALING_STEPS

ROLLOUTS = 4
MASK_SEED = 1000
"""Not the masks that `EmaTracker` chooses by."""

DISTANCE = 2
"""Cells from the target within which living cells are no scraps."""


@dataclass(frozen=True)
class Judgement:
    """What a model does, as means of `ROLLOUTS` rollouts with random updates.

    Attributes:
        empty: mean squared error of an empty grid.
        grown_96, grown_192, grown_480, grown_2000: of clamped RGBA, so many steps from the seed.
        healed: `HEALING_STEPS` steps after the tutorial's square was set to zero, `DAMAGE_STEPS`
            steps from the seed.
        scraps: living cells (alpha above the threshold) farther than `DISTANCE` cells from the
            target's, 480 steps from the seed, per rollout.
        dead: share of the rollouts without a living cell after 2,000 steps.
    """

    empty: float
    grown_96: float
    grown_192: float
    grown_480: float
    grown_2000: float
    healed: float
    scraps: float
    dead: float

    def holds(self) -> dict[str, bool]:
        """Tell for each bound whether it holds."""
        found = {name: getattr(self, name) <= share * self.empty for name, share in BOUNDS.items()}
        return {**found, "scraps": self.scraps == 0}


EMPTY_CIRCLE = 0.2171173
"""Mean squared error of an empty grid against the tutorial's circle, 64x64."""

BOUNDS = {
    name: bound / EMPTY_CIRCLE
    for name, bound in {
        "grown_96": 0.03,
        "grown_192": 0.010,
        "grown_480": 0.010,
        "grown_2000": 0.02,
        "healed": 0.012,
    }.items()
}
"""Upper bounds, as shares of an empty grid's error; the numbers are those of the circle."""


@torch.no_grad()
def judge(model: NeuralCA, seed_state: Tensor, target: Tensor) -> Judgement:
    """Grow, damage and heal.

    Args:
        model: the model; its mode is left alone.
        seed_state: `[1, C, H, W]`.
        target: `[1, 4, H, W]`.
    """
    training, (height, width) = model.training, target.shape[2:]
    model.train()
    wanted = target.expand(ROLLOUTS, -1, -1, -1)
    values = {"empty": float(target.square().mean())}

    def grow(state: Tensor, steps: int, done: int) -> Tensor:
        return model.run_steps(state, steps, 0.5, seed=MASK_SEED, first_step=done)

    def loss(state: Tensor) -> float:
        return float(F.mse_loss(get_visible_state(state), wanted))

    state, done = seed_state.repeat(ROLLOUTS, 1, 1, 1), 0
    for steps in (96, 192, 480, 2000):
        state, done = grow(state, steps - done, done), steps
        values[f"grown_{steps}"] = loss(state)
        if steps == DAMAGE_STEPS:
            box = rectangle(height, width, middle_square((height, width))).to(state.device)
            values["healed"] = loss(grow(state.masked_fill(box, 0.0), HEALING_STEPS, steps))
        if steps == 480:
            values["scraps"] = float(_scraps(state, target).sum()) / ROLLOUTS
    living = (state[:, ALPHA] > ALIVE_THRESHOLD).flatten(1).any(1)
    model.train(training)
    return Judgement(**values, dead=float((~living).float().mean()))


def fit(trainer: PoolTrainer, best: EmaTracker) -> str:
    """Train to the end and load the best weights into the trainer's model.

    Returns:
        "done", "collapsed" or "diverged".
    """
    ended = "done"
    try:
        trainer.fit(progress=False)
    except CollapsedError:
        ended = "collapsed"
    except DivergedError:
        ended = "diverged"
    trainer.model.load_state_dict(best.weights)
    return ended


def _scraps(states: Tensor, target: Tensor) -> Tensor:
    """Mark living cells far from the target: `[B, 1, S, S]` bool."""
    covered = (target[:, ALPHA : ALPHA + 1] > ALIVE_THRESHOLD).float()
    near = F.max_pool2d(covered, 2 * DISTANCE + 1, stride=1, padding=DISTANCE) > 0
    return (states[:, ALPHA : ALPHA + 1] > ALIVE_THRESHOLD) & ~near
