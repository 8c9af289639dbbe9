"""Device functions for the alive test: before a step, after it, and whether a tile needs either."""

import triton
import triton.language as tl

from .flags import MARGIN, OWN, REACH, columns_inside, dilate, first_word, load_torus, load_words
from .status import GRID, INSIDE, PRE
from .tile import COLUMNS, cells_of, neighbours_inside


@triton.jit
def _around(above, here, below, position):
    """Gather the nine bits of a status from three rows of words.

    Args:
        above: `[CELLS]` word of the row above each cell.
        here: the same for the cell's own row.
        below: the same for the row below.
        position: `[CELLS]` bit of each cell in its word.
    """
    first = position - 1
    upper = (above >> first) & 7
    middle = (here >> first) & 7
    lower = (below >> first) & 7
    return upper | (middle << 3) | (lower << 6)


@triton.jit
def _rows_inside(y, x, height, width):
    """Return the words above, at and below rows `y` `[CELLS]` that mark the cells in the grid."""
    columns = columns_inside(x, width)
    above = tl.where((y > 0) & (y <= height), columns, 0)
    here = tl.where(y < height, columns, 0)
    below = tl.where(y + 1 < height, columns, 0)
    return above, here, below


@triton.jit
def _row_above(y, height):
    """Return the row above row y of a torus."""
    return tl.where(y > 0, y, height) - 1


@triton.jit
def _row_below(y, height):
    """Return the row below row y of a torus."""
    return tl.where(y + 1 < height, y + 1, 0)


@triton.jit
def look_around(
    flags_ptr, place, size, RULE: tl.constexpr, HEIGHT: tl.constexpr, FORWARD: tl.constexpr
):
    """Find the status of each cell of a tile before its step (E2).

    The stored state v is ŝ · pre of the step before (E6). A cell of it counts only where the
    dilated `updated` flags have a bit (E7). `kept` and alive together say that a cell's alpha is
    above the threshold, so their dilation is the next alive test (E2).

    Args:
        flags_ptr: pointer to the flags of the stored state, `[B, flag_rows, tile_columns]`.
        place: sample, tile row and tile column.
        size: height, width and flag rows.
        RULE: the rule.
        HEIGHT: rows of a tile.
        FORWARD: whether `INSIDE` is wanted.

    Returns:
        `[CELLS]` int32: neighbours, `PRE`, `INSIDE` and, where input channels need it, `GRID`.
    """
    sample, tile_row, tile_column = place
    height, width, flag_rows = size
    row, column = cells_of(HEIGHT)
    y, x0 = tile_row * HEIGHT + row, tile_column * COLUMNS
    position = column + OWN
    if RULE.alive:
        tile_columns = tl.cdiv(width, COLUMNS)
        if RULE.circular:
            word = first_word(sample, 0, 0, flag_rows, tile_columns)
            plane_ptr = flags_ptr + word
            inside = ((y < height) & (x0 + column < width)).to(tl.int32) << position
            y_2 = tl.where(y < height, y, 0)
            y_1, y_3 = _row_above(y_2, height), _row_below(y_2, height)
            y_0, y_4 = _row_above(y_1, height), _row_below(y_3, height)
            updated_0, _ = load_torus(plane_ptr, y_0, tile_column, width)
            updated_1, kept_1 = load_torus(plane_ptr, y_1, tile_column, width)
            updated_2, kept_2 = load_torus(plane_ptr, y_2, tile_column, width)
            updated_3, kept_3 = load_torus(plane_ptr, y_3, tile_column, width)
            updated_4, _ = load_torus(plane_ptr, y_4, tile_column, width)
            above = dilate(updated_0, updated_1, updated_2)
            here = dilate(updated_1, updated_2, updated_3)
            below = dilate(updated_2, updated_3, updated_4)
        else:
            word = first_word(sample, tile_row * HEIGHT, tile_column, flag_rows, tile_columns)
            inside_above, inside_here, inside_below = _rows_inside(y, x0, height, width)
            words_ptr = flags_ptr + word + row * tile_columns
            updated_0, _ = load_words(words_ptr - 2 * tile_columns)
            updated_1, kept_1 = load_words(words_ptr - tile_columns)
            updated_2, kept_2 = load_words(words_ptr)
            updated_3, kept_3 = load_words(words_ptr + tile_columns)
            updated_4, _ = load_words(words_ptr + 2 * tile_columns)
            above = dilate(updated_0, updated_1, updated_2) & inside_above
            here = dilate(updated_1, updated_2, updated_3) & inside_here
            below = dilate(updated_2, updated_3, updated_4) & inside_below
            inside = inside_here
        pre = dilate(above & kept_1, here & kept_2, below & kept_3)
        pre = (pre & inside) >> position
        status = _around(above, here, below, position) | ((pre & 1) << PRE)
        if FORWARD:
            status |= ((inside >> position) & 1) << INSIDE
        if RULE.first_input > 0:
            neighbours = _in_grid(y, x0 + column, height, width, RULE)
            status |= tl.where((y < height) & (x0 + column < width), neighbours, 0) << GRID
        return status
    else:
        inside = ((y < height) & (x0 + column < width)).to(tl.int32)
        status = _in_grid(y, x0 + column, height, width, RULE)
        return status | (inside << PRE) | (inside << INSIDE)


@triton.jit
def _in_grid(y, x, height, width, RULE: tl.constexpr):
    """Return the nine bits of the neighbours that are in the grid; on a torus all are."""
    if RULE.circular:
        return tl.full(y.shape, 511, tl.int32)
    else:
        return neighbours_inside(y, x, height, width)


@triton.jit
def survivors(flags_ptr, place, size, RULE: tl.constexpr, HEIGHT: tl.constexpr):
    """Test which cells of a tile are alive after the step that left these flags (E7).

    Args:
        flags_ptr: as in `look_around`.
        place: sample, tile row and tile column.
        size: height, width and flag rows.
        RULE: the rule.
        HEIGHT: rows of a tile.

    Returns:
        `[CELLS]` int32, 0 or 1; meaningless beyond the border.
    """
    sample, tile_row, tile_column = place
    height, width, flag_rows = size
    tile_columns = tl.cdiv(width, COLUMNS)
    row, column = cells_of(HEIGHT)
    if RULE.circular:
        plane_ptr = flags_ptr + first_word(sample, 0, 0, flag_rows, tile_columns)
        y = tile_row * HEIGHT + row
        y = tl.where(y < height, y, 0)
        above, _ = load_torus(plane_ptr, _row_above(y, height), tile_column, width)
        here, _ = load_torus(plane_ptr, y, tile_column, width)
        below, _ = load_torus(plane_ptr, _row_below(y, height), tile_column, width)
    else:
        word = first_word(sample, tile_row * HEIGHT, tile_column, flag_rows, tile_columns)
        words_ptr = flags_ptr + word + row * tile_columns
        above, _ = load_words(words_ptr - tile_columns)
        here, _ = load_words(words_ptr)
        below, _ = load_words(words_ptr + tile_columns)
    return (dilate(above, here, below) >> (column + OWN)) & 1


@triton.jit
def may_live(flags_ptr, place, size, RULE: tl.constexpr, HEIGHT: tl.constexpr):
    """Test whether a cell within two cells of a tile can have alpha above the threshold.

    Where none has, no cell of the tile nor of its ring is alive before the step: the tile becomes
    zero and its flags keep no cell alive, so a step may skip it and stay exact.

    Args:
        flags_ptr: as in `look_around`.
        place: sample, tile row and tile column.
        size: height, width and flag rows.
        RULE: the rule.
        HEIGHT: rows of a tile.
    """
    if RULE.alive:
        tl.static_assert(HEIGHT + 2 * MARGIN <= 32)
        sample, tile_row, tile_column = place
        height, width, flag_rows = size
        tile_columns = tl.cdiv(width, COLUMNS)
        row = tl.arange(0, 32)  # each warp looks at all rows, so its threads agree without waiting
        if RULE.circular:
            plane_ptr = flags_ptr + first_word(sample, 0, 0, flag_rows, tile_columns)
            y = (tile_row * HEIGHT + row - MARGIN + height) % height
            _, kept = load_torus(plane_ptr, y, tile_column, width)
            kept = tl.where(row < HEIGHT + 2 * MARGIN, kept, 0)
        else:
            word = first_word(sample, tile_row * HEIGHT, tile_column, flag_rows, tile_columns)
            words_ptr = flags_ptr + word + (row - MARGIN) * tile_columns
            pair = tl.load(words_ptr, mask=row < HEIGHT + 2 * MARGIN, other=0)
            kept = (pair >> 32).to(tl.int32)
        return tl.max(kept & REACH, axis=0) != 0
    else:
        return True
