"""Device functions for the alive test, on flags packed eight cells to a word.

A step leaves two flags per cell, as bits of two words per run of eight cells:

    updated   alpha of ŝ is above the threshold                                  (equation 5)
    kept      the same, and the cell was alive before the step

A word repeats the runs to the left and right of its own: bits 0 to 7 are the left run, 8 to 15
its own, 16 to 23 the right run. Five words hold the 5x5 neighbourhood of every cell of a run,
and a 3x3 dilation is a handful of shifts. Runs are numbered `[B, rows, runs]`; two rows of zeros
above the grid, and at least two below it, stand for the padding of the max-pool.
"""

import triton
import triton.language as tl

RUN = tl.constexpr(8)
"""Cells per run, and the width of a tile."""

MARGIN = tl.constexpr(2)
"""Rows of zeros above the first row of a grid."""

OWN = tl.constexpr(8)
"""Bit of the first cell of a word's own run."""

HERE = tl.constexpr(4)
"""Bit of a cell's status: the cell itself. Bits 0 to 8 are its neighbourhood."""

PRE = tl.constexpr(9)
"""Bit of a cell's status: alive before the step."""

UPDATE = tl.constexpr(10)
"""Bit of a cell's status: takes part in the step."""

INSIDE = tl.constexpr(11)
"""Bit of a cell's status: lies in the grid."""

ALL_FLAGS = tl.constexpr(0xFF | 0xFF << PRE.value)
"""Both flags of eight cells, as `pack_flags` packs them."""


@triton.jit
def load_flags(flags_ptr, offsets, pitch):
    """Load the words of one row of flags below `offsets`, `pitch` words from row to row.

    Args:
        flags_ptr: pointer to pairs of words, int64; `updated` is the low word.
        offsets: `[CELLS]` offset of each cell's pair of words.
        pitch: distance to the wanted row, in pairs.

    Returns:
        Words `updated` and `kept`, `[CELLS]` int32.
    """
    pair = tl.load(flags_ptr + offsets + pitch)
    return pair.to(tl.int32), (pair >> 32).to(tl.int32)


@triton.jit
def dilate(above, here, below):
    """Dilate three rows of words to the 3x3 neighbourhoods of the middle row's cells."""
    column = above | here | below
    return column | (column << 1) | (column >> 1)


@triton.jit
def around(above, here, below, position):
    """Gather the 3x3 neighbourhood of each cell: bit 3 (dy + 1) + dx + 1 is neighbour (dy, dx).

    Args:
        above: `[CELLS]` word of the row above each cell.
        here: the same for the cell's own row.
        below: the same for the row below.
        position: `[CELLS]` bit of each cell in its word.

    Returns:
        `[CELLS]` int32, nine bits.
    """
    first = position - 1
    upper = (above >> first) & 7
    middle = (here >> first) & 7
    lower = (below >> first) & 7
    return upper | (middle << 3) | (lower << 6)


@triton.jit
def unite(first, second):
    """Return `first | second` of words that share no bit, computed once per cell.

    Without the reduction the compiler would repeat everything that leads to a status word in
    each layout that tests its bits, four to eight threads a cell; it cannot look through a sum
    over rows, so it moves this one word between the layouts instead.
    """
    return tl.sum(tl.trans(tl.join(first, second)), axis=0)


@triton.jit
def of_channels(word, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Repeat a word per cell for every channel, `[CELLS, PADDED]`; padded channels have no bit.

    The comparison is there even if there are none: it keeps the compiler from testing bits per
    cell, which it would do in one layout and move, bit by bit, to the other.
    """
    return tl.where((tl.arange(0, PADDED) < CHANNELS)[None, :], word[:, None], 0)


@triton.jit
def has(word, BIT: tl.constexpr):
    """Test bit `BIT` of each word."""
    return ((word >> BIT) & 1) != 0


@triton.jit
def is_finite(values):
    """Test which values are neither infinite nor NaN."""
    return tl.abs(values) < float("inf")


@triton.jit
def is_visible(alpha, threshold):
    """Test which alpha are above the threshold, or not finite."""
    return ((alpha <= threshold) & (alpha > float("-inf"))) == 0


@triton.jit
def columns_inside(x, width):
    """Return the word whose bits mark the columns of a run at `x` that lie in the grid."""
    right = (1 << tl.minimum(width - x + OWN, 3 * RUN)) - 1
    return right & tl.where(x > 0, -1, -256)


@triton.jit
def rows_inside(y, x, height, width):
    """Return the words above, at and below row `y` that mark the cells in the grid.

    Args:
        y: `[CELLS]` row of each cell.
        x: first column of the run.
        height: rows of the grid.
        width: columns of the grid.
    """
    columns = columns_inside(x, width)
    above = tl.where((y > 0) & (y <= height), columns, 0)
    here = tl.where(y < height, columns, 0)
    below = tl.where(y + 1 < height, columns, 0)
    return above, here, below


@triton.jit
def alive_rows(flags_ptr, offsets, pitch, inside_above, inside_here, inside_below, position):
    """Find the living cells around each cell of a stored state, and the test before its step.

    The stored state v is ŝ ⊙ pre of the step before (equation 6); a cell of it counts only where
    the dilated `updated` flags have a bit (equation 7). `kept` and alive together say that a
    cell's alpha is above the threshold, so their dilation is the next alive test (equation 2).

    Args:
        flags_ptr: flags of the stored state.
        offsets: `[CELLS]` offset of each cell's word.
        pitch: words from row to row.
        inside_above: `[CELLS]` word of the row above that marks the cells in the grid.
        inside_here: the same for the cell's own row.
        inside_below: the same for the row below.
        position: `[CELLS]` bit of each cell in its word.

    Returns:
        `[CELLS]` int32: the living cells of each neighbourhood as in `around`, and bit `PRE`
        where the cell is alive before the step.
    """
    updated_0, _ = load_flags(flags_ptr, offsets, -2 * pitch)
    updated_1, kept_1 = load_flags(flags_ptr, offsets, -pitch)
    updated_2, kept_2 = load_flags(flags_ptr, offsets, 0)
    updated_3, kept_3 = load_flags(flags_ptr, offsets, pitch)
    updated_4, _ = load_flags(flags_ptr, offsets, 2 * pitch)
    above = dilate(updated_0, updated_1, updated_2) & inside_above
    here = dilate(updated_1, updated_2, updated_3) & inside_here
    below = dilate(updated_2, updated_3, updated_4) & inside_below
    pre = dilate(above & kept_1, here & kept_2, below & kept_3)
    pre = (pre & inside_here) >> position
    return around(above, here, below, position) | ((pre & 1) << PRE)


@triton.jit
def pack_flags(found, HEIGHT: tl.constexpr):
    """Pack the flags of a tile row by row, `[HEIGHT]` int32, for `store_flags`.

    Args:
        found: `[HEIGHT * 8]` or `[HEIGHT * 8, CHANNELS]` int32, bit 0 is the flag `updated`, bit
            `PRE` the flag `kept`; of a cell's channels one at most has bits.
        HEIGHT: rows of the tile.
    """
    position = tl.arange(0, HEIGHT * RUN) % RUN
    if len(found.shape) == 2:
        position = position[:, None]
    return tl.sum(tl.reshape(found << position, (HEIGHT, found.numel // HEIGHT)), axis=1)


@triton.jit
def flag_runs_not_finite(packed, updated):
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
def store_flags(flags_ptr, offset, pitch, run, runs, packed, HEIGHT: tl.constexpr):
    """Store the flags of a tile, each byte in its own word and in the words beside it.

    Args:
        flags_ptr: pointer to pairs of words, int64.
        offset: offset of the pair of words of the tile's first row.
        pitch: pairs from row to row.
        run: number of the tile's run within a row.
        runs: runs in a row.
        packed: `[HEIGHT]` int32, as `pack_flags` packs them.
        HEIGHT: rows of the tile.
    """
    own = flags_ptr.to(tl.pointer_type(tl.uint8)) + (offset + tl.arange(0, HEIGHT) * pitch) * 8
    own_run = tl.zeros((HEIGHT,), tl.int32) + run
    for part in tl.static_range(2):
        value = (packed >> (part * PRE)).to(tl.uint8)
        tl.store(own + (4 * part + 1), value)
        tl.store(own + (4 * part + 8), value, mask=own_run + 1 < runs)
        tl.store(own + (4 * part - 6), value, mask=own_run > 0)
