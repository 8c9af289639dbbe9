"""The way into a rollout: a state `[B, C, H, W]` becomes a stored state with flags."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import PRE, RUN, store_flags
from .launch import count_tiles, flag_rows, launch
from .tile import cells_of, first_cell, first_word, locate

ALPHA = tl.constexpr(3)
TILE_HEIGHT = 8


@triton.jit(do_not_specialize=["batch", "height", "width", "flag_pitch"])
def _start_forward_kernel(
    state_ptr,
    states_ptr,
    flags_ptr,
    batch,
    height,
    width,
    flag_pitch,
    threshold,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Store one tile of the first state.

    A rollout may start from any state, also one that is not zero where nothing is alive. All of
    its cells count as alive, so that perception sees them, and `kept` marks those whose alpha is
    above the threshold.
    """
    runs, strips = tl.cdiv(width, RUN), tl.cdiv(height, HEIGHT)
    grid, strip, run = locate(tl.program_id(0), runs, strips)
    y0, x0 = strip * HEIGHT, run * RUN
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)

    plane = height.to(tl.int64) * width
    corner = grid * CHANNELS * plane + y0.to(tl.int64) * width + x0
    local = row * width + column
    state = tl.load(
        state_ptr + corner + local[:, None] + channel[None, :] * plane,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    )
    cell = first_cell(grid, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    tl.store(states_ptr + cell * PADDED + offsets, state, mask=inside[:, None])
    alpha = tl.sum(tl.where(channel[None, :] == ALPHA, state, 0.0), axis=1)
    word = first_word(grid, y0, run, flag_pitch, runs)
    kept = inside & (alpha > threshold)
    found = inside.to(tl.int32) | (kept.to(tl.int32) << PRE)
    store_flags(flags_ptr, word, runs, run, runs, found, HEIGHT)


def start_forward(state: Tensor, states: Tensor, flags: Tensor, threshold: float) -> None:
    """Store a state in slot 0 of a trajectory.

    Args:
        state: `[B, C, H, W]` float32, contiguous.
        states: `[slots, B, H, W, CP]` float32; slot 0 is written.
        flags: `[slots, B, rows, runs]` int64, zero where never written; slot 0 is written.
        threshold: exclusive lower limit of a living alpha.
    """
    batch, channels, height, width = state.shape
    launch(
        _start_forward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (state, states, flags),
        (batch, height, width, flag_rows(height), threshold),
        (channels, states.shape[-1], TILE_HEIGHT),
        num_warps=4,
    )
