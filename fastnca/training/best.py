"""Keep the weights that grow best, by what a person will look at."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.states import get_visible_state
from fastnca.training.step import StepResult
from fastnca.training.trainer import PoolTrainer

GROWTH_STEPS = (80, 160, 240, 320)
"""Steps from the seed after which a model's growth is compared with the target: a pattern that
grows up to the target and on through it is not one that became it."""

_MASK_SEED = 0


def growth_loss(model: NeuralCA, trainer: PoolTrainer) -> float:
    """Grow from the seed, with random updates as in training, and compare with the target.

    The loss of a training batch says little about that: it depends on which states were drawn
    and on how many steps they had, and it swings from one iteration to the next.

    Args:
        model: the model to look at, in training mode; it is not changed.
        trainer: whose seed state, target and update rate are used.

    Returns:
        Mean squared error of clamped RGBA, averaged over `GROWTH_STEPS`; always with the same
        masks.
    """
    state, losses, done = trainer.seed_state, [], 0
    rate = trainer.config.update_rate
    with torch.no_grad():
        for steps in GROWTH_STEPS:
            state = model.run_steps(state, steps - done, rate, seed=_MASK_SEED, first_step=done)
            losses.append(float(F.mse_loss(get_visible_state(state), trainer.target)))
            done = steps
    return sum(losses) / len(losses)


class BestWeights:
    """Averaged weights with the lowest growth loss; pass it to `PoolTrainer.fit` as `on_step`.

    The weights of single iterations jump about the ones that grow well; their exponential moving
    average does not. From here on it takes in the weights of every iteration as the trainer starts
    them, and nobody waits for a GPU. It is compared with the target from time to time in the
    second half of a run.

    Args:
        trainer: the run to watch.
        every: iterations between two looks; the first half of the run is not looked at.
        decay: of the average per iteration, in [0, 1]; after n iterations at most
            (1 + n) / (10 + n), so that a short run is not held back by its first weights.

    Attributes:
        average: the averaged model.
        loss: the lowest growth loss, infinite before the first look.
        iteration: when it was reached.
        weights: the averaged `state_dict` then.
    """

    def __init__(self, trainer: PoolTrainer, every: int = 50, decay: float = 0.98) -> None:
        self._trainer = trainer
        self._every = every
        self._least = 1 - decay
        self._count = torch.zeros((), dtype=torch.float64, device=trainer.target.device)
        self.average = copy.deepcopy(trainer.model).train()
        trainer.after_start.append(self._add)
        self.loss = math.inf
        self.iteration = trainer.iteration
        self.weights = trainer.copy_weights()

    def __call__(self, result: StepResult) -> None:
        """Look at the average if it is time to."""
        total = self._trainer.config.iterations
        due = result.iteration % self._every == 0 or result.iteration == total
        if due and 2 * result.iteration >= total and not result.skipped:
            self.look()

    def look(self) -> None:
        """Compare the average as it is now with the best so far."""
        loss = growth_loss(self.average, self._trainer)
        if loss < self.loss:
            self.loss, self.iteration = loss, self._trainer.iteration
            self.weights = _copy(self.average.state_dict())

    @torch.no_grad()
    def _add(self, numbers: Tensor) -> None:
        """Take in the weights of an iteration, unless its numbers say that it does not count."""
        counts = numbers[0] == 0
        weight = torch.full_like(self._count, 9) / (10 + self._count)
        weight = torch.where(self._count > 0, weight.clamp(min=self._least), 1.0) * counts
        self._count += counts
        pairs = zip(self.average.parameters(), self._trainer.model.parameters(), strict=True)
        for average, value in pairs:
            average.lerp_(value, weight.to(average.dtype))


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
