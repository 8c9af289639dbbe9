"""Device functions for the perception filters and their transpose.

Sobel-x and Sobel-y are computed times eight; the weights that meet them carry the 1/8
(`weights.py`). With the corner differences d₁ = BR - TL and d₂ = TR - BL both filters share:

    8 Sx = d₁ + d₂ + 2 (R - L),   8 Sy = d₁ - d₂ + 2 (B - T)                     (equation 1)
"""

import triton
import triton.language as tl

from .alive import has


@triton.jit
def _neighbour(plane_ptr, offsets, word, position):
    """Load the cells at `offsets` whose bit in `word` is set; zero elsewhere."""
    return tl.load(plane_ptr + offsets, mask=has(word, position)[:, None], other=0.0)


@triton.jit
def perceive(state_ptr, offsets, pitch, above, here, below, position, CHANNELS: tl.constexpr):
    """Apply identity, 8 Sobel-x and 8 Sobel-y to every channel (equation 1).

    Args:
        state_ptr: a stored state, `[cells, CHANNELS]` float32.
        offsets: `[CELLS, CHANNELS]` offset of each element.
        pitch: distance from row to row, in elements.
        above: `[CELLS]` word of the living cells in the row above.
        here: the same for the cell's own row.
        below: the same for the row below.
        position: `[CELLS]` bit of each cell in its word.
        CHANNELS: padded channels.

    Returns:
        Three `[CELLS, CHANNELS]` float32 tensors.
    """
    top, bottom = offsets - pitch, offsets + pitch
    left, right = position - 1, position + 1
    center = _neighbour(state_ptr, offsets, here, position)
    top_left = _neighbour(state_ptr, top - CHANNELS, above, left)
    bottom_right = _neighbour(state_ptr, bottom + CHANNELS, below, right)
    falling = bottom_right - top_left
    top_right = _neighbour(state_ptr, top + CHANNELS, above, right)
    bottom_left = _neighbour(state_ptr, bottom - CHANNELS, below, left)
    rising = top_right - bottom_left
    across = _neighbour(state_ptr, offsets + CHANNELS, here, right)
    across -= _neighbour(state_ptr, offsets - CHANNELS, here, left)
    down = _neighbour(state_ptr, bottom, below, position)
    down -= _neighbour(state_ptr, top, above, position)
    return center, falling + rising + 2 * across, falling - rising + 2 * down


@triton.jit
def _pair(plane_ptr, offsets, word, position, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Load the pairs at `offsets`, zero outside of the grid, as two float32 tensors."""
    pair = _neighbour(plane_ptr, offsets, word, position)
    return tl.split(tl.reshape(pair.to(tl.float32), (CELLS, CHANNELS, 2)))


@triton.jit
def perceive_grad(
    pair_ptr,
    offsets,
    pitch,
    above,
    here,
    below,
    position,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Apply the transposed filters: minus 8 Sobel-x of pₓ, minus 8 Sobel-y of p_y (equation 12).

    Sobel filters are odd, so their transpose is their negative and a gather again.

    Args:
        pair_ptr: gradients of the Sobel features, `[cells, CHANNELS, 2]`, x and y interleaved.
        offsets: `[CELLS, 2 * CHANNELS]` offset of each element.
        pitch: distance from row to row, in elements.
        above: `[CELLS]` word of the cells of the row above that lie in the grid.
        here: the same for the cell's own row.
        below: the same for the row below.
        position: `[CELLS]` bit of each cell in its word.
        CELLS: cells of the tile.
        CHANNELS: padded channels.

    Returns:
        `[CELLS, CHANNELS]` float32.
    """
    top, bottom = offsets - pitch, offsets + pitch
    left, right = position - 1, position + 1
    step = 2 * CHANNELS
    x, y = _pair(pair_ptr, top - step, above, left, CELLS, CHANNELS)
    received = x + y
    x, y = _pair(pair_ptr, top + step, above, right, CELLS, CHANNELS)
    received += y - x
    x, y = _pair(pair_ptr, bottom - step, below, left, CELLS, CHANNELS)
    received += x - y
    x, y = _pair(pair_ptr, bottom + step, below, right, CELLS, CHANNELS)
    received -= x + y
    x, _ = _pair(pair_ptr, offsets - step, here, left, CELLS, CHANNELS)
    x_right, _ = _pair(pair_ptr, offsets + step, here, right, CELLS, CHANNELS)
    _, y = _pair(pair_ptr, top, above, position, CELLS, CHANNELS)
    _, y_bottom = _pair(pair_ptr, bottom, below, position, CELLS, CHANNELS)
    return received + 2 * ((x - x_right) + (y - y_bottom))


@triton.jit
def join_features(identity, sobel_x, sobel_y, DTYPE: tl.constexpr):
    """Interleave features, `[CELLS, 4 * CHANNELS]`: element 4c + k is feature k of channel c.

    Feature 3 is the constant 1, whose weights are the bias of the first layer (equation 3).
    """
    identity, sobel_x, sobel_y = identity.to(DTYPE), sobel_x.to(DTYPE), sobel_y.to(DTYPE)
    one = tl.full(identity.shape, 1.0, DTYPE)
    joined = tl.join(tl.join(identity, sobel_y), tl.join(sobel_x, one))
    return tl.reshape(joined, (identity.shape[0], 4 * identity.shape[1]))


@triton.jit
def split_features(features, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Take identity, Sobel-x and Sobel-y apart again; the constant feature is dropped."""
    even, odd = tl.split(tl.reshape(features, (CELLS, CHANNELS, 2, 2)))
    identity, sobel_y = tl.split(even)
    sobel_x, _ = tl.split(odd)
    return identity, sobel_x, sobel_y
