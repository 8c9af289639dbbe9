"""The derivative of `single_step` in two launches: the network's, then what crosses tiles."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .alive import RUN, has, of_channels
from .gradients import BLOCK, INTERPRETED_BLOCK, ROWS, store_sums
from .launch import Launch, LaunchConfig, count_tiles
from .network import differentiate_network
from .perceive import join_features, perceive, split_features
from .scale import FEWEST, LARGEST, power_of_two, scale_exponent
from .single_gradient_end import TALL, WIDE, _single_gradient_end_kernel, count_rectangles
from .single_step import SURVIVES, UPDATES, neighbours_inside
from .tile import advance, cells_of, first_cell, locate
from .weights import DTYPES, find_overflow, padded_channels, padded_hidden, read_weights, sums_size

USERS = ["state_ptr", "fates_ptr", "grad_ptr", "w1_ptr", "b1_ptr", "w2_ptr"]
"""Tensors of the caller's, which may begin at any number of their memory; fates too, which a hook
on saved tensors may have replaced."""

CHECK_BLOCK = tl.constexpr(1024)
"""Weights that are looked at together for overflow."""


@triton.jit
def _is_not_finite(values):
    """Tell whether a matrix holds an infinity or NaN, as 0 or 1."""
    return tl.max(tl.max(tl.where(tl.abs(values) < float("inf"), 0, 1), axis=1), axis=0)


@triton.jit(
    do_not_specialize=["tiles", "height", "width", "hidden", "numbers"],
    do_not_specialize_on_alignment=USERS,
)
def _single_gradient_kernel(
    state_ptr,
    fates_ptr,
    grad_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    grad_state_ptr,
    scratch_ptr,
    tiles,
    height,
    width,
    hidden,
    numbers: tl.int64,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    SCALED: tl.constexpr,
    HEIGHT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Take the gradient back through the network of one step (equations 8 to 11).

    What reaches the cell itself is stored as the gradient of the state, what reaches its Sobel
    features beside it, for the next launch to gather.

    With fp16 operands a tile is multiplied by the power of two that suits its largest gradient,
    but not by more than the tiles before it, whose sums are brought down to it. Everything is
    divided by it again where it is stored.

    Two notes of a program stand beside the rows of sums: 1 if a weight, of those that it looks
    at, overflows as an operand; and 1 if gradients went through it, 2 if what it added up or what
    came in is not finite. Whatever else overflows ends as infinity or NaN in a sum.
    """
    cells: tl.constexpr = HEIGHT * RUN
    size: tl.constexpr = 5 * PADDED * HIDDEN + PADDED
    weight1, weight2 = read_weights(w1_ptr, b1_ptr, w2_ptr, CHANNELS, hidden, PADDED, HIDDEN, DTYPE)
    program, programs = tl.program_id(0), tl.num_programs(0)
    if SCALED:
        wrong = find_overflow(
            w1_ptr, b1_ptr, w2_ptr, CHANNELS, hidden, program, programs, CHECK_BLOCK, DTYPE
        )
        notes_ptr = scratch_ptr + 2 * numbers + programs.to(tl.int64) * size
        tl.store(notes_ptr + program, wrong.to(tl.float32))
    grad1 = tl.zeros((HIDDEN, 4 * PADDED), tl.float32)
    grad2 = tl.zeros((HIDDEN, PADDED), tl.float32)
    grad_bias2 = tl.zeros((cells // 2, PADDED), tl.float32)
    exponent = LARGEST + height * 0

    channel = tl.arange(0, PADDED)
    row, column = cells_of(HEIGHT)
    local = row * width + column
    plane = height.to(tl.int64) * width
    runs, strips = tl.cdiv(width, RUN), tl.cdiv(height, HEIGHT)
    grid, strip, run = locate(program, runs, strips)
    step_grid, step_strip, step_run = locate(programs, runs, strips)
    for _ in tl.range(program, tiles, programs, disable_licm=True):
        y0, x0 = strip * HEIGHT, run * RUN
        y, x = y0 + row, x0 + column
        inside = (y < height) & (x < width)
        cell = first_cell(grid, y0, x0, height, width)
        corner = grid.to(tl.int64) * (CHANNELS - 1) * plane + cell
        offsets = local[:, None] + channel[None, :] * (height * width)
        fate = tl.load(fates_ptr + cell + local, mask=inside, other=0).to(tl.int32)
        passed = tl.zeros((cells, PADDED), tl.float32)
        grad_x = tl.zeros((cells, PADDED), tl.float32)
        grad_y = tl.zeros((cells, PADDED), tl.float32)
        if tl.max((fate >> SURVIVES) & 1, axis=0) != 0:
            status = of_channels(neighbours_inside(y, x, height, width), CHANNELS, PADDED)
            fates = of_channels(fate, CHANNELS, PADDED)
            here_ptr = state_ptr + corner
            above, below = here_ptr - width + offsets, here_ptr + width + offsets
            identity, sobel_x, sobel_y = perceive(above, here_ptr + offsets, below, status, 1)
            perceived = join_features(identity, sobel_x, sobel_y, DTYPE)
            grad = tl.load(grad_ptr + corner + offsets, mask=has(fates, SURVIVES), other=0.0)
            updating = has(fates, UPDATES)
            unscaled = tl.where(updating, grad, 0.0)
            grad_bias2 += tl.sum(tl.reshape(unscaled, (2, cells // 2, PADDED)), axis=0)
            unscale = 1.0
            if SCALED:
                bits = grad.to(tl.int32, bitcast=True) & 0x7FFFFFFF
                largest = tl.max(tl.max(bits, axis=1), axis=0).to(tl.float32, bitcast=True)
                before = exponent
                exponent = tl.minimum(exponent, scale_exponent(largest))
                grad *= power_of_two(exponent)
                unscale = power_of_two(2 * 127 - exponent)
                change = power_of_two(exponent - before + 127)
                grad1 *= change
                grad2 *= change
            grad_delta = tl.where(updating, grad, 0.0)
            grad1, grad2, grad_perceived = differentiate_network(
                perceived, grad_delta, weight1, weight2, grad1, grad2
            )
            grad_identity, grad_x, grad_y = split_features(grad_perceived, cells, PADDED)
            passed = (grad + grad_identity) * unscale
            grad_x *= unscale
            grad_y *= unscale
        mask = inside[:, None] & (channel < CHANNELS)[None, :]
        tl.store(grad_state_ptr + corner + offsets, passed, mask=mask)
        tl.store(scratch_ptr + corner + offsets, grad_x, mask=mask)
        tl.store(scratch_ptr + numbers + corner + offsets, grad_y, mask=mask)
        grid, strip, run = advance(grid, strip, run, step_grid, step_strip, step_run, runs, strips)

    sums_ptr = scratch_ptr + 2 * numbers
    if SCALED:
        inverse = power_of_two(2 * 127 - exponent)
        grad1 *= inverse
        grad2 *= inverse
        wrong = _is_not_finite(grad1) | _is_not_finite(grad2) | _is_not_finite(grad_bias2)
        wrong |= (exponent < FEWEST).to(tl.int32)
        note = wrong + (exponent < LARGEST).to(tl.int32)
        notes_ptr = sums_ptr + programs.to(tl.int64) * size + programs
        tl.store(notes_ptr + program, note.to(tl.float32))
    row_ptr = sums_ptr + program.to(tl.int64) * size
    store_sums(row_ptr, grad1, grad2, grad_bias2, False, PADDED, HIDDEN, False)


@dataclass(frozen=True)
class SingleGradient:
    """Both launches, prepared for states of one shape and parameters of one size.

    Attributes:
        first: arguments are the state `[B, C, H, W]`; the fates; the gradient of the result, like
            the state; w1, b1 and w2; the gradient of the state, like it, written; and the scratch.
        last: finishes what the first began; arguments are the scratch and the gradients of the
            state, w1, b1, w2 and b2.
        sums: the same without the gradient of the state, which stays unfinished.
        scratch_size: float32 numbers of the scratch.
    """

    first: Launch
    last: Launch
    sums: Launch
    scratch_size: int


def prepare_backward(
    shape: tuple[int, int, int, int],
    hidden: int,
    precision: str,
    device: torch.device,
    config: LaunchConfig,
) -> SingleGradient:
    """Prepare both launches.

    Args:
        shape: `(B, C, H, W)`, B at least 1.
        hidden: hidden units.
        precision: "fp16", "bf16" or "ieee".
        device: where the tensors are; all are float32, but for the fates, and contiguous.
        config: how to launch the first kernel.

    Returns:
        The launches.
    """
    batch, channels, height, width = shape
    tiles = count_tiles(batch, height, width, config.tile_height)
    programs = min(tiles, config.programs)
    numbers = batch * channels * height * width
    sizes = (channels, padded_channels(channels), padded_hidden(hidden))
    row = sums_size(*sizes[1:])
    scaled = precision == "fp16"
    first = Launch(
        _single_gradient_kernel,
        programs,
        (tiles, height, width, hidden, numbers),
        (*sizes, scaled, config.tile_height, DTYPES[precision]),
        config.num_warps,
        device,
    )
    block = BLOCK if device.type == "cuda" else INTERPRETED_BLOCK
    blocks = -(-row // block)
    rectangles = count_rectangles(batch * channels, height, width)
    last, sums = (
        Launch(
            _single_gradient_end_kernel,
            number,
            (blocks, programs, height, width, hidden, numbers),
            (*sizes, scaled, ROWS, block, TALL, WIDE),
            4,
            device,
        )
        for number in (blocks + rectangles, blocks)
    )
    return SingleGradient(first, last, sums, 2 * numbers + programs * (row + 2))
