"""Device functions for the alive test within a tile, whose cells are the bits of a few words.

Cell n of a tile, row n div 8 and column n mod 8, is bit n mod 32 of word n div 32. A 3x3 dilation
is a handful of shifts. Columns run into one another at the ends of a row, and the first and the
last row of a tile into each other: the outermost cells, the ring, mean nothing afterwards.
"""

import triton
import triton.language as tl

from .tile import COLUMNS


@triton.jit
def gather_bits(found, CELLS: tl.constexpr):
    """Return the words of a tile, `[CELLS // 32]` uint32.

    Args:
        found: `[CELLS]` or `[CELLS, CHANNELS]` booleans, at most one of a cell's is set.
        CELLS: cells of the tile.
    """
    words: tl.constexpr = CELLS // 32
    position = tl.arange(0, CELLS) % 32
    if len(found.shape) == 2:
        position = position[:, None]
    bits = tl.reshape(found.to(tl.int32) << position, (words, found.numel // words))
    return tl.sum(bits, axis=1).to(tl.uint32)


@triton.jit
def dilate_bits(words, CELLS: tl.constexpr):
    """Test for each cell of a tile whether its 3x3 neighbourhood has a bit, `[CELLS]` int32."""
    count: tl.constexpr = CELLS // 32
    cell = tl.arange(0, CELLS)
    word = cell // 32
    here = tl.gather(words, word, axis=0)
    before = tl.gather(words, (word + (count - 1)) % count, axis=0)
    after = tl.gather(words, (word + 1) % count, axis=0)
    rows = (
        here
        | (here << COLUMNS)
        | (before >> (32 - COLUMNS))
        | (here >> COLUMNS)
        | (after << (32 - COLUMNS))
    )
    rows |= (rows << 1) | (rows >> 1)
    return (rows >> (cell % 32).to(tl.uint32)).to(tl.int32) & 1
