"""The way out of a rollout: the last alive test, and the transposed filters' last gather."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import OWN, RUN, dilate, load_flags
from .launch import count_tiles, flag_rows, launch
from .perceive import perceive_grad
from .tile import cells_of, first_cell, first_word, locate

TILE_HEIGHT = 8


@triton.jit(do_not_specialize=["slot", "batch", "height", "width", "flag_pitch"])
def _finish_forward_kernel(
    states_ptr,
    flags_ptr,
    state_ptr,
    slot,
    batch,
    height,
    width,
    flag_pitch,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Apply the alive test of the last step to one tile: s' = v ⊙ alive(ŝ) (equation 7)."""
    runs, strips = tl.cdiv(width, RUN), tl.cdiv(height, HEIGHT)
    grid, strip, run = locate(tl.program_id(0), runs, strips)
    y0, x0 = strip * HEIGHT, run * RUN
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)

    plane = height.to(tl.int64) * width
    word = (slot * batch.to(tl.int64) * flag_pitch) * runs
    word += first_word(grid, y0, run, flag_pitch, runs)
    above, _ = load_flags(flags_ptr + word, row * runs, -runs)
    here, _ = load_flags(flags_ptr + word, row * runs, 0)
    below, _ = load_flags(flags_ptr + word, row * runs, runs)
    alive = ((dilate(above, here, below) >> (column + OWN)) & 1 != 0) & inside

    local = row * width + column
    cell = slot * batch * plane + first_cell(grid, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    state = tl.load(states_ptr + cell * PADDED + offsets, mask=alive[:, None], other=0.0)
    corner = grid * CHANNELS * plane + y0.to(tl.int64) * width + x0
    tl.store(
        state_ptr + corner + local[:, None] + channel[None, :] * plane,
        state,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
    )


def finish_forward(states: Tensor, flags: Tensor, slot: int, state: Tensor) -> None:
    """Write the state of a slot of a trajectory as `[B, C, H, W]`.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, rows, runs]` int64.
        slot: the slot to read.
        state: `[B, C, H, W]` float32, contiguous; written.
    """
    batch, channels, height, width = state.shape
    launch(
        _finish_forward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (states, flags, state),
        (slot, batch, height, width, flag_rows(height)),
        (channels, states.shape[-1], TILE_HEIGHT),
        num_warps=4,
    )


@triton.jit(do_not_specialize=["slot", "batch", "height", "width"])
def _finish_backward_kernel(
    passed_ptr,
    pairs_ptr,
    scale_ptr,
    grad_state_ptr,
    slot,
    batch,
    height,
    width,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Gather the gradient of one tile of the first state (equation 12) and remove its scale."""
    runs, strips = tl.cdiv(width, RUN), tl.cdiv(height, HEIGHT)
    grid, strip, run = locate(tl.program_id(0), runs, strips)
    y0, x0 = strip * HEIGHT, run * RUN
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    both = tl.arange(0, 2 * PADDED)
    inside = (y0 + row < height) & (x0 + column < width)

    plane = height.to(tl.int64) * width
    local = row * width + column
    cell = slot * batch * plane + first_cell(grid, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    grad = tl.load(passed_ptr + cell * PADDED + offsets, mask=inside[:, None], other=0.0)
    grid_pairs = (height + 2).to(tl.int64) * (width + 2)
    pair = slot * batch * grid_pairs + first_cell(grid, y0 + 1, x0 + 1, height + 2, width + 2)
    pair_local = row * (width + 2) + column
    pair_offsets = pair_local[:, None] * (2 * PADDED) + both[None, :]
    pitch = (width + 2) * (2 * PADDED)
    grad += perceive_grad(pairs_ptr + pair * (2 * PADDED) + pair_offsets, pitch, PADDED)
    corner = grid * CHANNELS * plane + y0.to(tl.int64) * width + x0
    tl.store(
        grad_state_ptr + corner + local[:, None] + channel[None, :] * plane,
        grad / tl.load(scale_ptr),
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
    )


def finish_backward(
    passed: Tensor, pairs: Tensor, scale: Tensor, slot: int, grad_state: Tensor
) -> None:
    """Write the gradient of the first state of a rollout.

    Args:
        passed: `[2, B, H, W, CP]` float32, gradients that reach the cell itself, scaled.
        pairs: `[2, B, H, W, CP, 2]` operands, gradients of the Sobel features, scaled.
        scale: `[]` float32, the power of two that gradients were multiplied by.
        slot: the slot of both to read.
        grad_state: `[B, C, H, W]` float32, contiguous; written.
    """
    batch, channels, height, width = grad_state.shape
    launch(
        _finish_backward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (passed, pairs, scale, grad_state),
        (slot, batch, height, width),
        (channels, passed.shape[-1], TILE_HEIGHT),
        num_warps=4,
    )
