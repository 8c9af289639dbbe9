"""Keep the weights that grow best, by what a person will look at."""

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.states import get_visible_state, middle_square, rectangle
from fastnca.training.checkpoint import NOT_FINITE, part
from fastnca.training.step import StepResult
from fastnca.training.trainer import PoolTrainer
from fastnca.training.update import copy_weights

GROWTH_STEPS = (96, 192, 288, 480)
"""Steps from the seed after which a state is compared with the target."""

DAMAGE_STEPS = 192
"""Steps from the seed before the damage."""

HEALING_STEPS = 200
"""Steps after the damage before a state is compared with the target."""

_ROLLOUTS = 4


def growth_loss(model: NeuralCA, trainer: PoolTrainer, mask_seed: int = 0) -> float:
    """Grow from the seed, with random updates as in training, and compare with the target.

    The loss of a training batch says little about that: it depends on which states were drawn
    and on how many steps they had, and it swings from one iteration to the next.

    Args:
        model: the model to look at, in training mode; it is not changed.
        trainer: whose seed state, target and update rate are used.
        mask_seed: fixes the masks; `BestWeights` chooses with those of 0.

    Returns:
        Mean squared error of clamped RGBA, averaged over `GROWTH_STEPS` and four rollouts.
    """
    return _judge(model, trainer, False, mask_seed)[0]


def healing_loss(model: NeuralCA, trainer: PoolTrainer, mask_seed: int = 0) -> float:
    """Grow from the seed, set the tutorial's square to zero, heal, and compare with the target.

    Args:
        model: the model to look at, in training mode; it is not changed.
        trainer: as in `growth_loss`.
        mask_seed: as in `growth_loss`.

    Returns:
        Mean squared error of clamped RGBA, `HEALING_STEPS` steps after damage that comes
        `DAMAGE_STEPS` steps from the seed; the mean of four rollouts.
    """
    return _judge(model, trainer, True, mask_seed)[1]


@torch.no_grad()
def _judge(
    model: NeuralCA, trainer: PoolTrainer, damage: bool, mask_seed: int = 0
) -> tuple[float, float]:
    """Return growth loss and, with `damage`, healing loss; NaN without."""
    state, losses, done = trainer.seed_state.repeat(_ROLLOUTS, 1, 1, 1), [], 0
    target, healing = trainer.target.expand(_ROLLOUTS, -1, -1, -1), math.nan
    size = target.shape[-1]

    def grow(state: Tensor, steps: int, done: int) -> Tensor:
        rate = trainer.config.update_rate
        return model.run_steps(state, steps, rate, seed=mask_seed, first_step=done)

    def loss(state: Tensor) -> float:
        return float(F.mse_loss(get_visible_state(state), target))

    for steps in GROWTH_STEPS:
        state = grow(state, steps - done, done)
        losses.append(loss(state))
        done = steps
        if damage and steps == DAMAGE_STEPS:
            square = rectangle(size, size, middle_square(size)).to(state.device)
            healing = loss(grow(state.masked_fill(square, 0.0), HEALING_STEPS, steps))
    return sum(losses) / len(losses), healing


class BestWeights:
    """Averaged weights that grow best; pass it to `PoolTrainer.fit` as `on_step`.

    The weights of single iterations jump about the ones that grow well; their exponential moving
    average does not. From here on it takes in the weights of every iteration as the trainer starts
    them, and nobody waits for a GPU. It is looked at from time to time in the second half of a
    run: best is the lowest `growth_loss`, or the lowest mean of it and `healing_loss` where the
    recipe trains for damage. When the trainer goes back to earlier weights, so does the average.

    Checkpoints hold average and best weights, so that a resumed run goes on with them; it does not
    matter whether this object is made before or after `resume`.

    Args:
        trainer: the run to watch.
        every: iterations between two looks; the first half of the run is not looked at.
        decay: of the average per iteration, in [0, 1]; after n iterations at most
            (1 + n) / (10 + n), so that a short run is not held back by its first weights.

    Attributes:
        average: the averaged model.
        loss: the lowest loss, as above; infinite before the first look.
        iteration: when it was reached.
        weights: the averaged `state_dict` then.
    """

    def __init__(self, trainer: PoolTrainer, every: int = 100, decay: float = 0.98) -> None:
        self._trainer = trainer
        self._every = every
        self._least = 1 - decay
        dtype = torch.promote_types(trainer.target.dtype, torch.float32)
        self._count = torch.zeros((), dtype=dtype, device=trainer.target.device)
        self.average = copy.deepcopy(trainer.model).train()
        self.restart()
        trainer.after_start.append(self._add)
        trainer.after_repair.append(self._go_back)
        trainer.companions.add("best-weights", self, trainer.iteration)

    def restart(self) -> None:
        """Forget every iteration and every look."""
        self._count.zero_()
        self.loss = math.inf
        self.iteration, self._due = self._trainer.iteration, 0
        self.weights = self._trainer.copy_weights()
        self.average.load_state_dict(self.weights)

    def __call__(self, result: StepResult) -> None:
        """Look at the average if it is time to."""
        if self._is_due(result.iteration) and not result.skipped:
            self.look(result.iteration)

    def look(self, due: int = 0) -> None:
        """Compare the average as it is now with the best so far.

        Args:
            due: the iteration after which this look was due. A resumed run forgets looks that a
                run with its number of iterations does not take; 0 is never forgotten.
        """
        damage = self._trainer.config.damage > 0
        loss, healing = _judge(self.average, self._trainer, damage)
        if damage:
            loss = (loss + healing) / 2
        if loss < self.loss:
            self.loss, self.iteration, self._due = loss, self._trainer.iteration, due
            self.weights = copy_weights(self.average)

    def state_dict(self) -> dict[str, Tensor]:
        """Return average, best weights, and what is known of them."""
        loss = self.loss if math.isfinite(self.loss) else NOT_FINITE
        return {
            **{f"average.{name}": value for name, value in self.average.state_dict().items()},
            **{f"weights.{name}": value for name, value in self.weights.items()},
            "count": self._count,
            "due": torch.tensor(self._due),
            "iteration": torch.tensor(self.iteration),
            "loss": torch.tensor(loss, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state_dict` returned."""
        self.loss, self._due = float(state["loss"]), int(state["due"])
        if self.loss == NOT_FINITE or (self._due and not self._is_due(self._due)):
            self.loss = math.inf
        self.iteration = int(state["iteration"])
        self._count.copy_(state["count"])
        device = self._count.device
        self.weights = {name: value.to(device) for name, value in part(state, "weights").items()}
        self.average.load_state_dict(part(state, "average"))

    def _go_back(self) -> None:
        """Forget the weights that training went wrong with."""
        self.average.load_state_dict(self._trainer.copy_weights())

    def _is_due(self, iteration: int) -> bool:
        """Tell whether a look is due after `iteration`."""
        total = self._trainer.config.iterations
        due = iteration % self._every == 0 or iteration == total
        return due and 2 * iteration >= total

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
