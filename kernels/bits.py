"""Device functions for the alive test within a tile, whose cells are the bits of two words.

Cell n of a tile, row n div 8 and column n mod 8, is bit n mod 64 of word n div 64. A 3x3 dilation
is a handful of shifts. Columns run into one another at the ends of a row, and nothing comes in
from outside of the tile: the outermost cells, the ring, mean nothing afterwards.
"""

import triton
import triton.language as tl

from .alive import RUN


@triton.jit
def gather_bits(found, CELLS: tl.constexpr):
    """Return the two words, uint64 scalars, of a tile `[CELLS]` of booleans, CELLS at most 128."""
    bits = found.to(tl.uint64) << (tl.arange(0, CELLS) % 64).to(tl.uint64)
    if CELLS == 128:
        return tl.split(tl.sum(tl.reshape(bits, (2, 64)), axis=1))
    else:
        low = tl.sum(bits, axis=0)
        return low, tl.zeros_like(low)


@triton.jit
def dilate_bits(low, high):
    """Dilate the two words of a tile to the 3x3 neighbourhoods of its cells."""
    above, below = low << RUN, (low >> RUN) | (high << (64 - RUN))
    high_above, high_below = (high << RUN) | (low >> (64 - RUN)), high >> RUN
    low, high = low | above | below, high | high_above | high_below
    return low | (low << 1) | (low >> 1), high | (high << 1) | (high >> 1)


@triton.jit
def test_bits(low, high, CELLS: tl.constexpr):
    """Return the bit of each cell of a tile, `[CELLS]` int32."""
    cell = tl.arange(0, CELLS)
    word = tl.where(cell < 64, low, high) >> (cell % 64).to(tl.uint64)
    return word.to(tl.int32) & 1
