"""Device functions that walk a persistent program over the tiles of a batch.

A tile is HEIGHT rows of eight cells. Tiles are numbered along a row of tiles, then down the grid,
then through the batch; program p takes tiles p, p + P, p + 2P, ... of P programs.
"""

import triton
import triton.language as tl

COLUMNS = tl.constexpr(8)
"""Columns of a tile."""


@triton.jit
def locate(tile, tile_columns, tile_rows):
    """Return sample, tile row and tile column of tile number `tile`."""
    tile_row = tile // tile_columns
    sample = tile_row // tile_rows
    return sample, tile_row - sample * tile_rows, tile - tile_row * tile_columns


@triton.jit
def advance(place, stride, tile_columns, tile_rows):
    """Add the distance from tile to tile, with carries; cheaper than dividing once more.

    Args:
        place: sample, tile row and tile column.
        stride: the same of the distance.
        tile_columns: tiles in a row.
        tile_rows: rows of tiles in a grid.
    """
    sample, tile_row, tile_column = place
    tile_column += stride[2]
    carry = (tile_column >= tile_columns).to(tl.int32)
    tile_column -= carry * tile_columns
    tile_row += stride[1] + carry
    carry = (tile_row >= tile_rows).to(tl.int32)
    return sample + stride[0] + carry, tile_row - carry * tile_rows, tile_column


@triton.jit
def steps_taken(counter_ptr, most):
    """Return how many steps a rollout takes: the third of its counter, within 0 and `most`."""
    return tl.minimum(tl.maximum(tl.load(counter_ptr + 2), 0), most).to(tl.int32)


@triton.jit
def cells_of(HEIGHT: tl.constexpr):
    """Return the row and the column within the tile of each of its cells, `[8 * HEIGHT]`."""
    cell = tl.arange(0, HEIGHT * COLUMNS)
    return cell // COLUMNS, cell % COLUMNS


@triton.jit
def first_cell(sample, y, x, height, width):
    """Return the number of cell (sample, y, x) in the batch, int64."""
    return (sample.to(tl.int64) * height + y) * width + x


@triton.jit
def first_number(sample, y, x, height, width, CHANNELS: tl.constexpr):
    """Return the offset of cell (sample, y, x) of channel 0 in `[B, CHANNELS, H, W]`, int64."""
    return first_cell(sample.to(tl.int64) * CHANNELS, y, x, height, width)


@triton.jit
def distances(y, x, height, width, pitch, CIRCULAR: tl.constexpr):
    """Return how far a cell's neighbours are from it: up, down, left and right, in cells.

    On a torus that depends on the cell, and the results are `[CELLS, 1]`; from the first row up, to
    the last one, is a negative distance.

    Args:
        y: `[CELLS]` row of each cell, in the grid.
        x: `[CELLS]` column of each cell, in the grid.
        height: rows of the grid.
        width: columns of the grid.
        pitch: cells from row to row.
        CIRCULAR: whether the grid is a torus.
    """
    if CIRCULAR:
        up = tl.where(y > 0, pitch, (1 - height) * pitch)
        down = tl.where(y < height - 1, pitch, (1 - height) * pitch)
        left = tl.where(x > 0, 1, 1 - width)
        right = tl.where(x < width - 1, 1, 1 - width)
        return up[:, None], down[:, None], left[:, None], right[:, None]
    else:
        return pitch, pitch, 1, 1


@triton.jit
def rows_around(base_ptr, offsets, steps, CELL: tl.constexpr):
    """Return pointers to the cells above, to the cells themselves, and to those below.

    Where the numbers of a cell lie apart each has an address of its own, which is one addition to
    the address of a row; where they lie together, rows are added to the few addresses.

    Args:
        base_ptr: pointer to the first cell of a tile.
        offsets: int32, offsets from there.
        steps: how far neighbours are up, down, left and right (`distances`).
        CELL: distance from cell to cell, in elements.
    """
    up, down = steps[0] * CELL, steps[1] * CELL
    pointers = base_ptr + offsets
    if CELL == 1:
        return base_ptr - up + offsets, pointers, base_ptr + down + offsets
    else:
        return pointers - up, pointers, pointers + down


@triton.jit
def neighbours_inside(y, x, height, width):
    """Test which cells of each 3x3 neighbourhood lie in the grid.

    Returns:
        Int32 of the shape of y and x together; bit 3 (dy + 1) + dx + 1 is neighbour (dy, dx).
    """
    columns = tl.where(_lies_below(x - 1, width), 1, 0) | tl.where(_lies_below(x, width), 2, 0)
    columns |= tl.where(_lies_below(x + 1, width), 4, 0)
    rows = tl.where(_lies_below(y - 1, height), 1, 0) | tl.where(_lies_below(y, height), 8, 0)
    rows |= tl.where(_lies_below(y + 1, height), 64, 0)
    return rows * columns


@triton.jit
def _lies_below(number, size):
    """Test whether 0 <= number < size."""
    return number.to(tl.uint32) < size.to(tl.uint32)


@triton.jit
def numbers_of(block, BLOCK: tl.constexpr):
    """Return the numbers of the elements of block number `block` of a flat array, int64."""
    return (tl.zeros((BLOCK,), tl.int64) + block) * BLOCK + tl.arange(0, BLOCK)
