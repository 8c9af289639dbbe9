"""Tiny kernels that call one device function; imported while the interpreter is chosen."""

import triton
import triton.language as tl

from fastnca.kernels.flags import first_word
from fastnca.kernels.mask import draw_update
from fastnca.kernels.tile import first_cell, first_number


@triton.jit
def offsets_kernel(out_ptr, grid, y, x, height, width):
    tl.store(out_ptr, first_cell(grid, y, x, height, width))
    tl.store(out_ptr + 1, first_word(grid, y, x, height, width))
    tl.store(out_ptr + 2, first_number(grid, y, x, height, width, 16))


@triton.jit
def update_kernel(cell_ptr, counter_ptr, out_ptr, limit):
    cells = tl.arange(0, 8)
    seed, step = tl.load(counter_ptr), tl.load(counter_ptr + 1)
    update = draw_update(tl.load(cell_ptr + cells), seed, step, limit)
    tl.store(out_ptr + cells, update.to(tl.int32))
