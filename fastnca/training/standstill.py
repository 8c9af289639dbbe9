"""A warning when training has come to a standstill."""

import logging

PATIENCE = 10
"""Iterations in a row with a gradient of exactly 0 after which the warning comes."""

_log = logging.getLogger("fastnca")


class StandstillWarning:
    """Warns, once, that a model no longer learns.

    A gradient is exactly 0 when every state of the batch is dead, or so far out of range that the
    loss clamps it. A few such iterations in a row are common, and training may recover from them.
    """

    def __init__(self) -> None:
        self._count = 0

    def update(self, iteration: int, gradient_norm: float) -> None:
        """Take in the norm of an iteration's gradient."""
        if self._count == PATIENCE:
            return
        self._count = 0 if gradient_norm else self._count + 1
        if self._count == PATIENCE:
            _log.warning(
                "the gradient was exactly 0 in %d iterations in a row, up to iteration %d: the "
                "states are dead or out of range, and the model no longer learns; start again "
                "with a lower learning_rate, another seed or gradient='normalize'",
                PATIENCE,
                iteration,
            )
