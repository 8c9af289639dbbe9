"""Recognise training that goes wrong while it happens, and say what to do."""

import enum
import math
import statistics
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from fastnca.training.step import StepResult

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
