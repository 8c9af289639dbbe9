"""The outcome of one training iteration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """One iteration.

    Attributes:
        iteration: its number, from 1.
        loss: mean squared error of the batch.
        gradient_norm: Euclidean norm of all gradients before clipping; NaN if there was none.
        steps: steps of the rollout.
        learning_rate: that was used.
        seconds: wall-clock time of the iteration.
        skipped: True if loss or gradient was not finite, so that nothing was changed.
    """

    iteration: int
    loss: float
    gradient_norm: float
    steps: int
    learning_rate: float
    seconds: float
    skipped: bool
