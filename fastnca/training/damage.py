"""Random damage of the regenerating recipe."""

import torch
from torch import Tensor

from fastnca.states import disc


def damage_discs(states: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Zero one random disc in each state, as the Distill article's notebook does.

    Centres are uniform in [-0.5, 0.5]², radii in [0.1, 0.4], in half-widths of the grid.

    Args:
        states: `[B, C, H, W]`.
        generator: CPU generator; torch's default one if None.

    Returns:
        `[B, C, H, W]`, a new tensor.
    """
    batch = states.shape[0]
    centers = torch.rand(batch, 2, generator=generator) - 0.5
    radii = 0.1 + 0.3 * torch.rand(batch, generator=generator)
    gone = disc(states.shape[2], states.shape[3], centers, radii).to(states.device)
    return states.masked_fill(gone[:, None], 0.0)
