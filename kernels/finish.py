"""The way out of a rollout: the last alive test, and the transposed filters' last gather."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import OWN, RUN, dilate, load_flags
from .gradients import note_overflow
from .launch import count_tiles, flag_rows, launch
from .perceive import perceive_grad
from .tile import cells_of, first_cell, first_number, first_word, locate

TILE_HEIGHT = 8


@triton.jit(do_not_specialize=["most", "slots", "base", "batch", "height", "width", "flag_pitch"])
def _finish_forward_kernel(
    states_ptr,
    flags_ptr,
    counter_ptr,
    state_ptr,
    most,
    slots,
    base,
    batch,
    height,
    width,
    flag_pitch,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Apply the alive test of the last step to one tile: s' = v ⊙ alive(ŝ) (equation 7).

    Which slot the last step wrote follows from the number of steps, which is on the device.
    """
    slot = base + tl.minimum(tl.load(counter_ptr + 2), most).to(tl.int32) % slots
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
    corner = first_number(grid, y0, x0, height, width, CHANNELS)
    tl.store(
        state_ptr + corner + local[:, None] + channel[None, :] * plane,
        state,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
    )


def finish_forward(
    states: Tensor,
    flags: Tensor,
    counter: Tensor,
    last: tuple[int, int, int],
    state: Tensor,
) -> None:
    """Write the last state of a trajectory as `[B, C, H, W]`.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, rows, runs]` int64.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps T.
        last: most steps M, slots N that take turns and the first of them F; slot
            F + min(T, M) mod N is read.
        state: `[B, C, H, W]` float32, contiguous; written.
    """
    batch, channels, height, width = state.shape
    launch(
        _finish_forward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (states, flags, counter, state),
        (*last, batch, height, width, flag_rows(height)),
        (channels, states.shape[-1], TILE_HEIGHT),
        num_warps=4,
    )


@triton.jit(do_not_specialize=["height", "width"])
def _finish_backward_kernel(
    passed_ptr,
    pairs_ptr,
    scale_ptr,
    grad_state_ptr,
    height,
    width,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    CHECKED: tl.constexpr,
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
    cell = first_cell(grid, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    grad = tl.load(passed_ptr + cell * PADDED + offsets, mask=inside[:, None], other=0.0)
    pair = first_cell(grid, y0 + 1, x0 + 1, height + 2, width + 2)
    pair_local = row * (width + 2) + column
    pair_offsets = pair_local[:, None] * (2 * PADDED) + both[None, :]
    pitch = (width + 2) * (2 * PADDED)
    grad += perceive_grad(pairs_ptr + pair * (2 * PADDED) + pair_offsets, pitch, PADDED)
    grad *= tl.load(scale_ptr)
    corner = first_number(grid, y0, x0, height, width, CHANNELS)
    mask = inside[:, None] & (channel < CHANNELS)[None, :]
    grad_offsets = local[:, None] + channel[None, :] * plane
    tl.store(grad_state_ptr + corner + grad_offsets, grad, mask=mask)
    if CHECKED:
        note_overflow(grad, mask, scale_ptr)


def finish_backward(
    passed: Tensor, pairs: Tensor, scale: Tensor, grad_state: Tensor, checked: bool
) -> None:
    """Write the gradient of the first state of a rollout.

    Args:
        passed: `[2, B, H, W, CP]` float32, gradients that reach the cell itself, scaled; the
            first half is read.
        pairs: `[pair_cells, CP, 2]` operands, gradients of the Sobel features, scaled; likewise.
        scale: `[2]` float32: the inverse of the power of two that gradients were multiplied by;
            the second number becomes 1 if a result is not finite.
        grad_state: `[B, C, H, W]` float32, contiguous; written.
        checked: whether to look for results that are not finite.
    """
    batch, channels, height, width = grad_state.shape
    launch(
        _finish_backward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (passed, pairs, scale, grad_state),
        (height, width),
        (channels, passed.shape[-1], checked, TILE_HEIGHT),
        num_warps=4,
    )
