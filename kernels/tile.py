"""Device functions that walk a persistent program over the tiles of a batch.

A tile is HEIGHT rows of one run of eight cells. Tiles are numbered along a row of runs, then down
the grid, then through the batch; program p takes tiles p, p + P, p + 2P, ... of P programs.
"""

import triton
import triton.language as tl

from .alive import MARGIN, RUN


@triton.jit
def locate(tile, runs, strips):
    """Return grid, strip and run of tile number `tile`; a strip is one row of tiles."""
    strip = tile // runs
    grid = strip // strips
    return grid, strip - grid * strips, tile - strip * runs


@triton.jit
def advance(grid, strip, run, step_grid, step_strip, step_run, runs, strips):
    """Add the distance from tile to tile, with carries; cheaper than dividing once more."""
    run += step_run
    carry = (run >= runs).to(tl.int32)
    run -= carry * runs
    strip += step_strip + carry
    carry = (strip >= strips).to(tl.int32)
    return grid + step_grid + carry, strip - carry * strips, run


@triton.jit
def cells_of(HEIGHT: tl.constexpr):
    """Return the row and the column within the tile of each of its cells, `[8 * HEIGHT]`."""
    cell = tl.arange(0, HEIGHT * RUN)
    return cell // RUN, cell % RUN


@triton.jit
def first_cell(grid, y, x, height, width):
    """Return the number of cell (grid, y, x) in the batch, int64."""
    return (grid.to(tl.int64) * height + y) * width + x


@triton.jit
def first_number(grid, y, x, height, width, CHANNELS: tl.constexpr):
    """Return the offset of cell (grid, y, x) of channel 0 in `[B, CHANNELS, H, W]`, int64."""
    return first_cell(grid.to(tl.int64) * CHANNELS, y, x, height, width)


@triton.jit
def first_word(grid, y, run, flag_rows, runs):
    """Return the offset of the word of flags of a run, int64."""
    return (grid.to(tl.int64) * flag_rows + y + MARGIN) * runs + run


@triton.jit
def any_kept(flags_ptr, word, runs, HEIGHT: tl.constexpr):
    """Test whether a cell within two cells of a tile can have alpha above the threshold.

    Where none has, no cell of the tile nor of its ring is alive before the step: the tile becomes
    zero and its flags keep no cell alive, so a step may skip it and stay exact.
    """
    tl.static_assert(HEIGHT + 2 * MARGIN <= 32)
    row = tl.arange(0, 32)  # each warp looks at all rows, so its threads agree without waiting
    pair_ptr = flags_ptr + word + (row - MARGIN) * runs
    pair = tl.load(pair_ptr, mask=row < HEIGHT + 2 * MARGIN, other=0)
    reach: tl.constexpr = 0x3FFC0  # two cells on either side of the word's own run
    return tl.max((pair >> 32).to(tl.int32) & reach, axis=0) != 0


@triton.jit
def numbers_of(block, BLOCK: tl.constexpr):
    """Return the numbers of the elements of block number `block` of a flat array, int64."""
    return (tl.zeros((BLOCK,), tl.int64) + block) * BLOCK + tl.arange(0, BLOCK)
