"""The specification: the tutorial's modules in plain PyTorch, for every `Rule`, never optimised.

If a fast path and this file differ, the fast path is wrong.

Conventions, stated here once for the whole package:

- A state s is `[B, C, H, W]`; channels 0 to 3 are RGBA, channel 3 is alpha. The last `inputs`
  channels are read and never written; the equations below are of the others.
- Perceived channel `K*c + k` is filter k of channel c, K being the number of filters. The
  tutorial's three are identity, Sobel-x and Sobel-y; Sobel-x grows to the right, Sobel-y
  downwards; both are divided by 8. `padding` says what lies beyond the border.
- One step from s to s', with mask m, step size η and alive threshold θ. `E1` to `E12` number the
  equations in `docs/equations.md`, in the kernels and in the tests:

      E1   p_k = F_k * s per channel, the filters F_k on what `padding` shows
      E2   pre = [maxpool₃ₓ₃(s_alpha) > θ]
      E3   h = φ(W₁ p + b₁), Δ = W₂ h + b₂, with more or fewer layers as `hidden` says, φ the
           `activation`
      E4   m = [random < update_rate] in training mode, one draw per cell shared by its channels;
           m = 1 in eval mode
      E5   ŝ = s + m ⊙ η Δ, limited to `clamp` where m = 1
      E6   v = ŝ ⊙ pre
      E7   s' = v ⊙ [maxpool₃ₓ₃(ŝ_alpha) > θ]

  `alive` says which of the two tests there are. The pool wraps where `padding` is circular, and
  otherwise sees nothing beyond the border.
- Derivatives are autograd's. With g = ∂L/∂s', no gradient through masks and tests, they are:

      E8   ĝ = g ⊙ pre ⊙ [maxpool₃ₓ₃(ŝ_alpha) > θ], and 0 where `clamp` has changed ŝ
      E9   δ = η m ⊙ ĝ, ∂b₂ = Σ δ, ∂W₂ = Σ δ hᵀ
      E10  ∂h = (W₂ᵀ δ) ⊙ φ', for relu [h > 0], ∂W₁ = Σ ∂h pᵀ, ∂b₁ = Σ ∂h
      E11  ∂p = W₁ᵀ ∂h
      E12  ∂s = ĝ + Σ_k F_kᵀ ∂p_k, and of an input g + Σ_k F_kᵀ ∂p_k
"""

from itertools import pairwise

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from fastnca.life import game_of_life_step
from fastnca.masks import update_mask
from fastnca.rule import Rule
from fastnca.states import ALPHA, NUM_CHANNELS, create_seed, get_visible_state
from fastnca.targets import create_target_circle

__all__ = [
    "NUM_CHANNELS",
    "NeuralCA",
    "PerceptionModule",
    "create_seed",
    "create_target_circle",
    "game_of_life_step",
    "get_visible_state",
    "make_filters",
    "make_update_net",
    "sobel_filters",
]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
"""The modules of `Rule.activation`."""


def sobel_filters() -> Tensor:
    """Return the three perception filters, identity, Sobel-x / 8, Sobel-y / 8: `[3, 3, 3]`."""
    return torch.tensor(Rule().taps, dtype=torch.float32)


def make_filters(num_channels: int, rule: Rule) -> Tensor:
    """Return the filters of a rule for every channel: `[K*C, 1, 3, 3]` float32."""
    taps = torch.tensor(rule.taps, dtype=torch.float32)
    return taps.repeat(num_channels, 1, 1).view(-1, 1, 3, 3)


def make_update_net(num_channels: int, rule: Rule) -> nn.Sequential:
    """Return the update network of a rule (E3): 1x1 convolutions, activations between them.

    The last layer starts at zero, so that a new model changes nothing.
    """
    last = num_channels - rule.inputs
    widths = (num_channels * len(rule.filters), *rule.hidden, last)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Conv2d(before, after, 1), ACTIVATIONS[rule.activation]()]
    layers.append(nn.Conv2d(widths[-2], last, 1, bias=rule.final_bias))
    for zero in layers[-1].parameters():
        nn.init.zeros_(zero)
    return nn.Sequential(*layers)


class PerceptionModule(nn.Module):
    """Perceive the 3x3 neighbourhood of every channel through the filters of a rule (E1).

    Args:
        num_channels: channels C of the state.
        rule: filters, whether they learn, and padding; the tutorial's if None.

    Attributes:
        filters: `[K*C, 1, 3, 3]` float32 parameter; without gradient, as in the tutorial, unless
            the rule learns its filters.
        padding: what lies beyond the border.
    """

    def __init__(self, num_channels: int = NUM_CHANNELS, rule: Rule | None = None) -> None:
        super().__init__()
        rule = Rule() if rule is None else rule
        self.filters = nn.Parameter(make_filters(num_channels, rule), rule.learn_filters)
        self.num_channels = num_channels
        self.padding = rule.padding

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, K*C, H, W]`; output channel `K*c + k` is filter k of c."""
        if self.padding == "zeros":
            return F.conv2d(x, self.filters, padding=1, groups=self.num_channels)
        x = F.pad(x, (1, 1, 1, 1), mode=self.padding)
        return F.conv2d(x, self.filters, groups=self.num_channels)


class NeuralCA(nn.Module):
    """The tutorial's Neural Cellular Automaton.

    Args:
        num_channels: channels C of the state.
        hidden_dim: width of the hidden layer; a rule with other hidden layers may give them.
        rule: what a step computes; the tutorial's rule if None.

    Attributes:
        rule: the rule, with its hidden layers.
    """

    def __init__(
        self,
        num_channels: int = NUM_CHANNELS,
        hidden_dim: int = 128,
        *,
        rule: Rule | None = None,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.rule = (Rule() if rule is None else rule).with_hidden(hidden_dim)
        self.perception = PerceptionModule(num_channels, self.rule)
        self.update_net = make_update_net(num_channels, self.rule)

    def get_alive_mask(self, state: Tensor, threshold: float | None = None) -> Tensor:
        """Mark living cells (E2, E7): the largest alpha of 3x3 neighbours is above `threshold`.

        Args:
            state: `[B, C, H, W]`.
            threshold: exclusive lower limit of alpha; the rule's if None.

        Returns:
            `[B, 1, H, W]` of the state's dtype, 1.0 where alive.
        """
        alpha = state[:, ALPHA : ALPHA + 1, :, :]
        if self.rule.padding == "circular":
            alpha = F.pad(alpha, (1, 1, 1, 1), mode="circular")
            largest = F.max_pool2d(alpha, 3, stride=1)
        else:
            largest = F.max_pool2d(alpha, 3, stride=1, padding=1)
        alive = largest > (self.rule.alive_threshold if threshold is None else threshold)
        return alive.to(state.dtype)

    def _step(self, state: Tensor, mask: Tensor | float) -> Tensor:
        """Advance `state` by one step; `mask` is `[B, 1, H, W]` or 1.0, which is every cell."""
        rule = self.rule
        cells, inputs = state, None
        if rule.inputs:
            cells, inputs = state[:, : -rule.inputs], state[:, -rule.inputs :]
        alive = self.get_alive_mask(cells) if rule.alive_before else None  # E2
        delta = self.update_net(self.perception(state))  # E1, E3
        if rule.step_size != 1.0:
            delta = delta * rule.step_size
        updated = cells + delta * mask  # E5
        if rule.clamp is not None:
            limited = _clamp(updated, *rule.clamp)
            updated = limited if isinstance(mask, float) else torch.where(mask > 0, limited, cells)
        if rule.alive_after:
            after = self.get_alive_mask(updated)  # E7
            alive = after if alive is None else alive * after
        if alive is not None:
            updated = updated * alive  # E6, E7
        return updated if inputs is None else torch.cat((updated, inputs), 1)

    def forward(self, state: Tensor, update_rate: float = 0.5) -> Tensor:
        """Advance `[B, C, H, W]` by one step; in training mode the mask comes from torch's RNG."""
        mask: Tensor | float = 1.0
        if self.training:
            mask = (torch.rand_like(state[:, :1, :, :]) < update_rate).to(state.dtype)  # E4
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
                mask = update_mask(seed, step, state.shape, update_rate, state.device)  # E4
                state = self._step(state, mask.to(state.dtype))
            else:
                state = self(state, update_rate)
        return state


def _clamp(values: Tensor, low: float, high: float) -> Tensor:
    """Limit values (E5, E8); the gradient is 1 from limit to limit, as in `get_visible_state`."""
    inside = (values >= low) & (values <= high)
    return torch.where(inside, values, values.detach().clamp(low, high))
