"""Penalties on states: values out of range, and alpha outside of the target."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.losses.rgba import mean
from fastnca.states import ALPHA

RIM = 2
"""Cells from the target within which `OutsidePenalty` falls with the learning rate."""

FAR = 3.0
"""How many times as heavy `OutsidePenalty` is beyond `RIM`, where it does not fall."""


class OverflowLoss:
    """How far values lie out of range, which keeps states bounded over long rollouts.

    The overflow loss of the notebook of "Self-Organising Textures" (Niklasson et al., Distill
    2021), as a mean instead of a sum.

    Args:
        colors: how many channels, the first ones, belong into [0, 1]; the others into [-1, 1].
    """

    capturable = True

    def __init__(self, colors: int = 0) -> None:
        self.colors = colors

    def __call__(self, states: Sequence[Tensor], target: Tensor | None = None) -> Tensor:
        """Return the mean distance from the range of each sample: `[B]`.

        Args:
            states: `[B, C, H, W]` each, at least one.
            target: is not looked at.
        """
        return mean([self._of(state) for state in states])

    def _of(self, state: Tensor) -> Tensor:
        colors, hidden = state[:, : self.colors], state[:, self.colors :]
        excess = (hidden - hidden.clamp(-1, 1)).abs().sum(dim=(1, 2, 3))
        if self.colors:
            excess = excess + (colors - colors.clamp(0, 1)).abs().sum(dim=(1, 2, 3))
        return excess / state[0].numel()


class OutsidePenalty:
    """The penalty `outside` of a recipe: alpha above 0 where the target is empty.

    Args:
        target: `[N, 4, H, W]`, RGBA, or `[1, 4, H, W]` if all goals have one target.
    """

    def __init__(self, target: Tensor) -> None:
        self._empty = target[:, ALPHA] == 0
        covered = (target[:, ALPHA] > 0).float()
        self._near = F.max_pool2d(covered, 2 * RIM + 1, stride=1, padding=RIM) > 0

    def __call__(self, states: Tensor, goals: Tensor | None, share: Tensor) -> Tensor:
        """Return the mean over batch and grid.

        Args:
            states: `[B, C, H, W]`, after a rollout.
            goals: `[B]` int64, the target of each; None where there is one target.
            share: `[]`, what the learning rate is of that of the recipe.

        Returns:
            `[]`, of the states' dtype.
        """
        empty, near = self._empty, self._near
        if goals is not None and len(empty) > 1:
            empty, near = empty[goals], near[goals]
        alpha = F.relu(states[:, ALPHA]) * empty
        return torch.where(near, share.sqrt() * alpha, FAR * alpha).mean()
