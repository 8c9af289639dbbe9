"""What is left of a single step's derivative when its tiles are through: gather, and add up."""

import triton
import triton.language as tl

from .alive import has
from .gradients import add_rows, unpack_gradients
from .perceive import gather_gradient
from .single_step import neighbours_inside
from .tile import first_cell

NOTES = tl.constexpr(256)
"""Notes of overflow that are read at once; most devices have fewer programs."""

TALL, WIDE = 8, 64
"""Rows and columns of one channel that a program gathers."""


@triton.jit(do_not_specialize=["blocks", "rows", "height", "width", "hidden", "numbers"])
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
    numbers: tl.int64,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHECKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add up the sums of all programs, and gather what reached the Sobel features (equation 12).

    The first `blocks` programs add up one block of the sums each, in a fixed order, the others
    gather one rectangle of one channel. If a program of the launch before noted an overflow, all
    of them store NaN, so that no partial gradient passes for a whole one.
    """
    size: tl.constexpr = 5 * PADDED * HIDDEN + PADDED
    rows_ptr = scratch_ptr + 2 * numbers
    poison = 0.0
    if CHECKED:
        notes_ptr = rows_ptr + rows.to(tl.int64) * size + tl.arange(0, NOTES)
        weights = tl.zeros((NOTES,), tl.float32)
        gradients = tl.zeros((NOTES,), tl.float32)
        for first in tl.range(0, rows, NOTES):
            noted = first + tl.arange(0, NOTES) < rows
            weights = tl.maximum(weights, tl.load(notes_ptr + first, noted, other=0.0))
            gradients = tl.maximum(gradients, tl.load(notes_ptr + rows + first, noted, other=0.0))
        wrong = tl.max(weights, axis=0) + tl.max(gradients, axis=0) > 1
        poison = tl.where(wrong, float("nan"), 0.0)
    program = tl.program_id(0)
    if program < blocks:
        index = program * BLOCK + tl.arange(0, BLOCK)
        total = add_rows(rows_ptr, rows, index, size, ROWS) + poison
        unpack_gradients(
            total,
            index,
            grad_w1_ptr,
            grad_b1_ptr,
            grad_w2_ptr,
            grad_b2_ptr,
            scratch_ptr,
            CHANNELS,
            hidden,
            PADDED,
            HIDDEN,
            False,
        )
    else:
        tile = program - blocks
        plane = tile // (tl.cdiv(width, WIDE) * tl.cdiv(height, TALL))
        tile -= plane * (tl.cdiv(width, WIDE) * tl.cdiv(height, TALL))
        y0 = tile // tl.cdiv(width, WIDE) * TALL
        x0 = tile % tl.cdiv(width, WIDE) * WIDE
        y, x = (y0 + tl.arange(0, TALL))[:, None], (x0 + tl.arange(0, WIDE))[None, :]
        cell = first_cell(plane, y0, x0, height, width)
        local = tl.arange(0, TALL)[:, None] * width + tl.arange(0, WIDE)[None, :]
        status = neighbours_inside(y, x, height, width)
        received = gather_gradient(
            scratch_ptr + cell + local, scratch_ptr + numbers + cell + local, width, status
        )
        target_ptr = grad_state_ptr + cell + local
        grad = tl.load(target_ptr, mask=has(status, 4), other=0.0) + received + poison
        tl.store(target_ptr, grad, mask=has(status, 4))


def count_rectangles(planes: int, height: int, width: int) -> int:
    """Return the number of rectangles in which the gradient of a state is gathered."""
    return planes * -(-height // TALL) * -(-width // WIDE)
