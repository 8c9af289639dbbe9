"""How a rollout ends: the last alive test, and the transposed filters' last gather."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import survivors
from .gradients import note_overflow
from .launch import count_tiles, flag_shape, launch
from .planes import gather_planes
from .rule import KernelRule
from .tile import COLUMNS, cells_of, distances, first_cell, first_number, locate, steps_taken

TILE_HEIGHT = 8


@triton.jit(do_not_specialize=["most", "slots", "base", "batch", "height", "width", "flag_rows"])
def _end_forward_kernel(
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
    flag_rows,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    RULE: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Apply the alive test of the last step to one tile (E7).

    Which slot the last step wrote follows from the number of steps, which is on the device.

    Pointers are the tensors of `end_forward`, in its order; most, slots and base its `last`.
    """
    slot = base + steps_taken(counter_ptr, most) % slots
    tile_columns, tile_rows = tl.cdiv(width, COLUMNS), tl.cdiv(height, HEIGHT)
    place = locate(tl.program_id(0), tile_columns, tile_rows)
    sample, tile_row, tile_column = place
    y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
    row, column = cells_of(HEIGHT)
    channel = tl.arange(0, PADDED)
    inside = (y0 + row < height) & (x0 + column < width)

    plane = height.to(tl.int64) * width
    alive = inside[:, None]
    if RULE.alive:
        slot_words = batch.to(tl.int64) * flag_rows * tile_columns
        size = height, width, flag_rows
        alive &= (survivors(flags_ptr + slot * slot_words, place, size, RULE, HEIGHT) != 0)[:, None]
        if RULE.first_input > 0:
            alive |= inside[:, None] & (channel >= RULE.first_input)[None, :]

    local = row * width + column
    cell = slot * batch * plane + first_cell(sample, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    state = tl.load(states_ptr + cell * PADDED + offsets, mask=alive, other=0.0)
    corner = first_number(sample, y0, x0, height, width, CHANNELS)
    tl.store(
        state_ptr + corner + local[:, None] + channel[None, :] * plane,
        state,
        mask=inside[:, None] & (channel < CHANNELS)[None, :],
    )


def end_forward(
    states: Tensor,
    flags: Tensor,
    counter: Tensor,
    rule: KernelRule,
    last: tuple[int, int, int],
    state: Tensor,
) -> None:
    """Write the last state of a trajectory as `[B, C, H, W]`.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, flag_rows, tile_columns]` int64; empty without an alive test.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps T.
        rule: the rule.
        last: most steps M, slots N that take turns and the first of them F; slot
            F + min(T, M) mod N is read.
        state: `[B, C, H, W]` float32, contiguous; written.
    """
    batch, channels, height, width = state.shape
    launch(
        _end_forward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (states, flags, counter, state),
        (*last, batch, height, width, flag_shape(height, width)[0]),
        (channels, states.shape[-1], rule, TILE_HEIGHT),
        num_warps=4,
    )


@triton.jit(do_not_specialize=["batch", "height", "width"])
def _end_backward_kernel(
    direct_ptr,
    planes_ptr,
    scale_ptr,
    grad_state_ptr,
    batch,
    height,
    width,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    RULE: tl.constexpr,
    CHECKED: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Gather the gradient of one tile of the first state (E12) and remove its scale.

    Pointers are the tensors of `end_backward`, in its order; `direct` and `planes` its `grads`.
    """
    tile_columns, tile_rows = tl.cdiv(width, COLUMNS), tl.cdiv(height, HEIGHT)
    sample, tile_row, tile_column = locate(tl.program_id(0), tile_columns, tile_rows)
    y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
    row, column = cells_of(HEIGHT)
    y, x = y0 + row, x0 + column
    channel = tl.arange(0, PADDED)
    pair = tl.arange(0, 2 * PADDED)
    inside = (y < height) & (x < width)

    plane = height.to(tl.int64) * width
    local = row * width + column
    cell = first_cell(sample, y0, x0, height, width)
    offsets = local[:, None] * PADDED + channel[None, :]
    grad = tl.load(direct_ptr + cell * PADDED + offsets, mask=inside[:, None], other=0.0)
    plane_local = row * (width + 2) + column
    if RULE.circular:
        y, x = tl.where(inside, y, y0), tl.where(inside, x, x0)
        plane_local = tl.where(inside, plane_local, 0)
    area = (
        first_cell(sample, y0 + 1, x0 + 1, height + 2, width + 2),
        plane_local[:, None] * (2 * PADDED) + pair[None, :],
        batch.to(tl.int64) * (height + 2) * (width + 2),
    )
    steps = distances(y, x, height, width, width + 2, RULE.circular)
    if len(RULE.planes) > 0:
        grad += gather_planes(planes_ptr, area, steps, RULE)
    grad *= tl.load(scale_ptr)
    corner = first_number(sample, y0, x0, height, width, CHANNELS)
    mask = inside[:, None] & (channel < CHANNELS)[None, :]
    grad_offsets = local[:, None] + channel[None, :] * plane
    tl.store(grad_state_ptr + corner + grad_offsets, grad, mask=mask)
    if CHECKED:
        note_overflow(grad, mask, scale_ptr)


def end_backward(
    grads: tuple[Tensor, Tensor],
    scale: Tensor,
    rule: KernelRule,
    grad_state: Tensor,
    checked: bool,
) -> None:
    """Write the gradient of the first state of a rollout.

    Args:
        grads: the gradient in two parts, scaled: what reaches the cell itself, `[2, B, H, W, CP]`
            float32, and planes, `[plane_size]` operands; the first halves are read.
        scale: `[2]` float32: the inverse of the power of two that gradients were multiplied by;
            the second number becomes 1 if a result is not finite.
        rule: the rule.
        grad_state: `[B, C, H, W]` float32, contiguous; written.
        checked: whether to look for results that are not finite.
    """
    batch, channels, height, width = grad_state.shape
    launch(
        _end_backward_kernel,
        count_tiles(batch, height, width, TILE_HEIGHT),
        (*grads, scale, grad_state),
        (batch, height, width),
        (channels, grads[0].shape[-1], rule, checked, TILE_HEIGHT),
        num_warps=4,
    )
