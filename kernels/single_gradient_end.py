"""What is left of a single step's derivative when its tiles are through: gather, and add up."""

import triton
import triton.language as tl

from .gradients import add_rows, unpack_gradients
from .planes import gather_apart
from .status import HERE, has
from .tile import distances, first_cell, neighbours_inside

NOTES = tl.constexpr(256)
"""Notes of overflow that are read at once; most devices have fewer programs."""

GATHER_ROWS, GATHER_COLUMNS = 8, 64
"""Rows and columns of one channel that a program gathers."""


@triton.jit(do_not_specialize=["blocks", "rows", "height", "width", "hidden", "elements"])
def _single_gradient_end_kernel(
    scratch_ptr,
    grad_state_ptr,
    grad_w1_ptr,
    grad_b1_ptr,
    grad_w2_ptr,
    grad_b2_ptr,
    blocks,
    rows,
    height,
    width,
    hidden,
    elements: tl.int64,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    SUMS: tl.constexpr,
    RULE: tl.constexpr,
    CHECKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GATHER_ROWS: tl.constexpr,
    GATHER_COLUMNS: tl.constexpr,
):
    """Add up the sums of all programs, and gather what reached the Sobel features (E12).

    The first `blocks` programs add up one block of the sums each, in a fixed order, the others
    gather one rectangle of one channel. If a program of the launch before noted an overflow, all
    of them store NaN, so that no partial gradient passes for a whole one.

    Shapes and units:
        scratch_ptr: float32: `[2, elements]` gradients of the Sobel features, `[rows, SUMS]` sums,
            `[2, rows]` notes.
        grad_state_ptr: `[B, CHANNELS, H, W]` float32, added to.
        grad_w1_ptr: gradient of w1, written; likewise those of b1, w2 and b2.
        elements: numbers of the state.
    """
    sums_ptr = scratch_ptr + 2 * elements
    nan_or_zero = 0.0
    if CHECKED:
        notes_ptr = sums_ptr + rows.to(tl.int64) * SUMS + tl.arange(0, NOTES)
        weights = tl.zeros((NOTES,), tl.float32)
        gradients = tl.zeros((NOTES,), tl.float32)
        for first in tl.range(0, rows, NOTES):
            noted = first + tl.arange(0, NOTES) < rows
            weights = tl.maximum(weights, tl.load(notes_ptr + first, noted, other=0.0))
            gradients = tl.maximum(gradients, tl.load(notes_ptr + rows + first, noted, other=0.0))
        wrong = tl.max(weights, axis=0) + tl.max(gradients, axis=0) > 1
        nan_or_zero = tl.where(wrong, float("nan"), 0.0)
    program = tl.program_id(0)
    if program < blocks:
        index = program * BLOCK + tl.arange(0, BLOCK)
        total = add_rows(sums_ptr, rows, index, SUMS, ROWS) + nan_or_zero
        grads = grad_w1_ptr, grad_b1_ptr, grad_w2_ptr, grad_b2_ptr
        sizes, layout = (CHANNELS, CHANNELS, hidden), (PADDED, HIDDEN)
        unpack_gradients(total, index, grads, scratch_ptr, sizes, layout, RULE, False)
    else:
        tile = program - blocks
        tile_columns, tile_rows = tl.cdiv(width, GATHER_COLUMNS), tl.cdiv(height, GATHER_ROWS)
        plane = tile // (tile_columns * tile_rows)
        tile -= plane * (tile_columns * tile_rows)
        y0 = tile // tile_columns * GATHER_ROWS
        x0 = tile % tile_columns * GATHER_COLUMNS
        row, column = tl.arange(0, GATHER_ROWS)[:, None], tl.arange(0, GATHER_COLUMNS)[None, :]
        cell = first_cell(plane, y0, x0, height, width)
        local = row * width + column
        status = neighbours_inside(y0 + row, x0 + column, height, width)
        steps = distances(y0 + row, x0 + column, height, width, width, RULE.circular)
        x_ptr, y_ptr = scratch_ptr + cell, scratch_ptr + elements + cell
        received = gather_apart(x_ptr, y_ptr, local, steps, status, RULE)
        target_ptr = grad_state_ptr + cell + local
        grad = tl.load(target_ptr, mask=has(status, HERE), other=0.0) + received + nan_or_zero
        tl.store(target_ptr, grad, mask=has(status, HERE))


def count_rectangles(planes: int, height: int, width: int) -> int:
    """Return the number of rectangles in which the gradient of a state is gathered."""
    return planes * -(-height // GATHER_ROWS) * -(-width // GATHER_COLUMNS)
