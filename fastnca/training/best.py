"""Keep the weights that grow best, by what a person will look at."""

import math

import torch
import torch.nn.functional as F

from fastnca.states import get_visible_state
from fastnca.training.step import StepResult
from fastnca.training.trainer import PoolTrainer

GROWTH_STEPS = (80, 100)
"""Steps from the seed after which a model's growth is compared with the target."""

_MASK_SEED = 0


def growth_loss(trainer: PoolTrainer) -> float:
    """Grow from the seed, with random updates as in training, and compare with the target.

    The loss of a training batch says little about that: it depends on which states were drawn
    and on how many steps they had, and it swings from one iteration to the next.

    Args:
        trainer: whose model and target are used; nothing of it is changed.

    Returns:
        Mean squared error of clamped RGBA, averaged over `GROWTH_STEPS`; always with the same
        masks.
    """
    model, state, losses, done = trainer.model, trainer.seed_state, [], 0
    rate = trainer.config.update_rate
    with torch.no_grad():
        for steps in GROWTH_STEPS:
            state = model.run_steps(state, steps - done, rate, seed=_MASK_SEED, first_step=done)
            losses.append(float(F.mse_loss(get_visible_state(state), trainer.target)))
            done = steps
    return sum(losses) / len(losses)


class BestWeights:
    """Weights with the lowest growth loss so far; pass it to `PoolTrainer.fit` as `on_step`.

    Args:
        trainer: the run to watch.
        every: iterations between two looks; the first half of the run is not looked at.

    Attributes:
        loss: the lowest growth loss, infinite before the first look.
        iteration: when it was reached.
        weights: the model's `state_dict` then.
    """

    def __init__(self, trainer: PoolTrainer, every: int = 5) -> None:
        self._trainer = trainer
        self._every = every
        self.loss = math.inf
        self.iteration = trainer.iteration
        self.weights = trainer.copy_weights()

    def __call__(self, result: StepResult) -> None:
        """Look at the model if it is time to."""
        total = self._trainer.config.iterations
        due = result.iteration % self._every == 0 or result.iteration == total
        if due and 2 * result.iteration >= total and not result.skipped:
            self.look()

    def look(self) -> None:
        """Compare the model as it is now with the best so far."""
        loss = growth_loss(self._trainer)
        if loss < self.loss:
            self.loss, self.iteration = loss, self._trainer.iteration
            self.weights = self._trainer.copy_weights()
