"""The ends of the gradients of the weights: the sums of all programs, and what overflows."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tile import numbers_of
from .weights import Weights, filter_weight

ROWS = 32
BLOCK = 128
INTERPRETED_BLOCK = 4096  # fewer programs, which cost the interpreter more than numbers do
FILL_BLOCK = 1024
MAX_FILL_PROGRAMS = 512


@triton.jit
def _store(pointers, value, mask, scale_ptr, CHECKED: tl.constexpr):
    """Store a result, and remember where it is not finite."""
    tl.store(pointers, value, mask=mask)
    if CHECKED:
        note_overflow(value, mask, scale_ptr)


@triton.jit
def note_overflow(value, mask, scale_ptr):
    """Set the second number at `scale_ptr` if a masked element is infinite or NaN.

    Every program that stores stores the same 1, so their order does not matter.
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
def first_bias_sums(HIDDEN: tl.constexpr, COLUMNS: tl.constexpr, RULE: tl.constexpr):
    """Return zeros in which the gradient of the first bias is summed, if it is no feature."""
    if RULE.bias_is_feature:
        return tl.zeros((1, 1), tl.float32)
    else:
        return tl.zeros((HIDDEN, COLUMNS), tl.float32)


@triton.jit
def store_sums(row_ptr, sums, later, RULE: tl.constexpr, ADDS: tl.constexpr):
    """Store a program's sums in its own row, on top of what is there if `later` and `ADDS`.

    Args:
        row_ptr: pointer to `count_sums` float32 numbers.
        sums: gradients of the first layer `[HIDDEN, 4 * CHANNELS]`, of the second `[HIDDEN,
            CHANNELS]`, of the first bias (`first_bias_sums`) and, by rows that are added up here,
            of the second `[ROWS, CHANNELS]`.
        later: whether a launch before has stored in this row.
        RULE: the rule.
        ADDS: whether `later` is looked at.
    """
    grad1, grad2, grad_bias1, grad_bias2 = sums
    hidden: tl.constexpr = grad2.shape[0]
    channels: tl.constexpr = grad2.shape[1]
    feature = tl.arange(0, 4 * channels)
    unit = tl.arange(0, hidden)
    channel = tl.arange(0, channels)
    _store_sum(row_ptr + unit[:, None] + feature[None, :] * hidden, grad1, later, ADDS)
    row_ptr += 4 * channels * hidden
    _store_sum(row_ptr + unit[:, None] * channels + channel[None, :], grad2, later, ADDS)
    row_ptr += hidden * channels
    _store_sum(row_ptr + channel, tl.sum(grad_bias2, axis=0), later, ADDS)
    if not RULE.bias_is_feature:
        _store_sum(row_ptr + channels + unit, tl.max(grad_bias1, axis=1), later, ADDS)


@triton.jit
def add_rows(rows_ptr, rows, index, size, ROWS: tl.constexpr):
    """Add up elements `index` of `rows` rows of `size` numbers, in a fixed order.

    Args:
        rows_ptr: `[rows, size]` float32.
        rows: number of rows.
        index: `[BLOCK]` int32.
        size: numbers of a row.
        ROWS: rows that are loaded at once.

    Returns:
        `[BLOCK]` float32.
    """
    total = tl.zeros(index.shape, tl.float32)
    for first in tl.range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (index < size)[None, :]
        offsets = row[:, None].to(tl.int64) * size + index[None, :]
        total += tl.sum(tl.load(rows_ptr + offsets, mask=mask, other=0.0), axis=0)
    return total


@triton.jit
def unpack_gradients(
    total, index, grads, scale_ptr, sizes, layout, RULE: tl.constexpr, CHECKED: tl.constexpr
):
    """Store elements `index` of the sums as gradients of the parameters.

    Args:
        total: `[BLOCK]` float32, sums over all programs.
        index: `[BLOCK]` int32, their places in a row of sums.
        grads: pointers to the gradients of w1 `[hidden, K * channels]`, b1 `[hidden]`, w2
            `[outputs, hidden]` and b2 `[outputs]`, float32, written.
        scale_ptr: `[2]` float32; the second number becomes 1 where CHECKED finds an infinity.
        sizes: channels, outputs and hidden units of the parameters.
        layout: padded channels and padded hidden units of the sums.
        RULE: the rule, with K filters.
        CHECKED: whether to look for results that are not finite.
    """
    grad_w1_ptr, grad_b1_ptr, grad_w2_ptr, grad_b2_ptr = grads
    channels, outputs, hidden = sizes
    padded_channels, padded_hidden = layout
    count: tl.constexpr = len(RULE.filters)
    unit, row = index % padded_hidden, index // padded_hidden
    feature, channel = row % 4, row // 4
    first_layer = (row < 4 * padded_channels) & (unit < hidden) & (channel < channels)
    weight = filter_weight(total, feature, RULE)
    offsets = unit * (count * channels) + count * channel + feature
    _store(grad_w1_ptr + offsets, weight, first_layer & (feature < count), scale_ptr, CHECKED)
    if RULE.bias_is_feature:
        constant = first_layer & (feature == count) & (channel == 0)
        _store(grad_b1_ptr + unit, total, constant, scale_ptr, CHECKED)

    index -= 4 * padded_channels * padded_hidden
    unit, channel = index // padded_channels, index % padded_channels
    second_layer = (index >= 0) & (unit < hidden) & (channel < outputs)
    _store(grad_w2_ptr + channel * hidden + unit, total, second_layer, scale_ptr, CHECKED)
    index -= padded_channels * padded_hidden
    if RULE.final_bias:
        second_bias = (index >= 0) & (index < outputs)
        _store(grad_b2_ptr + index, total, second_bias, scale_ptr, CHECKED)
    if not RULE.bias_is_feature:
        index -= padded_channels
        first_bias = (index >= 0) & (index < hidden)
        _store(grad_b1_ptr + index, total, first_bias, scale_ptr, CHECKED)


@triton.jit(do_not_specialize=["rows", "channels", "outputs", "hidden"])
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
    outputs,
    hidden,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    RULE: tl.constexpr,
    CHECKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the rows of sums in a fixed order, and undo the packing of the weights (E9, E10).

    Without a step no program has written its row, and the gradients are zero.

    Pointers are the tensors of `reduce_gradients`, in its order.
    """
    rows = tl.where(tl.load(counter_ptr + 2) > 0, rows, 0)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = add_rows(partials_ptr, rows, index, SIZE, ROWS)
    total *= tl.load(scale_ptr)
    grads = grad_w1_ptr, grad_b1_ptr, grad_w2_ptr, grad_b2_ptr
    sizes, layout = (channels, outputs, hidden), (CHANNELS, HIDDEN)
    unpack_gradients(total, index, grads, scale_ptr, sizes, layout, RULE, CHECKED)


def reduce_gradients(
    partials: Tensor,
    scale: Tensor,
    counter: Tensor,
    weights: Weights,
    grads: tuple[Tensor, ...],
    checked: bool,
) -> None:
    """Add up the programs' sums and write the gradients of the parameters.

    Args:
        partials: `[programs, weights.sums]` float32.
        scale: `[2]` float32: the inverse of what gradients were multiplied by; the second number
            becomes 1 if a result is not finite.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        weights: the packed weights.
        grads: gradients of w1, b1, w2 and, if the rule has it, b2, float32, contiguous; written.
        checked: whether to look for results that are not finite.
    """
    w1, b1, w2, *rest = grads
    outputs, hidden = w2.shape[:2]
    block = BLOCK if partials.is_cuda else INTERPRETED_BLOCK
    launch(
        _reduce_gradients_kernel,
        -(-weights.sums // block),
        (partials, scale, counter, w1, b1, w2, rest[0] if rest else b1),
        (partials.shape[0], w1.shape[1] // len(weights.rule.filters), outputs, hidden),
        (weights.channels, weights.hidden, weights.sums, weights.rule, checked, ROWS, block),
        num_warps=4,
    )


@triton.jit
def _fill(pointer, size, BLOCK: tl.constexpr):
    """Fill `size` numbers with NaN, all programs together."""
    for block in tl.range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        index = numbers_of(block, BLOCK)
        tl.store(pointer + index, tl.full((BLOCK,), float("nan"), tl.float32), mask=index < size)


@triton.jit(do_not_specialize=["state_size", "w1_size", "b1_size", "w2_size", "b2_size"])
def _nan_fill_kernel(
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
    """Make all gradients, float32 numbers, NaN if the second number at `scale_ptr` is set."""
    if tl.load(scale_ptr + 1) == 0:
        return
    _fill(grad_state_ptr, state_size, BLOCK)
    _fill(grad_w1_ptr, w1_size, BLOCK)
    _fill(grad_b1_ptr, b1_size, BLOCK)
    _fill(grad_w2_ptr, w2_size, BLOCK)
    _fill(grad_b2_ptr, b2_size, BLOCK)


def nan_fill_if_overflow(scale: Tensor, grads: tuple[Tensor, ...]) -> None:
    """Make all gradients NaN if the kernels found a number in one of them that is not finite.

    Args:
        scale: `[2]` float32, as `reduce_gradients` and `end_backward` left it.
        grads: the gradients, at most five, float32, contiguous.
    """
    sizes = [grad.numel() for grad in grads]
    missing = 5 - len(grads)
    launch(
        _nan_fill_kernel,
        min(-(-max(sizes) // FILL_BLOCK), MAX_FILL_PROGRAMS),
        (scale, *grads, *[grads[-1]] * missing),
        (*sizes, *[0] * missing),
        (FILL_BLOCK,),
        num_warps=4,
    )
