"""Keep the averaged weights that do best, by what a person will look at."""

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.losses import RGBALoss
from fastnca.module import NeuralCA
from fastnca.states import clear_cells, get_visible_state, middle_square, rectangle
from fastnca.training.callbacks import Callback, StepResult
from fastnca.training.optimizer import copy_weights
from fastnca.training.task import Task

if TYPE_CHECKING:
    from fastnca.training.trainer import PoolTrainer

GROWTH_STEPS = (96, 192, 288, 480)
"""Steps from the seed after which a state is compared with the target."""

DAMAGE_STEPS = 192
"""Steps from the seed before the damage."""

HEALING_STEPS = 200
"""Steps after the damage before a state is compared with the target."""

NOT_FINITE = -1.0
"""Stands for a loss that is not finite: saved tensors hold finite values."""

_ROLLOUTS = 4


def growth_loss(model: NeuralCA, task: Task, mask_seed: int = 0) -> float:
    """Grow from the seed, with random updates as in training, and compare with the target.

    The loss of a training batch says little about that: it depends on which states were drawn
    and on how many steps they had, and it swings from one iteration to the next.

    Args:
        model: the model to evaluate, in training mode; it is not changed.
        task: seeds, targets and loss; `trainer.task`.
        mask_seed: fixes the masks; `EmaTracker` chooses with those of 0.

    Returns:
        The loss averaged over `GROWTH_STEPS` and at least four rollouts, as many of each goal; the
        mean squared error of clamped RGBA where the loss is that of RGBA.
    """
    return _evaluate(model, task, False, mask_seed)[0]


def healing_loss(model: NeuralCA, task: Task, mask_seed: int = 0) -> float:
    """Grow from the seed, set the tutorial's square to zero, heal, and compare with the target.

    Args:
        model: the model to evaluate, in training mode; it is not changed.
        task: as in `growth_loss`.
        mask_seed: as in `growth_loss`.

    Returns:
        The loss as in `growth_loss`, `HEALING_STEPS` steps after damage that comes `DAMAGE_STEPS`
        steps from the seed.
    """
    return _evaluate(model, task, True, mask_seed)[1]


@torch.no_grad()
def _evaluate(
    model: NeuralCA,
    task: Task,
    damage: bool,
    mask_seed: int,
    moments: tuple[int, ...] = GROWTH_STEPS,
) -> tuple[float, float]:
    """Return growth loss and, with `damage`, healing loss; NaN without."""
    rollouts = math.ceil(_ROLLOUTS / task.goals)
    state, losses, done = task.seed_state.repeat(rollouts, 1, 1, 1), [], 0
    goals = torch.arange(len(state), device=state.device) % task.goals
    healing, (height, width) = math.nan, state.shape[-2:]

    def grow(state: Tensor, steps: int, done: int) -> Tensor:
        return model.run_steps(state, steps, task.update_rate, seed=mask_seed, first_step=done)

    def loss(state: Tensor) -> float:
        if isinstance(task.loss, RGBALoss):
            return float(
                F.mse_loss(get_visible_state(state), task.target[goals % len(task.target)])
            )
        return float(task.losses_of(state, goals).mean())

    for steps in sorted({*moments, DAMAGE_STEPS} if damage else moments):
        state = grow(state, steps - done, done)
        done = steps
        if steps in moments:
            losses.append(loss(state))
        if damage and steps == DAMAGE_STEPS:
            square = rectangle(height, width, middle_square((height, width)))
            damaged = clear_cells(state, square, task.rule.inputs)
            healing = loss(grow(damaged, HEALING_STEPS, steps))
    return sum(losses) / len(losses), healing


class EmaTracker(Callback):
    """Averaged weights that grow best, as a callback of `PoolTrainer`.

    The weights of single iterations jump about the ones that grow well; their exponential moving
    average does not. It is updated after every started iteration, without synchronising with the
    GPU. In the second half of a run it is evaluated from time to time: best is the lowest
    `growth_loss`, or the lowest mean of it and `healing_loss` where the recipe trains for damage.
    When the trainer goes back to earlier weights, so does the average. Checkpoints hold average
    and best weights.

    Args:
        every: iterations between two evaluations.
        decay: of the average per iteration, in [0, 1]; after n iterations at most
            (1 + n) / (10 + n), so that a short run is not held back by its first weights.
        steps: from the seed, ascending, after which a state is compared with its target.

    Attributes:
        ema_model: the averaged model.
        loss: the lowest loss, as above; infinite before the first evaluation.
        iteration: when it was reached.
        weights: the averaged `state_dict` then.
    """

    name = "best-weights"

    def __init__(
        self, every: int = 100, decay: float = 0.98, steps: tuple[int, ...] = GROWTH_STEPS
    ) -> None:
        self._every = every
        self._steps = steps
        self._least = 1 - decay
        self._total = 0
        self.loss, self.iteration, self._due = math.inf, 0, 0

    def on_attach(self, trainer: "PoolTrainer") -> None:
        """Start from the trainer's weights as they are."""
        seed = trainer.seed_state
        dtype = torch.promote_types(seed.dtype, torch.float32)
        self._count = torch.zeros((), dtype=dtype, device=seed.device)
        self._total = trainer.config.iterations
        self.loss, self.iteration, self._due = math.inf, trainer.iteration, 0
        self.weights = copy_weights(trainer.model)
        self.ema_model = copy.deepcopy(trainer.model).train()

    @torch.no_grad()
    def on_update(self, trainer: "PoolTrainer", numbers: Tensor) -> None:
        """Average the weights of an iteration in, unless its numbers say that it was skipped."""
        counts = numbers[0] == 0
        weight = torch.full_like(self._count, 9) / (10 + self._count)
        weight = torch.where(self._count > 0, weight.clamp(min=self._least), 1.0) * counts
        self._count += counts
        pairs = zip(self.ema_model.parameters(), trainer.model.parameters(), strict=True)
        for average, value in pairs:
            average.lerp_(value, weight.to(average.dtype))

    def on_step_end(self, trainer: "PoolTrainer", result: StepResult) -> None:
        """Evaluate the average if it is time to."""
        if self._is_due(result.iteration) and not result.skipped:
            self.evaluate(trainer, result.iteration)

    def on_rollback(self, trainer: "PoolTrainer") -> None:
        """Forget the weights that training went wrong with."""
        self.ema_model.load_state_dict(trainer.model.state_dict())

    def evaluate(self, trainer: "PoolTrainer", due: int = 0) -> None:
        """Compare the average as it is now with the best so far.

        Args:
            trainer: the run.
            due: the iteration after which this evaluation was due. A resumed run forgets those
                that a run with its number of iterations does not have; 0 is never forgotten.
        """
        damage = trainer.config.damage > 0
        loss, healing = _evaluate(self.ema_model, trainer.task, damage, 0, self._steps)
        if damage:
            loss = (loss + healing) / 2
        if loss < self.loss:
            self.loss, self.iteration, self._due = loss, trainer.iteration, due
            self.weights = copy_weights(self.ema_model)

    def state_dict(self) -> dict[str, Tensor]:
        """Return average, best weights, and what is known of them."""
        loss = self.loss if math.isfinite(self.loss) else NOT_FINITE
        return {
            **{f"average.{name}": value for name, value in self.ema_model.state_dict().items()},
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
        average = {name: state[f"average.{name}"] for name in self.weights}
        self.ema_model.load_state_dict(average)
        for name, value in self.weights.items():
            value.copy_(state[f"weights.{name}"])

    def _is_due(self, iteration: int) -> bool:
        """Tell whether an evaluation is due after `iteration`."""
        due = iteration % self._every == 0 or iteration == self._total
        return due and 2 * iteration >= self._total
