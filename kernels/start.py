"""The ways into a rollout: a state becomes a stored state with flags, a gradient is scaled."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import PRE, RUN, is_finite, pack_flags, store_flags
from .launch import count_tiles, flag_rows, launch
from .scale import power_of_two, scale_exponent
from .tile import cells_of, first_cell, first_number, first_word, locate, numbers_of

ALPHA = tl.constexpr(3)
TILE_HEIGHT = 8

CLEAR_BLOCK = tl.constexpr(1024)


@triton.jit(
    do_not_specialize=["batch", "height", "width", "flag_pitch"],
    do_not_specialize_on_alignment=["state_ptr"],
)
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
    above the threshold. If a value of a cell is not finite its alpha becomes NaN, which counts as
    above the threshold.
    """
    runs, strips = tl.cdiv(width, RUN), tl.cdiv(height, HEIGHT)
    grid, strip, run = locate(tl.program_id(0), runs, strips)
    y0, x0 = strip * HEIGHT, run * RUN
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)

    plane = height.to(tl.int64) * width
    corner = first_number(grid, y0, x0, height, width, CHANNELS)
    local = row * width + column
    state = tl.load(
        state_ptr + corner + local[:, None] + channel[None, :] * plane,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    )
    alpha = inside[:, None] & (channel == ALPHA)[None, :]
    finite = tl.min(is_finite(state).to(tl.int32), axis=1) != 0
    state = tl.where(alpha & (finite[:, None] == 0), float("nan"), state)
    cell = first_cell(grid, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    tl.store(states_ptr + cell * PADDED + offsets, state, mask=inside[:, None])
    kept = alpha & ((state <= threshold) == 0)
    found = alpha.to(tl.int32) | (kept.to(tl.int32) << PRE)
    word = first_word(grid, y0, run, flag_pitch, runs)
    store_flags(flags_ptr, word, runs, run, runs, pack_flags(found, HEIGHT), HEIGHT)


def start_forward(state: Tensor, states: Tensor, flags: Tensor, threshold: float) -> None:
    """Store a state in slot 0 of a trajectory.

    Args:
        state: `[B, C, H, W]` float32, contiguous.
        states: `[slots, B, H, W, CP]` float32; slot 0 is written.
        flags: `[slots, B, rows, runs]` int64, zero where no kernel writes; slot 0 is written.
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


@triton.jit(
    do_not_specialize=["most", "batch", "height", "width", "pair_numbers"],
    do_not_specialize_on_alignment=["grad_ptr"],
)
def _start_backward_kernel(
    grad_ptr,
    largest_ptr,
    counter_ptr,
    passed_ptr,
    pairs_ptr,
    scale_ptr,
    most,
    batch,
    height,
    width,
    pair_numbers: tl.int64,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    SCALED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Store one tile of the last state's gradient, scaled, and clear a share of the pairs.

    The step before the end reads the half of `passed` that the number of steps, which is on the
    device, makes even or odd.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    dtype: tl.constexpr = pairs_ptr.dtype.element_ty
    for block in tl.range(program, tl.cdiv(pair_numbers, CLEAR_BLOCK), programs):
        number = numbers_of(block, CLEAR_BLOCK)
        tl.store(pairs_ptr + number, tl.zeros((CLEAR_BLOCK,), dtype), mask=number < pair_numbers)
    scale, unscale = 1.0, 1.0
    if SCALED:
        exponent = scale_exponent(tl.load(largest_ptr))
        scale, unscale = power_of_two(exponent), power_of_two(2 * 127 - exponent)
    if program == 0:
        tl.store(scale_ptr, unscale)
        tl.store(scale_ptr + 1, 0.0)

    runs, strips = tl.cdiv(width, RUN), tl.cdiv(height, HEIGHT)
    grid, strip, run = locate(program, runs, strips)
    y0, x0 = strip * HEIGHT, run * RUN
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)
    plane = height.to(tl.int64) * width
    corner = first_number(grid, y0, x0, height, width, CHANNELS)
    local = row * width + column
    grad = tl.load(
        grad_ptr + corner + local[:, None] + channel[None, :] * plane,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    )
    half = tl.minimum(tl.load(counter_ptr + 2), most) % 2
    cell = half * batch * plane + first_cell(grid, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    tl.store(passed_ptr + cell * PADDED + offsets, grad * scale, mask=inside[:, None])


def start_backward(
    grad: Tensor,
    largest: Tensor | None,
    counter: Tensor,
    most: int,
    carried: tuple[Tensor, Tensor],
    scale: Tensor,
) -> None:
    """Begin the way back of a rollout.

    Args:
        grad: `[B, C, H, W]` float32, contiguous: the gradient of the last state.
        largest: `[]` float32, its largest magnitude, from which a power of two is found to
            multiply it by; None multiplies by 1.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        most: the most steps.
        carried: `passed` `[2, B, H, W, CP]` float32, of which one half is written, and `pairs`
            `[pair_cells, CP, 2]` operands, which become zero.
        scale: `[2]` float32: the inverse of that power of two, and 0 since no overflow is known;
            written.
    """
    batch, channels, height, width = grad.shape
    passed, pairs = carried
    launch(
        _start_backward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (grad, scale if largest is None else largest, counter, passed, pairs, scale),
        (most, batch, height, width, pairs.numel()),
        (channels, passed.shape[-1], largest is not None, TILE_HEIGHT),
        num_warps=4,
    )
