"""Penalties on states, beside the loss: alpha outside of the target, and values too far out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.states import ALPHA
from fastnca.training.config import TrainConfig

RIM = 2
"""Cells from the target within which the penalty `outside` falls with the learning rate."""

FAR = 3.0
"""How many times as heavy `outside` is beyond `RIM`, where it does not fall."""


class Penalty:
    """The penalties `outside` and `overflow` of a recipe.

    Args:
        target: `[1, 4, S, S]`.
        config: the options.

    Attributes:
        used: whether the recipe has one of them.
    """

    def __init__(self, target: Tensor, config: TrainConfig) -> None:
        self.used = bool(config.outside or config.overflow)
        self._config = config
        self._empty = target[:, ALPHA] == 0
        covered = (target[:, ALPHA] > 0).float()
        self._near = F.max_pool2d(covered, 2 * RIM + 1, stride=1, padding=RIM) > 0

    def __call__(self, states: Tensor, learning_rate: float | Tensor) -> Tensor:
        """Return the sum of the penalties.

        Args:
            states: `[B, C, S, S]`, after a rollout.
            learning_rate: of this iteration; a tensor is `[]` float32 on the states' device.

        Returns:
            `[]`, of the states' dtype.
        """
        config, rgba, hidden = self._config, states[:, :4], states[:, 4:]
        penalty = torch.zeros_like(states[0, 0, 0, 0])
        if config.outside:
            if not isinstance(learning_rate, Tensor):  # float32, as on the device
                learning_rate = torch.full(
                    (), learning_rate, dtype=torch.float32, device=states.device
                )
            share = (learning_rate / config.learning_rate).sqrt()
            alpha = F.relu(states[:, ALPHA]) * self._empty
            alpha = torch.where(self._near, share * alpha, FAR * alpha)
            penalty = penalty + config.outside * alpha.mean()
        if config.overflow:
            excess = (rgba - rgba.clamp(0, 1)).abs().sum()
            excess = excess + (hidden - hidden.clamp(-1, 1)).abs().sum()
            penalty = penalty + config.overflow * excess / states.numel()
        return penalty
