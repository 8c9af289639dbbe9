"""States `[B, C, H, W]`: the seed, the visible part, and damage.

Channels 0 to 3 are RGBA, the rest is hidden; channel 3 (alpha) decides which cells are alive.
"""

import operator
from functools import partial

import torch
from torch import Tensor

NUM_CHANNELS = 16
"""Channels of the tutorial's model: 4 visible (RGBA) and 12 hidden."""

ALPHA = 3
"""Index of the alpha channel."""

ALIVE_THRESHOLD = 0.1
"""A cell is alive when the largest alpha of its 3x3 neighbourhood is above this value."""

Size = int | tuple[int, int]
"""Size of a grid in cells: one number for a square, or `(height, width)`."""


def height_and_width(size: Size) -> tuple[int, int]:
    """Return the height and the width of a grid in cells.

    Raises:
        TypeError: the size is neither a whole number nor a pair of them.
        ValueError: a side is shorter than one cell.
    """
    sides = size if isinstance(size, tuple | list) else (size, size)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        raise TypeError(f"size must be an int or a pair (height, width), got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"a grid needs size >= 1, in height and in width, got {size}")
    return height, width


def size_of(states: Tensor) -> Size:
    """Return the size of a grid `[..., H, W]`: one number if it is square, else `(H, W)`."""
    height, width = states.shape[-2:]
    return height if height == width else (height, width)


def create_seed(
    size: Size,
    num_channels: int = NUM_CHANNELS,
    *,
    batch: int = 1,
    fill_hidden: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Create states that are zero except for one active cell at `(H // 2, W // 2)`.

    Args:
        size: of the grid in cells: one number for a square, or `(height, width)`; at least 1.
        num_channels: channels C, at least 4.
        batch: number of equal states B, at least 0.
        fill_hidden: False sets alpha to 1, as the tutorial does; True sets alpha and every
            hidden channel to 1, as "Growing Neural Cellular Automata" (Distill, 2020) does.
        device: where the state is made; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[B, C, H, W]`.

    Raises:
        TypeError: the size is neither an int nor a pair.
        ValueError: a size, channel count or batch is out of range.
    """
    height, width = height_and_width(size)
    if num_channels <= ALPHA or batch < 0:
        raise ValueError(
            "a seed needs num_channels >= 4 and batch >= 0, "
            f"got num_channels={num_channels}, batch={batch}"
        )
    state = torch.zeros(batch, num_channels, height, width, device=device, dtype=dtype)
    last = num_channels if fill_hidden else ALPHA + 1
    state[:, ALPHA:last, height // 2, width // 2] = 1.0
    return state


def make_seed_state(
    like: Tensor, num_channels: int, size: Size, *, start: str, fill_hidden: bool, inputs: int
) -> Tensor:
    """Create the seed that a recipe starts from, `[1, C, H, W]`.

    Args:
        like: whose dtype and device the seed has.
        num_channels: channels C.
        size: of the grid in cells.
        start: "cell" or "zeros", as in `TrainConfig`.
        fill_hidden: as in `create_seed`.
        inputs: how many channels, the last ones, are the rule's inputs; they are 0.
    """
    height, width = height_and_width(size)
    state = like.new_zeros(1, num_channels, height, width)
    if start == "cell":
        last = num_channels - inputs if fill_hidden else ALPHA + 1
        state[:, ALPHA:last, height // 2, width // 2] = 1.0
    return state


def clear_cells(states: Tensor, cells: Tensor, inputs: int = 0) -> Tensor:
    """Return `states` `[B, C, H, W]` with `cells` `[H, W]` bool set to zero.

    The last `inputs` channels, which are the inputs of a rule, stay as they are.
    """
    damaged = states.clone()
    damaged[:, : states.shape[1] - inputs].masked_fill_(cells.to(states.device), 0.0)
    return damaged


def texture_rgba(states: Tensor) -> Tensor:
    """Return the picture of a texture model's states: `[B, 4, H, W]`, RGBA in [0, 1], opaque.

    The colours are the first three channels of `[B, C, H, W]` plus 0.5, as in the published models
    of "Self-Organising Textures" (Niklasson et al., Distill 2021).
    """
    rgb = (states[:, :3] + 0.5).clamp(0, 1)
    return torch.cat([rgb, torch.ones_like(rgb[:, :1])], dim=1)


def get_visible_state(state: Tensor) -> Tensor:
    """Return the RGBA channels of `state` `[B, C, H, W]`, clamped to [0, 1]: `[B, 4, H, W]`.

    The gradient is 1 inside of the interval and at both ends, and 0 outside, on every torch.
    `torch.clamp` had that gradient for years; in torch 2.15 it is 0 at the ends, where all
    colours of a seed lie, so that the tutorial's own function stops its model from learning.
    """
    rgba = state[:, :4, :, :]
    inside = (rgba >= 0) & (rgba <= 1)
    return torch.where(inside, rgba, rgba.detach().clamp(0, 1))


def lives(states: Tensor) -> Tensor:
    """Tell which of `states` `[B, C, H, W]` have a living cell: `[B]` bool."""
    return (states[:, ALPHA] > ALIVE_THRESHOLD).flatten(1).any(1)


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    """Mark the cells of a rectangle.

    Args:
        height: grid height in cells.
        width: grid width in cells.
        box: `(top, left, bottom, right)` in cells, the last two exclusive.

    Returns:
        `[H, W]` bool, True inside.

    Raises:
        ValueError: the rectangle is empty or does not touch the grid.
    """
    top, left, bottom, right = box
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    if not inside.any():
        raise ValueError(
            f"the rectangle (top, left, bottom, right) = {box} covers no cell of a "
            f"{height}x{width} grid"
        )
    return inside


def middle_square(size: Size) -> tuple[int, int, int, int]:
    """Return the box of the tutorial's damage, 20 to 43 of 64 cells, on a grid of any size.

    On a grid that is no square the box is none either: it has the same share of each side.
    """
    sides = height_and_width(size)
    top, left = (side * 20 // 64 for side in sides)
    bottom, right = (max(side * 44 // 64, side * 20 // 64 + 1) for side in sides)
    return top, left, bottom, right


def disc(
    height: int,
    width: int,
    centers: Tensor,
    radii: Tensor,
) -> Tensor:
    """Mark the cells of one disc per state, in the Distill article's coordinates.

    A disc is round on every grid: its radius counts halves of the shorter side.

    Args:
        height: grid height in cells.
        width: grid width in cells.
        centers: `[B, 2]` float, `(y, x)`, -1 and 1 are the first and the last cell.
        radii: `[B]` float; 1 is half of the shorter side.

    Returns:
        `[B, H, W]` bool, True inside, on the device of `centers`.
    """
    axis = partial(torch.linspace, -1, 1, device=centers.device, dtype=centers.dtype)
    y = axis(steps=height)[None, :, None] - centers[:, 0, None, None]
    x = axis(steps=width)[None, None, :] - centers[:, 1, None, None]
    unit = max(min(height, width) - 1, 1)
    y, x = y * (max(height - 1, 1) / unit), x * (max(width - 1, 1) / unit)
    return torch.lt(x * x + y * y, (radii * radii)[:, None, None])
