"""The network's weights in the layout of the step kernels, and their gradients taken out of it.

Packed weights are one array of operands: `[4*CP, HP]` of the first layer, `[HP, CP]` of the
second, then `[CP]` float32 numbers, the second bias. Row 4c + k of the first part meets feature k
of channel c. The Sobel rows carry the filters' 1/8; the constant features of channels 0 and 1
carry the first bias and what rounding it to the operands' type left over.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tile import numbers_of

OPERAND_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "ieee": torch.float32}
"""Type of the MMA operands by precision."""

DTYPES = {"fp16": tl.float16, "bf16": tl.bfloat16, "ieee": tl.float32}
"""The same as Triton's types."""

SLOTS = 4
"""Features per channel: identity, Sobel-x, Sobel-y and the constant 1."""

USERS = ["w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "seed_ptr", "steps_ptr"]
"""Tensors of the caller's, which may begin at any number of their memory."""

PACK_BLOCK = 1024
MOST_PACK_PROGRAMS = 1024


@dataclass(frozen=True)
class Weights:
    """Packed weights.

    Attributes:
        packed: `[packed_size]` operands.
        channels: padded channels CP.
        hidden: padded hidden units HP.
    """

    packed: Tensor
    channels: int
    hidden: int


def padded_channels(channels: int) -> int:
    """Return the channels CP of a stored state, 16 or 32: a dot needs 16."""
    return 16 if channels <= 16 else 32


def padded_hidden(hidden: int) -> int:
    """Return the hidden units HP of the packed weights, a power of two."""
    return max(16, 1 << (hidden - 1).bit_length())


def empty_weights(channels: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Weights:
    """Allocate packed weights for a network of `channels` channels and `hidden` hidden units."""
    wide, tall = padded_channels(channels), padded_hidden(hidden)
    size = (SLOTS + 1) * wide * tall + wide * (4 // dtype.itemsize)
    return Weights(torch.empty(size, dtype=dtype, device=device), wide, tall)


def partial_size(weights: Weights) -> int:
    """Return the numbers in one program's sums of weight gradients."""
    return sums_size(weights.channels, weights.hidden)


def sums_size(channels: int, hidden: int) -> int:
    """Return the same for padded channels and hidden units."""
    return (SLOTS + 1) * channels * hidden + channels


@triton.jit
def load_weights(weights_ptr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr):
    """Load both layers, `[4 * CHANNELS, HIDDEN]` and `[HIDDEN, CHANNELS]`."""
    feature = tl.arange(0, 4 * CHANNELS)
    channel = tl.arange(0, CHANNELS)
    unit = tl.arange(0, HIDDEN)
    weight1 = tl.load(weights_ptr + feature[:, None] * HIDDEN + unit[None, :])
    second_ptr = weights_ptr + 4 * CHANNELS * HIDDEN
    weight2 = tl.load(second_ptr + unit[:, None] * CHANNELS + channel[None, :])
    return weight1, weight2


@triton.jit
def load_bias2(weights_ptr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr):
    """Load the second bias, `[CHANNELS]` float32."""
    bias2_ptr = (weights_ptr + 5 * CHANNELS * HIDDEN).to(tl.pointer_type(tl.float32))
    return tl.load(bias2_ptr + tl.arange(0, CHANNELS))


@triton.jit
def _first_layer(w1_ptr, b1_ptr, row, unit, channels, hidden, DTYPE: tl.constexpr):
    """Return elements of the first layer as packed: `row` meets a feature, `unit` is hidden."""
    feature, channel = row % 4, row // 4
    known = (unit < hidden) & (channel < channels)
    tap = known & (feature < 3)
    weight = tl.load(w1_ptr + unit * (3 * channels) + 3 * channel + feature, tap, other=0.0)
    weight = tl.where(feature == 0, weight, weight * 0.125)
    constant = known & (feature == 3) & (channel < 2)
    bias = tl.load(b1_ptr + unit, mask=constant, other=0.0)
    rounded = bias.to(DTYPE).to(tl.float32)
    rest = tl.where(tl.abs(rounded) < float("inf"), bias - rounded, 0.0)  # not infinity - infinity
    weight = tl.where(constant, tl.where(channel == 0, rounded, rest), weight)
    return weight.to(DTYPE)


@triton.jit
def _second_layer(w2_ptr, unit, channel, channels, hidden, DTYPE: tl.constexpr):
    """Return elements of the second layer as packed."""
    known = (unit < hidden) & (channel < channels)
    return tl.load(w2_ptr + channel * hidden + unit, mask=known, other=0.0).to(DTYPE)


@triton.jit
def read_weights(
    w1_ptr,
    b1_ptr,
    w2_ptr,
    channels,
    hidden,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Read both layers as `load_weights` would load them, from the parameters as they are."""
    row = tl.arange(0, 4 * CHANNELS)
    channel = tl.arange(0, CHANNELS)
    unit = tl.arange(0, HIDDEN)
    shape: tl.constexpr = (4 * CHANNELS, HIDDEN)
    row, column = tl.broadcast_to(row[:, None], shape), tl.broadcast_to(unit[None, :], shape)
    weight1 = _first_layer(w1_ptr, b1_ptr, row, column, channels, hidden, DTYPE)
    weight2 = _second_layer(w2_ptr, unit[:, None], channel[None, :], channels, hidden, DTYPE)
    return weight1, weight2


@triton.jit
def _overflows(weight, DTYPE: tl.constexpr):
    """Tell which weights are not finite as operands, 0 or 1."""
    return tl.where(tl.abs(weight.to(DTYPE).to(tl.float32)) < float("inf"), 0, 1)


@triton.jit
def find_overflow(
    w1_ptr,
    b1_ptr,
    w2_ptr,
    channels,
    hidden,
    program,
    programs,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Tell whether a weight overflows as an operand, 0 or 1; programs share the weights out."""
    wrong = tl.zeros((BLOCK,), tl.int32)
    for block in tl.range(program, tl.cdiv(3 * channels * hidden, BLOCK), programs):
        index = block * BLOCK + tl.arange(0, BLOCK)
        weight = tl.load(w1_ptr + index, mask=index < 3 * channels * hidden, other=0.0)
        wrong |= _overflows(tl.where(index % 3 == 0, weight, weight * 0.125), DTYPE)
        bias = tl.load(b1_ptr + index, mask=index < hidden, other=0.0)
        weight = tl.load(w2_ptr + index, mask=index < channels * hidden, other=0.0)
        wrong |= _overflows(bias, DTYPE) | _overflows(weight, DTYPE)
    return tl.max(wrong, axis=0)


@triton.jit(
    do_not_specialize=["seed", "first_step", "steps", "words", "channels", "hidden"],
    do_not_specialize_on_alignment=USERS,
)
def _pack_weights_kernel(
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    weights_ptr,
    flags_ptr,
    counter_ptr,
    seed_ptr,
    steps_ptr,
    seed: tl.int64,
    first_step: tl.int64,
    steps: tl.int64,
    words: tl.int64,
    channels,
    hidden,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    COUNTER: tl.constexpr,
    SEED_GIVEN: tl.constexpr,
    STEPS_GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare a rollout: pack the parameters, clear the flags, write the counter."""
    dtype: tl.constexpr = weights_ptr.dtype.element_ty
    program, programs = tl.program_id(0), tl.num_programs(0)
    for block in tl.range(program, tl.cdiv(words, BLOCK), programs):
        word = numbers_of(block, BLOCK)
        tl.store(flags_ptr + word, tl.zeros((BLOCK,), tl.int64), mask=word < words)
    for block in tl.range(program, tl.cdiv(4 * CHANNELS * HIDDEN, BLOCK), programs):
        index = block * BLOCK + tl.arange(0, BLOCK)
        unit, row = index % HIDDEN, index // HIDDEN
        weight = _first_layer(w1_ptr, b1_ptr, row, unit, channels, hidden, dtype)
        tl.store(weights_ptr + index, weight, mask=row < 4 * CHANNELS)
    second_ptr = weights_ptr + 4 * CHANNELS * HIDDEN
    for block in tl.range(program, tl.cdiv(CHANNELS * HIDDEN, BLOCK), programs):
        index = block * BLOCK + tl.arange(0, BLOCK)
        unit, channel = index // CHANNELS, index % CHANNELS
        weight = _second_layer(w2_ptr, unit, channel, channels, hidden, dtype)
        tl.store(second_ptr + index, weight, mask=unit < HIDDEN)
    if program == 0:
        channel = tl.arange(0, CHANNELS)
        bias2 = tl.load(b2_ptr + channel, mask=channel < channels, other=0.0)
        bias2_ptr = (second_ptr + CHANNELS * HIDDEN).to(tl.pointer_type(tl.float32))
        tl.store(bias2_ptr + channel, bias2)
        if COUNTER:
            if SEED_GIVEN:
                seed = tl.load(seed_ptr)
            if STEPS_GIVEN:
                steps = tl.minimum(tl.load(steps_ptr), steps)
            number = tl.arange(0, 4)
            value = tl.where(number == 0, seed, tl.where(number == 1, first_step, steps))
            tl.store(counter_ptr + number, value.to(tl.int64), mask=number < 3)


def pack_weights(
    parameters: tuple[Tensor, ...],
    weights: Weights,
    counter: Tensor,
    numbers: tuple[int | Tensor, int, int, Tensor | None] | None,
    flags: Tensor | None = None,
) -> None:
    """Prepare a rollout in one launch: pack the parameters, write the counter, clear the flags.

    Args:
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, 3*C, 1, 1]`,
            `[hidden]`, `[C, hidden, 1, 1]`, `[C]`, float32.
        weights: written.
        counter: `[3]` int64: seed, number of the first step, number of steps.
        numbers: what to write into `counter`: the seed's 64 bits as a signed number or a tensor
            `[]` int64 that is read on the device; the first step; the most steps; and the number
            of steps as such a tensor, or None if it is the most. None leaves `counter` as it is.
        flags: int64; set to zero.
    """
    w1, b1, w2, b2 = (parameter.resolve_neg().contiguous() for parameter in parameters)
    seed, first_step, steps, count = (0, 0, 0, None) if numbers is None else numbers
    given, key = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
    words = 0 if flags is None else flags.numel()
    blocks = max(-(-words // PACK_BLOCK), SLOTS * weights.channels * weights.hidden // PACK_BLOCK)
    launch(
        _pack_weights_kernel,
        min(blocks, MOST_PACK_PROGRAMS),
        (
            w1,
            b1,
            w2,
            b2,
            weights.packed,
            counter if flags is None else flags,
            counter,
            counter if given is None else given,
            counter if count is None else count,
        ),
        (key, first_step, steps, words, w2.shape[0], w2.shape[1]),
        (
            weights.channels,
            weights.hidden,
            numbers is not None,
            given is not None,
            count is not None,
            PACK_BLOCK,
        ),
        num_warps=4,
    )
