"""The specification: the tutorial's modules in plain PyTorch, never optimised.

If a fast path and this file differ, the fast path is wrong.

Conventions, stated here once for the whole package:

- A state is `[B, C, H, W]`; channels 0 to 3 are RGBA, channel 3 is alpha.
- Perceived channel `3*c + k` is filter `k` of channel `c`: identity, Sobel-x, Sobel-y.
  Sobel-x grows to the right, Sobel-y downwards; both are divided by 8. Borders are zero.
- One step of a state s with mask m and network W₂ relu(W₁ p + b₁) + b₂ on the perceived p:

      ŝ  = s + m ⊙ (W₂ relu(W₁ p(s) + b₁) + b₂)
      s' = ŝ ⊙ alive(s) ⊙ alive(ŝ),   alive(s) = [maxpool₃ₓ₃(s_alpha) > 0.1]

- In training mode m is random, one draw per cell shared by its channels; in eval mode m = 1.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from fastnca.life import game_of_life_step
from fastnca.masks import update_mask
from fastnca.states import (
    ALIVE_THRESHOLD,
    NUM_CHANNELS,
    create_seed,
    get_visible_state,
)
from fastnca.targets import create_target_circle

__all__ = [
    "NUM_CHANNELS",
    "NeuralCA",
    "PerceptionModule",
    "create_seed",
    "create_target_circle",
    "game_of_life_step",
    "get_visible_state",
    "sobel_filters",
]


def sobel_filters() -> Tensor:
    """Return the three perception filters, identity, Sobel-x / 8, Sobel-y / 8: `[3, 3, 3]`."""
    sobel_x = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float32) / 8.0
    identity = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float32)
    return torch.stack([identity, sobel_x, sobel_x.T.contiguous()])


class PerceptionModule(nn.Module):
    """Perceive the 3x3 neighbourhood of every channel with fixed filters.

    Args:
        num_channels: channels C of the state.

    Attributes:
        filters: `[3*C, 1, 3, 3]` float32 parameter without gradient, as in the tutorial.
    """

    def __init__(self, num_channels: int = NUM_CHANNELS) -> None:
        super().__init__()
        self.filters = nn.Parameter(
            sobel_filters().repeat(num_channels, 1, 1).view(-1, 1, 3, 3), requires_grad=False
        )
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, 3*C, H, W]`; output channel `3*c + k` is filter k of c."""
        return F.conv2d(x, self.filters, padding=1, groups=self.num_channels)


class NeuralCA(nn.Module):
    """The tutorial's Neural Cellular Automaton.

    Args:
        num_channels: channels C of the state.
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, num_channels: int = NUM_CHANNELS, hidden_dim: int = 128) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.perception = PerceptionModule(num_channels)
        self.update_net = nn.Sequential(
            nn.Conv2d(num_channels * 3, hidden_dim, 1),
            nn.ReLU(),
            nn.Conv2d(hidden_dim, num_channels, 1),
        )
        for zero in self.update_net[-1].parameters():
            nn.init.zeros_(zero)

    def get_alive_mask(self, state: Tensor, threshold: float = ALIVE_THRESHOLD) -> Tensor:
        """Mark living cells: the largest alpha of the 3x3 neighbourhood is above `threshold`.

        Args:
            state: `[B, C, H, W]`.
            threshold: exclusive lower limit of alpha.

        Returns:
            `[B, 1, H, W]` of the state's dtype, 1.0 where alive.
        """
        alpha = state[:, 3:4, :, :]
        alive = F.max_pool2d(alpha, 3, stride=1, padding=1) > threshold
        return alive.to(state.dtype)

    def _step(self, state: Tensor, mask: Tensor | float) -> Tensor:
        """Advance `state` by one step; `mask` is `[B, 1, H, W]` or 1.0, which is every cell."""
        pre_alive = self.get_alive_mask(state)
        delta = self.update_net(self.perception(state))
        state = state + delta * mask
        alive_mask = pre_alive * self.get_alive_mask(state)
        return state * alive_mask

    def forward(self, state: Tensor, update_rate: float = 0.5) -> Tensor:
        """Advance `[B, C, H, W]` by one step; in training mode the mask comes from torch's RNG."""
        mask: Tensor | float = 1.0
        if self.training:
            mask = (torch.rand_like(state[:, :1, :, :]) < update_rate).to(state.dtype)
        return self._step(state, mask)

    def run_steps(
        self,
        state: Tensor,
        steps: int,
        update_rate: float = 0.5,
        *,
        seed: int | None = None,
        first_step: int = 0,
    ) -> Tensor:
        """Advance `[B, C, H, W]` by `steps` steps.

        Args:
            state: `[B, C, H, W]`.
            steps: number of steps.
            update_rate: probability that a cell updates in a step (training mode only).
            seed: 64-bit seed of the counter-based masks of `fastnca.update_mask`; None draws
                each mask as `forward` does, which is what the tutorial does.
            first_step: number of the first step, as the masks count it.

        Returns:
            `[B, C, H, W]`.
        """
        for step in range(first_step, first_step + steps):
            if self.training and seed is not None:
                mask = update_mask(seed, step, state.shape, update_rate, state.device)
                state = self._step(state, mask.to(state.dtype))
            else:
                state = self(state, update_rate)
        return state
