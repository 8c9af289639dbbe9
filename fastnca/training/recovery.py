"""Recognise training that goes wrong, and warn, go back to good weights, or stop."""

import enum
import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.training.callbacks import CollapsedError, DivergedError, StepResult
from fastnca.training.config import TrainConfig
from fastnca.training.iteration import LIMIT
from fastnca.training.optimizer import ModelOptimizer, copy_weights
from fastnca.training.pool import SamplePool
from fastnca.training.task import Task

PATIENCE = 10
"""Iterations in a row that look wrong before it is called a fault: a few of them are common, and
training often recovers from them."""

WINDOW = 20
"""Iterations whose median loss is looked at."""

RISE = 5.0
"""The median loss has risen when it is this many times its lowest value, and above `NOTICEABLE`
of an empty grid's loss."""

NOTICEABLE = 0.25
LEARNING_BY = 300
"""Iterations after which the loss must have fallen below 95 % of an empty grid's."""

_EMPTY = 0.95

EVERY = 50
"""Iterations between two looks for weights that can be gone back to."""

RATE = 0.5
"""What the learning rate is multiplied by at each repair."""

_ROWS = 64  # states of the pool that are looked at together
_ADVICE = "start again with a lower learning_rate, another seed or gradient='normalize'"
_SLOW = "nothing has been learned yet; a higher learning_rate may help"

_log = logging.getLogger("fastnca")


class Fault(enum.Enum):
    """What is wrong; the value says what that means."""

    DEAD = "the seed or most states were dead after the rollout"
    EXPLODED = "the values of most states grew beyond all bounds"
    STANDSTILL = "the gradient was exactly 0"
    NOT_FINITE = "loss or gradient was not finite"
    RISEN = "the model has lost what it had learned"
    EMPTY = "the loss was no lower than that of an empty grid"


class Doctor:
    """Looks at the numbers of every iteration.

    Args:
        empty_loss: loss of an empty grid.
        max_skips: iterations in a row without a finite loss and gradient that are a fault.

    Attributes:
        fault: what has gone wrong since the last `recover`; None if nothing has.
        diagnosis: the same as a clause; empty if nothing has.
    """

    def __init__(self, empty_loss: float, max_skips: int) -> None:
        self._empty_loss = empty_loss
        self._limits = {Fault.NOT_FINITE: max_skips, Fault.EMPTY: LEARNING_BY, Fault.RISEN: 1}
        self.restart()

    def restart(self, skipped_in_a_row: int = 0) -> None:
        """Forget everything; so many iterations in a row have been skipped."""
        self._lowest = math.inf
        self.recover()
        self._rows[Fault.NOT_FINITE] = skipped_in_a_row

    def recover(self) -> None:
        """Forget what was wrong; the lowest loss so far is remembered."""
        self.fault: Fault | None = None
        self.diagnosis = ""
        self._rows = dict.fromkeys(Fault, 0)
        self._recent: deque[float] = deque(maxlen=WINDOW)

    @property
    def healthy(self) -> bool:
        """Whether the last iterations give no reason to worry: their weights can be gone back to.

        The seeds that were rolled out last have lived, the loss is finite and not far above its
        lowest median.
        """
        worrying = (row for fault, row in self._rows.items() if fault is not Fault.EMPTY)
        return len(self._recent) == WINDOW and not any(worrying) and not self._has_risen(RISE / 2)

    def examine(self, result: StepResult) -> None:
        """Take in the numbers of one iteration."""
        count = max(result.states, 1)
        signs = {  # of several faults at once, the first one is the cause
            Fault.NOT_FINITE: result.skipped,
            Fault.EXPLODED: 2 * result.exploded >= count,
            Fault.DEAD: 4 * result.dead >= 3 * count
            or (result.seeds > 0 and result.dead_seeds == result.seeds),
            Fault.STANDSTILL: result.gradient_norm == 0,
            Fault.EMPTY: result.loss >= _EMPTY * self._empty_loss,
        }
        if not result.skipped:
            self._recent.append(result.loss)
        signs[Fault.RISEN] = self._has_risen(RISE)
        if len(self._recent) == WINDOW:
            self._lowest = min(self._lowest, self._middle())
        for fault, sign in signs.items():
            if fault is Fault.DEAD and not sign and result.seeds == 0:
                continue  # nothing is known of the seed
            self._rows[fault] = self._rows[fault] + 1 if sign else 0
            if self.fault is None and self._rows[fault] >= self._limits.get(fault, PATIENCE):
                self.fault = fault
                self.diagnosis = self._describe(fault, result.iteration)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has been seen, for a checkpoint; every number is finite."""
        recent = [-1.0] * (WINDOW - len(self._recent)) + list(self._recent)
        lowest = self._lowest if math.isfinite(self._lowest) else -1.0
        return {
            "losses": torch.tensor([lowest, *recent], dtype=torch.float64),
            "rows": torch.tensor(list(self._rows.values())),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self.recover()
        lowest, *recent = state["losses"].tolist()
        self._lowest = math.inf if lowest < 0 else lowest
        self._recent.extend(loss for loss in recent if loss >= 0)
        self._rows = dict(zip(Fault, state["rows"].tolist(), strict=True))

    def _describe(self, fault: Fault, iteration: int) -> str:
        if fault is Fault.RISEN:
            times = self._middle() / self._lowest
            return (
                f"up to iteration {iteration} the loss rose to {self._middle():.3g}, {times:.0f} "
                f"times its lowest: {fault.value}"
            )
        row = self._rows[fault]
        return f"{fault.value} in {row} iterations in a row, up to iteration {iteration}"

    def _middle(self) -> float:
        """Return the median of the last losses, which a few wild states do not move."""
        return statistics.median(self._recent)

    def _has_risen(self, factor: float) -> bool:
        """Tell whether the median loss is above `factor` times its lowest value."""
        if len(self._recent) < WINDOW:
            return False
        return self._middle() > max(factor * self._lowest, NOTICEABLE * self._empty_loss)


class Recovery:
    """Weights to go back to, and the decision when to.

    With `repairs` 0 it warns once. Otherwise a fault puts the last weights back whose seed lived,
    forgets Adam's moments, replaces dead and exploded states of the pool by the seed, and halves
    the learning rate; the fault after the last repair ends training. All processes that train
    together decide alike, because they see the same numbers.

    Args:
        model: the model.
        optimizer: its optimiser.
        pool: this process's states.
        task: seeds, targets, loss.
        config: the options.
        first_slot: number of the pool's first slot.

    Attributes:
        rate: factor of the learning rate.
        repairs: how many there were.
        good_weights: the `state_dict` to go back to.
        good_iteration: when it was that.
    """

    def __init__(
        self,
        model: NeuralCA,
        optimizer: ModelOptimizer,
        pool: SamplePool,
        task: Task,
        config: TrainConfig,
        first_slot: int = 0,
    ) -> None:
        self._model, self._optimizer, self._pool = model, optimizer, pool
        self._task, self._config, self._first_slot = task, config, first_slot
        self._doctor = Doctor(task.untrained_loss(), config.max_skips)
        self.restart()

    def restart(self, iteration: int = 0, skipped_in_a_row: int = 0) -> None:
        """Start anew from the model as it is after `iteration` iterations."""
        self._doctor.restart(skipped_in_a_row)
        self._warned: set[bool] = set()
        self.rate = 1.0
        self.repairs = 0
        self._keep(iteration)

    def examine(self, result: StepResult) -> None:
        """Take in the numbers of one iteration."""
        self._doctor.examine(result)

    def act(self, iteration: int, is_main: bool = True) -> bool:
        """Do what the numbers so far demand; tell whether the model went back to earlier weights.

        Args:
            iteration: iterations done; none is under way.
            is_main: whether this process logs.

        Raises:
            CollapsedError: training went wrong once more after the last repair.
            DivergedError: the same, and loss or gradient is not finite.
        """
        fault, diagnosis = self._doctor.fault, self._doctor.diagnosis
        if fault is None:
            due = iteration - self.good_iteration >= EVERY
            if self._config.repairs and due and self._doctor.healthy:
                self._keep(iteration)
            return False
        self._doctor.recover()
        diverged = fault is Fault.NOT_FINITE
        if fault is Fault.EMPTY or not (self._config.repairs or diverged):
            self._warn(fault, diagnosis, is_main)
            return False
        if self.repairs >= self._config.repairs:
            self._stop(diverged, diagnosis)
        self._repair()
        if is_main:
            _log.warning(
                f"{diagnosis}; the model goes back to iteration {self.good_iteration}, with "
                f"{self.rate:g} times the learning rate (repair {self.repairs} of "
                f"{self._config.repairs})"
            )
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs, for a checkpoint."""
        return {
            **{f"good.{name}": value for name, value in self.good_weights.items()},
            **{f"doctor.{name}": value for name, value in self._doctor.state_dict().items()},
            "good_iteration": torch.tensor(self.good_iteration),
            "repairs": torch.tensor(self.repairs),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        for name, value in self.good_weights.items():
            value.copy_(state[f"good.{name}"])
        names = self._doctor.state_dict()
        self._doctor.load_state_dict({name: state[f"doctor.{name}"] for name in names})
        self.good_iteration, self.repairs = int(state["good_iteration"]), int(state["repairs"])
        self.rate = RATE**self.repairs

    def _keep(self, iteration: int) -> None:
        self.good_weights = copy_weights(self._model)
        self.good_iteration = iteration

    def _warn(self, fault: Fault, diagnosis: str, is_main: bool) -> None:
        """Warn once of a collapse, and once of a model that learns nothing."""
        empty = fault is Fault.EMPTY
        if empty not in self._warned and is_main:
            advice = _SLOW if empty else f"the model no longer learns; {_ADVICE}"
            _log.warning("%s: %s", diagnosis, advice)
        self._warned.add(empty)

    def _stop(self, diverged: bool, diagnosis: str) -> None:
        """Put the last good weights back and end training."""
        weights, which = self.good_weights, f"at the weights of iteration {self.good_iteration}"
        if not self._config.repairs:
            weights, which = self._optimizer.good_weights, "at its last good weights"
        self._model.load_state_dict(weights)
        tried = f" after {self.repairs} repairs" if self.repairs else ""
        raise (DivergedError if diverged else CollapsedError)(
            f"{diagnosis}{tried}; the model is back {which}. {_ADVICE.capitalize()}"
        )

    @torch.no_grad()
    def _repair(self) -> None:
        """Put the last good weights back, and what they can go on from."""
        self._model.load_state_dict(self.good_weights)
        self._optimizer.forget_moments()
        first = self._first_slot
        for states in self._pool.states.split(_ROWS):
            fit = (states.abs().amax(dim=(1, 2, 3)) <= LIMIT) & self._task.lives(states)
            slots = torch.arange(first, first + len(states), device=states.device)
            seeds = self._task.seed_state[slots % self._task.goals]
            states.copy_(torch.where(fit[:, None, None, None], states, seeds.to(states)))
            first += len(states)
        self.repairs += 1
        self.rate *= RATE
