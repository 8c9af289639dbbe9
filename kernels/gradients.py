"""The ends of the gradients of the weights: the sums of all programs, and what overflows."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tile import numbers_of
from .weights import Weights, partial_size

ROWS = 32
BLOCK = 128
INTERPRETED_BLOCK = 4096  # fewer programs, which cost the interpreter more than numbers do
FILL_BLOCK = 1024
MOST_FILL_PROGRAMS = 512


@triton.jit
def _store(pointers, value, mask, scale_ptr, CHECKED: tl.constexpr):
    """Store a result, and remember where it is not finite."""
    tl.store(pointers, value, mask=mask)
    if CHECKED:
        note_overflow(value, mask, scale_ptr)


@triton.jit
def note_overflow(value, mask, scale_ptr):
    """Set the second number at `scale_ptr` if a masked element is infinite or NaN.

    Every program that has something to say stores the same 1, so their order does not matter.
    """
    wrong = tl.where((tl.abs(value) < float("inf")) | (mask == 0), 0, 1)
    tl.store(scale_ptr + 1, 1.0, mask=tl.max(wrong) != 0)


@triton.jit
def _store_sum(pointers, value, later, ADDS: tl.constexpr):
    """Store a sum, on top of what is there if `later` and `ADDS`."""
    if ADDS:
        value = tl.where(later, tl.load(pointers), 0.0) + value
    tl.store(pointers, value)


@triton.jit
def store_sums(
    row_ptr,
    grad1,
    grad2,
    grad_bias2,
    later,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Store a program's sums in its own row, on top of what is there if `later` and `ADDS`."""
    feature = tl.arange(0, 4 * CHANNELS)
    unit = tl.arange(0, HIDDEN)
    channel = tl.arange(0, CHANNELS)
    _store_sum(row_ptr + unit[:, None] + feature[None, :] * HIDDEN, grad1, later, ADDS)
    row_ptr += 4 * CHANNELS * HIDDEN
    _store_sum(row_ptr + unit[:, None] * CHANNELS + channel[None, :], grad2, later, ADDS)
    row_ptr += HIDDEN * CHANNELS
    _store_sum(row_ptr + channel, tl.sum(grad_bias2, axis=0), later, ADDS)


@triton.jit
def add_rows(rows_ptr, rows, index, size, ROWS: tl.constexpr):
    """Add up elements `index` of `rows` rows of `size` numbers, in a fixed order."""
    total = tl.zeros(index.shape, tl.float32)
    for first in tl.range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (index < size)[None, :]
        offsets = row[:, None].to(tl.int64) * size + index[None, :]
        total += tl.sum(tl.load(rows_ptr + offsets, mask=mask, other=0.0), axis=0)
    return total


@triton.jit
def unpack_gradients(
    total,
    index,
    grad_w1_ptr,
    grad_b1_ptr,
    grad_w2_ptr,
    grad_b2_ptr,
    scale_ptr,
    channels,
    hidden,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """Store elements `index` of the sums as gradients of the parameters, unpacked."""
    unit, row = index % HIDDEN, index // HIDDEN
    feature, channel = row % 4, row // 4
    first_layer = (row < 4 * CHANNELS) & (unit < hidden) & (channel < channels)
    weight = tl.where(feature == 0, total, total * 0.125)
    offsets = unit * (3 * channels) + 3 * channel + feature
    _store(grad_w1_ptr + offsets, weight, first_layer & (feature < 3), scale_ptr, CHECKED)
    constant = first_layer & (feature == 3) & (channel == 0)
    _store(grad_b1_ptr + unit, total, constant, scale_ptr, CHECKED)

    index -= 4 * CHANNELS * HIDDEN
    unit, channel = index // CHANNELS, index % CHANNELS
    second_layer = (index >= 0) & (unit < hidden) & (channel < channels)
    _store(grad_w2_ptr + channel * hidden + unit, total, second_layer, scale_ptr, CHECKED)
    index -= CHANNELS * HIDDEN
    _store(grad_b2_ptr + index, total, (index >= 0) & (index < channels), scale_ptr, CHECKED)


@triton.jit(do_not_specialize=["rows", "channels", "hidden"])
def _reduce_gradients_kernel(
    partials_ptr,
    scale_ptr,
    counter_ptr,
    grad_w1_ptr,
    grad_b1_ptr,
    grad_w2_ptr,
    grad_b2_ptr,
    rows,
    channels,
    hidden,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    CHECKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the rows of partial sums in a fixed order, and undo the packing of the weights.

    Without a step no program has written its row, and the gradients are zero.
    """
    size: tl.constexpr = 5 * CHANNELS * HIDDEN + CHANNELS
    rows = tl.where(tl.load(counter_ptr + 2) > 0, rows, 0)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = add_rows(partials_ptr, rows, index, size, ROWS)
    total *= tl.load(scale_ptr)
    unpack_gradients(
        total,
        index,
        grad_w1_ptr,
        grad_b1_ptr,
        grad_w2_ptr,
        grad_b2_ptr,
        scale_ptr,
        channels,
        hidden,
        CHANNELS,
        HIDDEN,
        CHECKED,
    )


def reduce_gradients(
    partials: Tensor,
    scale: Tensor,
    counter: Tensor,
    weights: Weights,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    checked: bool,
) -> None:
    """Add up the programs' sums and write the gradients of the parameters.

    Args:
        partials: `[programs, partial_size]` float32.
        scale: `[2]` float32: the inverse of what gradients were multiplied by; the second number
            becomes 1 if a result is not finite.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        weights: the packed weights.
        grads: gradients of w1, b1, w2 and b2, float32, contiguous; written.
        checked: whether to look for results that are not finite.
    """
    w2 = grads[2]
    block = BLOCK if partials.is_cuda else INTERPRETED_BLOCK
    launch(
        _reduce_gradients_kernel,
        -(-partial_size(weights) // block),
        (partials, scale, counter, *grads),
        (partials.shape[0], w2.shape[0], w2.shape[1]),
        (weights.channels, weights.hidden, checked, ROWS, block),
        num_warps=4,
    )


@triton.jit
def _fill(pointer, size, BLOCK: tl.constexpr):
    """Fill `size` numbers with NaN, all programs together."""
    for block in tl.range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        index = numbers_of(block, BLOCK)
        tl.store(pointer + index, tl.full((BLOCK,), float("nan"), tl.float32), mask=index < size)


@triton.jit(do_not_specialize=["state_size", "w1_size", "b1_size", "w2_size", "b2_size"])
def _poison_kernel(
    scale_ptr,
    grad_state_ptr,
    grad_w1_ptr,
    grad_b1_ptr,
    grad_w2_ptr,
    grad_b2_ptr,
    state_size: tl.int64,
    w1_size: tl.int64,
    b1_size: tl.int64,
    w2_size: tl.int64,
    b2_size: tl.int64,
    BLOCK: tl.constexpr,
):
    """Make all five gradients NaN if one of them is not finite."""
    if tl.load(scale_ptr + 1) == 0:
        return
    _fill(grad_state_ptr, state_size, BLOCK)
    _fill(grad_w1_ptr, w1_size, BLOCK)
    _fill(grad_b1_ptr, b1_size, BLOCK)
    _fill(grad_w2_ptr, w2_size, BLOCK)
    _fill(grad_b2_ptr, b2_size, BLOCK)


def poison(scale: Tensor, grads: tuple[Tensor, ...]) -> None:
    """Make all gradients NaN if the kernels found a number in one of them that is not finite.

    Args:
        scale: `[2]` float32, as `reduce_gradients` and `finish_backward` left it.
        grads: the five gradients, float32, contiguous.
    """
    sizes = tuple(grad.numel() for grad in grads)
    blocks = -(-max(sizes) // FILL_BLOCK)
    launch(
        _poison_kernel,
        min(blocks, MOST_FILL_PROGRAMS),
        (scale, *grads),
        sizes,
        (FILL_BLOCK,),
        num_warps=4,
    )
