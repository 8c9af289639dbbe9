"""The mean squared error of the visible channels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.states import get_visible_state


class RGBALoss:
    """Mean squared error of RGBA, the loss of "Growing Neural Cellular Automata".

    Args:
        clamp: True compares RGBA clamped to [0, 1], as the tutorial does; False as it is.
    """

    capturable = True
    colors = 4

    def __init__(self, clamp: bool = True) -> None:
        self.clamp = clamp

    def __call__(self, states: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss of each sample.

        Args:
            states: `[B, C, H, W]` each, at least one.
            target: `[B, 4, H, W]`, RGBA.

        Returns:
            `[B]`, the mean over the states.
        """
        return mean([self._of(state, target) for state in states])

    def _of(self, state: Tensor, target: Tensor) -> Tensor:
        rgba = get_visible_state(state) if self.clamp else state[:, :4]
        return F.mse_loss(rgba, target, reduction="none").mean(dim=(1, 2, 3))


def mean(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of the losses `[B]` of several states."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean(0)
