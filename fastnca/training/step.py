"""The outcome of one training iteration."""

from dataclasses import dataclass

from torch import Tensor


class DivergedError(RuntimeError):
    """Loss or gradient was not finite in too many iterations in a row.

    The model then holds the last weights that gave a finite loss and gradient.
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
    """

    iteration: int
    loss: float
    gradient_norm: float
    steps: int
    learning_rate: float
    seconds: float
    skipped: bool
    stop: bool = False


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
