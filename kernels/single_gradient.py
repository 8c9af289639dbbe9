"""The derivative of `single_step` in two launches: the network's, then what crosses tiles."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .gradients import BLOCK, INTERPRETED_BLOCK, ROWS, first_bias_sums, store_sums
from .launch import Launch, LaunchConfig, count_tiles
from .network import differentiate_network
from .perceive import add_centers, perceive, split_features
from .rule import KernelRule
from .scale import LARGEST, SMALLEST, power_of_two, scale_exponent
from .single_gradient_end import (
    GATHER_COLUMNS,
    GATHER_ROWS,
    _single_gradient_end_kernel,
    count_rectangles,
)
from .single_step import ALIVE_AFTER, UPDATED
from .status import has, of_channels
from .tile import COLUMNS, advance, cells_of, distances, first_cell, locate, neighbours_inside
from .weights import (
    BIAS_COLUMNS,
    DTYPES,
    count_sums,
    find_overflow,
    load_parameters,
    padded_channels,
    padded_hidden,
)

USERS = ["state_ptr", "cell_flags_ptr", "grad_ptr", "w1_ptr", "b1_ptr", "w2_ptr"]
"""Tensors of the caller's, which may begin at any number of their memory; flags too, which a hook
on saved tensors may have replaced."""

CHECK_BLOCK = tl.constexpr(1024)
"""Weights that are looked at together for overflow."""


@triton.jit
def _is_not_finite(values):
    """Tell whether a matrix holds an infinity or NaN, as 0 or 1."""
    return tl.max(tl.max(tl.where(tl.abs(values) < float("inf"), 0, 1), axis=1), axis=0)


@triton.jit(
    do_not_specialize=["tiles", "height", "width", "hidden", "elements"],
    do_not_specialize_on_alignment=USERS,
)
def _single_gradient_kernel(
    state_ptr,
    cell_flags_ptr,
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
    elements: tl.int64,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    SUMS: tl.constexpr,
    RULE: tl.constexpr,
    SCALED: tl.constexpr,
    HEIGHT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Take the gradient back through the network of one step (E8 to E11).

    What reaches the cell itself is stored as the gradient of the state, what reaches its Sobel
    features beside it, for the next launch to gather.

    With fp16 operands a tile is multiplied by the power of two that suits its largest gradient,
    but not by more than the tiles before it, whose sums are brought down to it. Everything is
    divided by it again where it is stored.

    Two notes of a program stand beside the rows of sums: 1 if a weight, of those that it looks
    at, overflows as an operand; and 1 if gradients went through it, 2 if what it added up or what
    came in is not finite. Whatever else overflows ends as infinity or NaN in a sum.

    Shapes and units:
        state_ptr: `[B, CHANNELS, H, W]` float32, as is `grad_ptr`, the gradient of the result.
        cell_flags_ptr: `[B, H, W]` uint8, as `single_step` left them.
        w1_ptr: `[hidden, 3 * CHANNELS]` float32, as are b1 `[hidden]` and w2 `[CHANNELS, hidden]`.
        grad_state_ptr: `[B, CHANNELS, H, W]` float32, written.
        scratch_ptr: float32, written: `[2, elements]` gradients of the Sobel features, `[programs,
            SUMS]` sums, `[2, programs]` notes.
        elements: numbers of the state.
    """
    cells: tl.constexpr = HEIGHT * COLUMNS
    sizes = CHANNELS, hidden
    parameters = w1_ptr, b1_ptr, w2_ptr, b1_ptr
    weights = load_parameters(parameters, sizes, PADDED, HIDDEN, RULE, DTYPE)
    program, programs = tl.program_id(0), tl.num_programs(0)
    sums_ptr = scratch_ptr + 2 * elements
    notes_ptr = sums_ptr + programs.to(tl.int64) * SUMS
    if SCALED:
        wrong = find_overflow((w1_ptr, b1_ptr, w2_ptr), sizes, CHECK_BLOCK, RULE, DTYPE)
        tl.store(notes_ptr + program, wrong.to(tl.float32))
    grad1 = tl.zeros((HIDDEN, 4 * PADDED), tl.float32)
    grad2 = tl.zeros((HIDDEN, PADDED), tl.float32)
    grad_bias1 = first_bias_sums(HIDDEN, BIAS_COLUMNS, RULE)
    grad_bias2 = tl.zeros((cells // 2, PADDED), tl.float32)
    exponent = LARGEST + height * 0

    channel = tl.arange(0, PADDED)
    row, column = cells_of(HEIGHT)
    local = row * width + column
    plane = height.to(tl.int64) * width
    tile_columns, tile_rows = tl.cdiv(width, COLUMNS), tl.cdiv(height, HEIGHT)
    place = locate(program, tile_columns, tile_rows)
    stride = locate(programs, tile_columns, tile_rows)
    for _ in tl.range(program, tiles, programs, disable_licm=True):
        sample, tile_row, tile_column = place
        y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
        y, x = y0 + row, x0 + column
        inside = (y < height) & (x < width)
        cell = first_cell(sample, y0, x0, height, width)
        corner = sample.to(tl.int64) * (CHANNELS - 1) * plane + cell
        offsets = local[:, None] + channel[None, :] * (height * width)
        cell_flags = tl.load(cell_flags_ptr + cell + local, mask=inside, other=0).to(tl.int32)
        direct = tl.zeros((cells, PADDED), tl.float32)
        grad_x = tl.zeros((cells, PADDED), tl.float32)
        grad_y = tl.zeros((cells, PADDED), tl.float32)
        if tl.max((cell_flags >> ALIVE_AFTER) & 1, axis=0) != 0:
            status = of_channels(neighbours_inside(y, x, height, width), CHANNELS, PADDED)
            flags = of_channels(cell_flags, CHANNELS, PADDED)
            steps = distances(y, x, height, width, width, RULE.circular)
            _state, features = perceive(state_ptr + corner, offsets, steps, status, RULE, 1, DTYPE)
            grad = tl.load(grad_ptr + corner + offsets, mask=has(flags, ALIVE_AFTER), other=0.0)
            updating = has(flags, UPDATED)
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
            sums = grad1, grad2, grad_bias1
            grad1, grad2, grad_bias1, grad_features = differentiate_network(
                features, grad_delta, weights, sums, RULE
            )
            grads = split_features(grad_features, cells, PADDED)
            direct = add_centers(grad, grads, RULE) * unscale
            grad_x = grads[1] * unscale
            grad_y = grads[2] * unscale
        mask = inside[:, None] & (channel < CHANNELS)[None, :]
        tl.store(grad_state_ptr + corner + offsets, direct, mask=mask)
        tl.store(scratch_ptr + corner + offsets, grad_x, mask=mask)
        tl.store(scratch_ptr + elements + corner + offsets, grad_y, mask=mask)
        place = advance(place, stride, tile_columns, tile_rows)

    if SCALED:
        inverse = power_of_two(2 * 127 - exponent)
        grad1 *= inverse
        grad2 *= inverse
        wrong = _is_not_finite(grad1) | _is_not_finite(grad2) | _is_not_finite(grad_bias2)
        wrong |= (exponent < SMALLEST).to(tl.int32)
        note = wrong + (exponent < LARGEST).to(tl.int32)
        tl.store(notes_ptr + programs + program, note.to(tl.float32))
    row_ptr = sums_ptr + program.to(tl.int64) * SUMS
    store_sums(row_ptr, (grad1, grad2, grad_bias1, grad_bias2), False, RULE, False)


@dataclass(frozen=True)
class SingleGradient:
    """Both launches, prepared for states of one shape and parameters of one size.

    Attributes:
        first: arguments are the state `[B, C, H, W]`; the cells' flags; the gradient of the result,
            like the state; w1, b1 and w2; the gradient of the state, like it, written; and the
            scratch.
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
    rule: KernelRule,
    device: torch.device,
    config: LaunchConfig,
) -> SingleGradient:
    """Prepare both launches.

    Args:
        shape: `(B, C, H, W)`, B at least 1.
        hidden: hidden units.
        precision: "fp16", "bf16" or "ieee".
        rule: the tutorial's rule.
        device: where the tensors are; all are float32, but for the flags, and contiguous.
        config: how to launch the first kernel.

    Returns:
        The launches.
    """
    batch, channels, height, width = shape
    tiles = count_tiles(batch, height, width, config.tile_height)
    programs = min(tiles, config.programs)
    elements = batch * channels * height * width
    sizes = (channels, padded_channels(channels), padded_hidden(hidden))
    row = count_sums(*sizes[1:], rule)
    scaled = precision == "fp16"
    first = Launch(
        _single_gradient_kernel,
        programs,
        (tiles, height, width, hidden, elements),
        (*sizes, row, rule, scaled, config.tile_height, DTYPES[precision]),
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
            (blocks, programs, height, width, hidden, elements),
            (*sizes, row, rule, scaled, ROWS, block, GATHER_ROWS, GATHER_COLUMNS),
            4,
            device,
        )
        for number in (blocks + rectangles, blocks)
    )
    return SingleGradient(first, last, sums, 2 * elements + programs * (row + 2))
