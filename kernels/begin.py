"""How a rollout begins: a state becomes a stored state with flags, a gradient is scaled."""

import triton
import triton.language as tl
from torch import Tensor

from .flags import first_word, pack_flags, store_flags
from .launch import count_tiles, flag_shape, launch
from .rule import KernelRule
from .scale import power_of_two, scale_exponent
from .status import PRE, is_finite
from .tile import COLUMNS, cells_of, first_cell, first_number, locate, numbers_of, steps_taken

ALPHA = tl.constexpr(3)
TILE_HEIGHT = 8

CLEAR_BLOCK = tl.constexpr(1024)


@triton.jit(
    do_not_specialize=["batch", "height", "width", "flag_rows"],
    do_not_specialize_on_alignment=["state_ptr"],
)
def _begin_forward_kernel(
    state_ptr,
    states_ptr,
    flags_ptr,
    batch,
    height,
    width,
    flag_rows,
    threshold,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    RULE: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Store one tile of the first state.

    A rollout may start from any state, also one that is not zero where nothing is alive. All of
    its cells count as alive, so that perception sees them, and `kept` marks those whose alpha is
    above the threshold. If a value of a cell is not finite its alpha becomes NaN, which counts as
    above the threshold.

    Pointers are the tensors of `begin_forward`, in its order.
    """
    tile_columns, tile_rows = tl.cdiv(width, COLUMNS), tl.cdiv(height, HEIGHT)
    sample, tile_row, tile_column = locate(tl.program_id(0), tile_columns, tile_rows)
    y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)

    plane = height.to(tl.int64) * width
    corner = first_number(sample, y0, x0, height, width, CHANNELS)
    local = row * width + column
    state = tl.load(
        state_ptr + corner + local[:, None] + channel[None, :] * plane,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    )
    if RULE.alive:
        alpha = inside[:, None] & (channel == ALPHA)[None, :]
        finite = tl.min(is_finite(state).to(tl.int32), axis=1) != 0
        state = tl.where(alpha & (finite[:, None] == 0), float("nan"), state)
        kept = alpha & ((state <= threshold) == 0)
        found = pack_flags(alpha.to(tl.int32) | (kept.to(tl.int32) << PRE), HEIGHT)
        word = first_word(sample, y0, tile_column, flag_rows, tile_columns)
        store_flags(flags_ptr, word, tile_column, tile_columns, found, HEIGHT)
    cell = first_cell(sample, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    tl.store(states_ptr + cell * PADDED + offsets, state, mask=inside[:, None])


def begin_forward(
    state: Tensor, states: Tensor, flags: Tensor, rule: KernelRule, threshold: float
) -> None:
    """Store a state in slot 0 of a trajectory.

    Args:
        state: `[B, C, H, W]` float32, contiguous.
        states: `[slots, B, H, W, CP]` float32; slot 0 is written.
        flags: `[slots, B, flag_rows, tile_columns]` int64, zero where no kernel writes; slot 0 is
            written. Empty without an alive test.
        rule: the rule.
        threshold: exclusive lower limit of a living alpha.
    """
    batch, channels, height, width = state.shape
    launch(
        _begin_forward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (state, states, flags),
        (batch, height, width, flag_shape(height, width)[0], threshold),
        (channels, states.shape[-1], rule, TILE_HEIGHT),
        num_warps=4,
    )


@triton.jit(
    do_not_specialize=["most", "batch", "height", "width", "plane_numbers"],
    do_not_specialize_on_alignment=["grad_ptr"],
)
def _begin_backward_kernel(
    grad_ptr,
    largest_ptr,
    counter_ptr,
    direct_ptr,
    planes_ptr,
    scale_ptr,
    most,
    batch,
    height,
    width,
    plane_numbers: tl.int64,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    SCALED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Store one tile of the last state's gradient, scaled, and clear a share of the planes.

    The step before the end reads the half of `direct` that the number of steps, which is on the
    device, makes even or odd.

    Pointers are the tensors of `begin_backward`, in its order; `direct` and `planes` its `grads`.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    dtype: tl.constexpr = planes_ptr.dtype.element_ty
    for block in tl.range(program, tl.cdiv(plane_numbers, CLEAR_BLOCK), programs):
        number = numbers_of(block, CLEAR_BLOCK)
        tl.store(planes_ptr + number, tl.zeros((CLEAR_BLOCK,), dtype), mask=number < plane_numbers)
    scale, unscale = 1.0, 1.0
    if SCALED:
        exponent = scale_exponent(tl.load(largest_ptr))
        scale, unscale = power_of_two(exponent), power_of_two(2 * 127 - exponent)
    if program == 0:
        tl.store(scale_ptr, unscale)
        tl.store(scale_ptr + 1, 0.0)

    tile_columns, tile_rows = tl.cdiv(width, COLUMNS), tl.cdiv(height, HEIGHT)
    sample, tile_row, tile_column = locate(program, tile_columns, tile_rows)
    y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)
    plane = height.to(tl.int64) * width
    corner = first_number(sample, y0, x0, height, width, CHANNELS)
    local = row * width + column
    grad = tl.load(
        grad_ptr + corner + local[:, None] + channel[None, :] * plane,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    )
    half = steps_taken(counter_ptr, most) % 2
    cell = half * batch * plane + first_cell(sample, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    tl.store(direct_ptr + cell * PADDED + offsets, grad * scale, mask=inside[:, None])


def begin_backward(
    grad: Tensor,
    largest: Tensor | None,
    counter: Tensor,
    most: int,
    grads: tuple[Tensor, Tensor],
    scale: Tensor,
) -> None:
    """Begin the backward pass of a rollout.

    Args:
        grad: `[B, C, H, W]` float32, contiguous: the gradient of the last state.
        largest: `[]` float32, its largest magnitude, from which a power of two is found to
            multiply it by; None multiplies by 1.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        most: the most steps.
        grads: the gradient in two parts: what reaches the cell itself, `[2, B, H, W, CP]` float32,
            of which one half is written, and planes, `[plane_size]` operands, which become zero.
        scale: `[2]` float32: the inverse of that power of two, and 0 since no overflow is known;
            written.
    """
    batch, channels, height, width = grad.shape
    direct, planes = grads
    launch(
        _begin_backward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (grad, scale if largest is None else largest, counter, direct, planes, scale),
        (most, batch, height, width, planes.numel()),
        (channels, direct.shape[-1], largest is not None, TILE_HEIGHT),
        num_warps=4,
    )
