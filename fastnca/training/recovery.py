"""What is done when training goes wrong: warn, go back to good weights, or stop."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.states import lives
from fastnca.training.config import TrainConfig
from fastnca.training.doctor import Doctor, Fault
from fastnca.training.iteration import LIMIT
from fastnca.training.pool import SamplePool
from fastnca.training.step import CollapsedError, DivergedError, StepResult
from fastnca.training.update import Update, copy_weights

EVERY = 50
"""Iterations between two looks for weights that can be gone back to."""

RATE = 0.5
"""What the learning rate is multiplied by at each repair."""

_ROWS = 64  # states of the pool that are looked at together
_ADVICE = "start again with a lower learning_rate, another seed or gradient='normalize'"
_SLOW = "nothing has been learned yet; a higher learning_rate may help"

_log = logging.getLogger("fastnca")


class Recovery:
    """Weights to go back to, and the decision when to.

    With `repairs` 0 it warns once. Otherwise a fault puts the last weights back whose seed lived,
    forgets Adam's moments, replaces dead and exploded states of the pool by the seed, and halves
    the learning rate; the fault after the last repair ends training. All processes that train
    together decide alike, because they see the same numbers.

    Args:
        model: the model.
        update: its optimiser.
        pool: this process's states.
        seed_state: `[1, C, S, S]`.
        target: `[1, 4, S, S]`.
        config: the options.

    Attributes:
        rate: factor of the learning rate.
        repairs: how many there were.
        good_weights: the `state_dict` to go back to.
        good_iteration: when it was that.
    """

    def __init__(
        self,
        model: NeuralCA,
        update: Update,
        pool: SamplePool,
        seed_state: Tensor,
        target: Tensor,
        config: TrainConfig,
    ) -> None:
        self._model = model
        self._update = update
        self._pool = pool
        self._seed_state = seed_state
        self._config = config
        self._doctor = Doctor(float(target.square().mean()), config.max_skips)
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

    def act(self, iteration: int, speaks: bool = True) -> bool:
        """Do what the numbers so far demand.

        Args:
            iteration: iterations done; none is under way.
            speaks: whether this process logs.

        Returns:
            Whether the model went back to earlier weights.

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
            self._warn(fault, diagnosis, speaks)
            return False
        if self.repairs >= self._config.repairs:
            self._stop(diverged, diagnosis)
        self._repair()
        if speaks:
            _log.warning(
                "%s; the model goes back to iteration %d, with %g times the learning rate (repair "
                "%d of %d)",
                diagnosis,
                self.good_iteration,
                self.rate,
                self.repairs,
                self._config.repairs,
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

    def _warn(self, fault: Fault, diagnosis: str, speaks: bool) -> None:
        """Warn once of a collapse, and once of a model that learns nothing."""
        empty = fault is Fault.EMPTY
        if empty not in self._warned and speaks:
            advice = _SLOW if empty else f"the model no longer learns; {_ADVICE}"
            _log.warning("%s: %s", diagnosis, advice)
        self._warned.add(empty)

    def _stop(self, diverged: bool, diagnosis: str) -> None:
        """Put the last good weights back and end training."""
        weights, which = self.good_weights, f"at the weights of iteration {self.good_iteration}"
        if not self._config.repairs:
            weights, which = self._update.good_weights, "at its last good weights"
        self._model.load_state_dict(weights)
        tried = f" after {self.repairs} repairs" if self.repairs else ""
        raise (DivergedError if diverged else CollapsedError)(
            f"{diagnosis}{tried}; the model is back {which}. {_ADVICE.capitalize()}"
        )

    @torch.no_grad()
    def _repair(self) -> None:
        """Put the last good weights back, and what they can go on from."""
        self._model.load_state_dict(self.good_weights)
        for state in self._update.optimizer.state.values():
            for value in state.values():
                value.zero_()
        for states in self._pool.states.split(_ROWS):
            fit = (states.abs().amax(dim=(1, 2, 3)) <= LIMIT) & lives(states)
            states[~fit] = self._seed_state.to(states)[0]
        self.repairs += 1
        self.rate *= RATE
