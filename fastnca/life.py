"""Conway's Game of Life: the tutorial's classical cellular automaton."""

import torch
import torch.nn.functional as F
from torch import Tensor


def game_of_life_step(grid: Tensor) -> Tensor:
    """Advance a Game of Life grid by one step; cells beyond the border are dead.

    Args:
        grid: `[H, W]`, any real or bool dtype, any device; 1 (True) is alive, 0 is dead.

    Returns:
        `[H, W]` float32 on the grid's device, 1.0 where a cell is alive after the step.

    Raises:
        ValueError: the grid does not have two dimensions, or has no cell.
    """
    if grid.dim() != 2 or grid.numel() == 0:
        raise ValueError(
            f"grid must have shape [height, width] with at least one cell, got {list(grid.shape)}"
        )
    kernel = torch.tensor([[1.0, 1, 1], [1, 0, 1], [1, 1, 1]], device=grid.device).view(1, 1, 3, 3)
    neighbours = F.conv2d(grid.float()[None, None], kernel, padding=1)[0, 0]
    birth = (grid == 0) & (neighbours == 3)
    survive = (grid == 1) & ((neighbours == 2) | (neighbours == 3))
    return (birth | survive).float()
