"""Device functions for the perception filters and their transpose.

Sobel-x and Sobel-y are computed times eight; the weights that meet them carry the 1/8
(`weights.py`). With the corner differences d₁ = BR - TL and d₂ = TR - BL both filters share:

    8 Sx = d₁ + d₂ + 2 (R - L),   8 Sy = d₁ - d₂ + 2 (B - T)                     (equation 1)
"""

import triton
import triton.language as tl

from .alive import has


@triton.jit
def _neighbour(pointers, status, BIT: tl.constexpr):
    """Load the neighbours whose bit in `status` is set; zero for the others."""
    return tl.load(pointers, mask=has(status, BIT), other=0.0)


@triton.jit
def perceive(above, pointers, below, status, CELL: tl.constexpr):
    """Apply identity, 8 Sobel-x and 8 Sobel-y to every channel (equation 1).

    Args:
        above: `[CELLS, CHANNELS]` pointers to the cells above a tile of a state, float32.
        pointers: the same to its own cells.
        below: the same to the cells below.
        status: `[CELLS, CHANNELS]` int32, bits 0 to 8 the living cells of the neighbourhood
            (`around`).
        CELL: distance from cell to cell, in elements.

    Returns:
        Three `[CELLS, CHANNELS]` float32 tensors.
    """
    center = _neighbour(pointers, status, 4)
    falling = _neighbour(below + CELL, status, 8) - _neighbour(above - CELL, status, 0)
    rising = _neighbour(above + CELL, status, 2) - _neighbour(below - CELL, status, 6)
    across = _neighbour(pointers + CELL, status, 5) - _neighbour(pointers - CELL, status, 3)
    down = _neighbour(below, status, 7) - _neighbour(above, status, 1)
    return center, falling + rising + 2 * across, falling - rising + 2 * down


@triton.jit
def _split_pairs(pairs):
    """Take pairs apart, in float32."""
    return tl.split(tl.reshape(pairs.to(tl.float32), (pairs.shape[0], pairs.shape[1] // 2, 2)))


@triton.jit
def perceive_grad(pointers, pitch, CHANNELS: tl.constexpr):
    """Apply the transposed filters: minus 8 Sobel-x of pₓ, minus 8 Sobel-y of p_y (equation 12).

    Sobel filters are odd, so their transpose is their negative and a gather again. Differences
    are taken in the type of the pairs, which is the rounding of one more operand.

    Args:
        pointers: `[CELLS, 2 * CHANNELS]` pointers to a tile of the gradients of the Sobel
            features, x and y interleaved, in planes with a margin of zeros.
        pitch: distance from row to row, in elements.
        CHANNELS: padded channels.

    Returns:
        `[CELLS, CHANNELS]` float32.
    """
    top, bottom = pointers - pitch, pointers + pitch
    cell: tl.constexpr = 2 * CHANNELS
    falling_x, falling_y = _split_pairs(tl.load(top - cell) - tl.load(bottom + cell))
    rising_x, rising_y = _split_pairs(tl.load(top + cell) - tl.load(bottom - cell))
    across_x, _across_y = _split_pairs(tl.load(pointers - cell) - tl.load(pointers + cell))
    _down_x, down_y = _split_pairs(tl.load(top) - tl.load(bottom))
    corners = (falling_x + falling_y) + (rising_y - rising_x)
    return corners + 2 * (across_x + down_y)


@triton.jit
def gather_gradient(x_pointers, y_pointers, pitch, status):
    """Apply the transposed filters as `perceive_grad` does, to pₓ and p_y in planes of their own.

    Args:
        x_pointers: pointers to a tile of one channel of pₓ, float32.
        y_pointers: the same of p_y.
        pitch: distance from row to row, in elements.
        status: int32, bits 0 to 8 the neighbours in the grid (`around`).

    Returns:
        Float32, of the shape of the tile.
    """
    x_top, x_bottom = x_pointers - pitch, x_pointers + pitch
    y_top, y_bottom = y_pointers - pitch, y_pointers + pitch
    falling_x = _neighbour(x_top - 1, status, 0) - _neighbour(x_bottom + 1, status, 8)
    falling_y = _neighbour(y_top - 1, status, 0) - _neighbour(y_bottom + 1, status, 8)
    rising_x = _neighbour(x_top + 1, status, 2) - _neighbour(x_bottom - 1, status, 6)
    rising_y = _neighbour(y_top + 1, status, 2) - _neighbour(y_bottom - 1, status, 6)
    across_x = _neighbour(x_pointers - 1, status, 3) - _neighbour(x_pointers + 1, status, 5)
    down_y = _neighbour(y_top, status, 1) - _neighbour(y_bottom, status, 7)
    corners = (falling_x + falling_y) + (rising_y - rising_x)
    return corners + 2 * (across_x + down_y)


@triton.jit
def join_features(identity, sobel_x, sobel_y, DTYPE: tl.constexpr):
    """Interleave features, `[CELLS, 4 * CHANNELS]`: element 4c + k is feature k of channel c.

    Feature 3 is the constant 1, whose weights are the bias of the first layer (equation 3).
    The features are joined as integers of the same bits: nothing is computed by that, but it
    keeps the compiler from moving the joining into shared memory, where it fails for some layouts.
    """
    one = tl.full(identity.shape, 1.0, DTYPE)
    even = tl.join(_bits(identity.to(DTYPE)), _bits(sobel_y.to(DTYPE)))
    odd = tl.join(_bits(sobel_x.to(DTYPE)), _bits(one))
    joined = tl.reshape(tl.join(even, odd), (identity.shape[0], 4 * identity.shape[1]))
    return joined.to(DTYPE, bitcast=True)


@triton.jit
def _bits(values):
    """Return the bits of numbers as integers."""
    if values.dtype.primitive_bitwidth == 16:
        return values.to(tl.int16, bitcast=True)
    else:
        return values.to(tl.int32, bitcast=True)


@triton.jit
def rectify(hidden, DTYPE: tl.constexpr):
    """Apply ReLU and round to `DTYPE`; on packed halves where the type has a packed maximum.

    NaN stays NaN, as in `torch.relu`. The maximum of a GPU would return its other argument.
    """
    keep_nan: tl.constexpr = tl.PropagateNan.ALL
    if tl.float16 == DTYPE:
        return tl.maximum(hidden.to(DTYPE), 0, propagate_nan=keep_nan)
    else:
        return tl.maximum(hidden, 0.0, propagate_nan=keep_nan).to(DTYPE)


@triton.jit
def split_features(features, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Take identity, Sobel-x and Sobel-y apart again; the constant feature is dropped."""
    even, odd = tl.split(tl.reshape(features, (CELLS, CHANNELS, 2, 2)))
    identity, sobel_y = tl.split(even)
    sobel_x, _ = tl.split(odd)
    return identity, sobel_x, sobel_y
