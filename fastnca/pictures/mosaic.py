"""Many states in one picture."""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastnca.pictures.render import to_pixels

_GAP = 1  # pixels between two states
_GREY = 200


def encode_mosaic(states: Tensor, *, columns: int | None = None, scale: int = 2) -> bytes:
    """Show states beside each other, in rows.

    Args:
        states: `[N, C, H, W]`, at least one.
        columns: states in a row; as many as make a square if None.
        scale: pixels per cell and axis.

    Returns:
        The content of a PNG file.

    Raises:
        ValueError: there is no state.
    """
    if not len(states):
        raise ValueError("a mosaic needs at least one state")
    columns = columns or math.ceil(math.sqrt(len(states)))
    rows = math.ceil(len(states) / columns)
    height, width = (size * scale + _GAP for size in states.shape[2:])
    canvas = np.full((rows * height + _GAP, columns * width + _GAP, 3), _GREY, np.uint8)
    for number, state in enumerate(states):
        top, left = (number // columns) * height + _GAP, (number % columns) * width + _GAP
        pixels = to_pixels(state[None]).repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + height - _GAP, left : left + width - _GAP] = pixels
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, format="PNG", optimize=True)
    return file.getvalue()


def choose_rows(total: int, count: int = 64) -> Tensor:
    """Return at most `count` evenly spaced numbers below `total`, `[n]` int64."""
    count = min(count, total)
    return torch.arange(count) * total // count
