"""Device functions for the flags of the alive test, packed eight cells to a word.

A step leaves two flags per cell, as bits of two words per row of a tile:

    updated   alpha of ŝ is above the threshold                                           (E5)
    kept      the same, and the cell was alive before the step                            (E6)

A word repeats the tiles to the left and right of its own: bits 0 to 7 are the tile on the left, 8
to 15 its own, 16 to 23 the one on the right. Five words hold the 5x5 neighbourhood of eight cells,
and a 3x3 dilation is a handful of shifts. Words are `[B, flag_rows, tile_columns]`. Two rows of
zeros above a grid, and at least two below it, stand for the padding of the max-pool; on a torus
nothing reads them.
"""

import triton
import triton.language as tl

from .status import PRE
from .tile import COLUMNS

MARGIN = tl.constexpr(2)
"""Rows of zeros above the first row of a grid."""

OWN = tl.constexpr(8)
"""Bit of the first cell of a word's own tile."""

REACH = tl.constexpr(0x3FFC0)
"""Bits of a word's own cells and of two cells on either side."""

ALL_FLAGS = tl.constexpr(0xFF | 0xFF << PRE.value)
"""Both flags of eight cells, as `pack_flags` packs them."""


@triton.jit
def first_word(sample, y, tile_column, flag_rows, tile_columns):
    """Return the offset of the word of flags of row y of a tile, int64."""
    return (sample.to(tl.int64) * flag_rows + y + MARGIN) * tile_columns + tile_column


@triton.jit
def load_words(flags_ptr):
    """Load words, `updated` and `kept`, int32, from pointers to pairs of them, int64."""
    pair = tl.load(flags_ptr)
    return pair.to(tl.int32), (pair >> 32).to(tl.int32)


@triton.jit
def _wrap(word, first, last, tile_column, width):
    """Put the cells of a torus that lie beyond its left and right border into a word.

    Args:
        word: int32 words of a row.
        first: words of the row's first tile, of which cells 0 and 1 continue the row.
        last: words of the row's last tile, of which cells W - 2 and W - 1 precede it.
        tile_column: number of the words' tile in the row.
        width: columns of the grid.
    """
    rest = width - tile_column * COLUMNS
    last_rest = (width - 1) % COLUMNS + 1
    right = ((first >> OWN) & 3) << tl.minimum(rest + OWN, 24)
    left = ((last >> (last_rest + (OWN - 2))) & 3) << (OWN - 2)
    word &= columns_inside(tile_column * COLUMNS, width)
    return word | right | tl.where(tile_column > 0, 0, left)


@triton.jit
def load_torus(plane_ptr, y, tile_column, width):
    """Load the words of a torus for one row of each cell's neighbourhood.

    Args:
        plane_ptr: pointer to the pair of words of a sample's row 0, tile column 0.
        y: rows, int32, in the grid.
        tile_column: number of the tile in its row.
        width: columns of the grid.

    Returns:
        Words `updated` and `kept`, int32, of the shape of `y`.
    """
    tile_columns = tl.cdiv(width, COLUMNS)
    row_ptr = plane_ptr + y * tile_columns
    updated, kept = load_words(row_ptr + tile_column)
    first_updated, first_kept = load_words(row_ptr)
    last_updated, last_kept = load_words(row_ptr + (tile_columns - 1))
    updated = _wrap(updated, first_updated, last_updated, tile_column, width)
    kept = _wrap(kept, first_kept, last_kept, tile_column, width)
    return updated, kept


@triton.jit
def dilate(above, here, below):
    """Dilate three rows of words to the 3x3 neighbourhoods of the middle row's cells."""
    column = above | here | below
    return column | (column << 1) | (column >> 1)


@triton.jit
def columns_inside(x, width):
    """Return the word whose bits mark the columns of a tile at `x` that lie in the grid."""
    right = (1 << tl.minimum(width - x + OWN, 3 * COLUMNS)) - 1
    return right & tl.where(x > 0, -1, -256)


@triton.jit
def pack_flags(found, HEIGHT: tl.constexpr):
    """Pack the flags of a tile row by row, `[HEIGHT]` int32, for `store_flags`.

    Args:
        found: `[HEIGHT * 8]` or `[HEIGHT * 8, CHANNELS]` int32, bit 0 is the flag `updated`, bit
            `PRE` the flag `kept`; of a cell's channels one at most has bits.
        HEIGHT: rows of the tile.
    """
    position = tl.arange(0, HEIGHT * COLUMNS) % COLUMNS
    if len(found.shape) == 2:
        position = position[:, None]
    return tl.sum(tl.reshape(found << position, (HEIGHT, found.numel // HEIGHT)), axis=1)


@triton.jit
def flag_rows_not_finite(packed, updated):
    """Set both flags of a row of a tile in which a value is not finite.

    Args:
        packed: `[HEIGHT]` int32, flags as `pack_flags` packs them.
        updated: `[HEIGHT * 8, CHANNELS]` float32, the updated state of the tile.

    Returns:
        `[HEIGHT]` int32.
    """
    height: tl.constexpr = packed.numel
    zeros = tl.reshape(updated * 0.0, (height, updated.numel // height))
    return tl.where(tl.sum(zeros, axis=1) == 0, packed, ALL_FLAGS)


@triton.jit
def store_flags(flags_ptr, offset, tile_column, tile_columns, packed, HEIGHT: tl.constexpr):
    """Store the flags of a tile, each byte in its own word and in the words beside it.

    Args:
        flags_ptr: pointer to pairs of words, int64.
        offset: offset of the pair of words of the tile's first row.
        tile_column: number of the tile in its row.
        tile_columns: tiles, and pairs, in a row.
        packed: `[HEIGHT]` int32, as `pack_flags` packs them.
        HEIGHT: rows of the tile.
    """
    own = flags_ptr.to(tl.pointer_type(tl.uint8))
    own += (offset + tl.arange(0, HEIGHT) * tile_columns) * 8
    own_column = tl.zeros((HEIGHT,), tl.int32) + tile_column
    for part in tl.static_range(2):
        value = (packed >> (part * PRE)).to(tl.uint8)
        tl.store(own + (4 * part + 1), value)
        tl.store(own + (4 * part + 8), value, mask=own_column + 1 < tile_columns)
        tl.store(own + (4 * part - 6), value, mask=own_column > 0)
