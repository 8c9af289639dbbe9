"""The outcome of one training iteration."""

import math
from dataclasses import dataclass

from torch import Tensor


class DivergedError(RuntimeError):
    """Loss or gradient was not finite in too many iterations in a row.

    The model then holds the last weights that gave a finite loss and gradient.
    """


class CollapsedError(RuntimeError):
    """Training went wrong again after the last repair: the seed died, or states exploded.

    The model then holds the last weights whose seed lived.
    """


@dataclass(frozen=True)
class StepResult:
    """One iteration.

    Attributes:
        iteration: its number, from 1.
        loss: mean squared error of the batch.
        gradient_norm: Euclidean norm of all gradients before clipping; NaN if there was none.
        steps: steps of the rollout.
        learning_rate: that was used.
        seconds: wall-clock time of the iteration; on a GPU the mean since the last look.
        skipped: True if loss or gradient was not finite, so that nothing was changed.
        stop: True if one of the processes was asked to stop.
        states: states that were rolled out, in all processes.
        dead: how many of them had no living cell afterwards.
        exploded: how many became the seed again because of their values.
        seeds: how many were the seed before.
        dead_seeds: how many of those had no living cell afterwards.
    """

    iteration: int
    loss: float
    gradient_norm: float
    steps: int
    learning_rate: float
    seconds: float
    skipped: bool
    stop: bool = False
    states: int = 0
    dead: int = 0
    exploded: int = 0
    seeds: int = 0
    dead_seeds: int = 0


@dataclass(frozen=True)
class Unread:
    """An iteration that was started.

    Attributes:
        numbers: what `Iteration.run` returned, perhaps still on its way.
        iteration: its number, from 1.
        steps: steps of the rollout.
        learning_rate: that was used.
    """

    numbers: Tensor
    iteration: int
    steps: int
    learning_rate: float

    def finish(self, values: list[float], seconds: float, states: int) -> StepResult:
        """Return what the iteration did, now that its numbers have been read.

        Args:
            values: `numbers`.
            seconds: wall-clock time of the iteration.
            states: states that were rolled out.
        """
        bad, loss, exploded, asked, dead, seeds, dead_seeds, norm = values
        return StepResult(
            iteration=self.iteration,
            loss=loss,
            gradient_norm=norm if math.isfinite(loss) else math.nan,
            steps=self.steps,
            learning_rate=self.learning_rate,
            seconds=seconds,
            skipped=bad > 0,
            stop=asked > 0,
            states=states,
            dead=int(dead),
            exploded=int(exploded),
            seeds=int(seeds),
            dead_seeds=int(dead_seeds),
        )
