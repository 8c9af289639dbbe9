"""Random damage of the regenerating recipe."""

import torch
from torch import Tensor

from fastnca.states import disc


def draw_discs(
    count: int,
    radius: tuple[float, float],
    offset: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw random discs, in half-widths of the grid.

    Centres are uniform in [-offset, offset]², radii between two given. The Distill article's
    notebook has radii of 0.1 to 0.4 and an offset of 0.5.

    Args:
        count: number of discs; 0 draws no random number.
        radius: smallest and largest radius.
        offset: largest distance of a centre from that of the grid, along each axis.
        generator: CPU generator; torch's default one if None.

    Returns:
        Centres `[count, 2]` and radii `[count]`, float32 on the CPU.
    """
    if count == 0:
        return torch.zeros(0, 2), torch.zeros(0)
    centers = (torch.rand(count, 2, generator=generator) - 0.5) * (2 * offset)
    smallest, largest = radius
    return centers, smallest + (largest - smallest) * torch.rand(count, generator=generator)


def cut_discs(states: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    """Zero one disc in each state.

    Args:
        states: `[B, C, H, W]`.
        centers: `[B, 2]`, as `fastnca.states.disc` takes them, on the states' device.
        radii: `[B]`, there too.

    Returns:
        `[B, C, H, W]`, a new tensor.
    """
    gone = disc(states.shape[2], states.shape[3], centers, radii)
    return states.masked_fill(gone[:, None], 0.0)
