"""The network's weights in the layout of the step kernels, and their gradients taken out of it.

Packed weights are one array of operands: `[4*CP, HP]` of the first layer, `[HP, CP]` of the
second, then float32 numbers, `[CP]` of the second bias and `[HP]` of the first. Row 4c + k of the
first part meets feature k of channel c, and carries the inverse of that filter's scale. If fewer
than four filters leave a constant feature, those of channels 0 and 1 carry the first bias, and
what rounding it to the operands' type left over.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rule import KernelRule

OPERAND_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "ieee": torch.float32}
"""Type of the MMA operands by precision."""

DTYPES = {"fp16": tl.float16, "bf16": tl.bfloat16, "ieee": tl.float32}
"""The same as Triton's types."""

FEATURES = 4
"""Features of a channel: those of the filters, then the constant 1."""

BIAS_COLUMNS = tl.constexpr(16)
"""Columns, all equal, of the sums of the first bias: the fewest that a product has."""


@dataclass(frozen=True)
class Weights:
    """Packed weights.

    Attributes:
        packed: `[(4 + 1) * CP * HP + CP + HP]` operands, the biases counted as float32 numbers.
        channels: padded channels CP.
        hidden: padded hidden units HP.
        rule: the rule that they are packed for.
    """

    packed: Tensor
    channels: int
    hidden: int
    rule: KernelRule

    @property
    def sums(self) -> int:
        """How many numbers the sums of their gradients are."""
        return count_sums(self.channels, self.hidden, self.rule)


def padded_channels(channels: int) -> int:
    """Return the channels CP of a stored state, 16 or 32: a dot needs 16."""
    return 16 if channels <= 16 else 32


def padded_hidden(hidden: int) -> int:
    """Return the hidden units HP of the packed weights, a power of two."""
    return max(16, 1 << (hidden - 1).bit_length())


def empty_weights(
    channels: int, hidden: int, rule: KernelRule, dtype: torch.dtype, device: torch.device
) -> Weights:
    """Allocate packed weights for a network of `channels` channels and `hidden` hidden units."""
    channels, hidden = padded_channels(channels), padded_hidden(hidden)
    size = (FEATURES + 1) * channels * hidden + (channels + hidden) * (4 // dtype.itemsize)
    return Weights(torch.empty(size, dtype=dtype, device=device), channels, hidden, rule)


def count_sums(channels: int, hidden: int, rule: KernelRule) -> int:
    """Return how many numbers one program's sums of weight gradients are.

    Args:
        channels: padded channels.
        hidden: padded hidden units.
        rule: the rule.
    """
    first_bias = 0 if rule.bias_is_feature else hidden
    return (FEATURES + 1) * channels * hidden + channels + first_bias


@triton.jit
def load_weights(weights_ptr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, RULE: tl.constexpr):
    """Load packed weights.

    Returns:
        The first layer `[4 * CHANNELS, HIDDEN]` and its bias `[HIDDEN]` float32, the second
        `[HIDDEN, CHANNELS]` and its bias `[CHANNELS]` float32. A bias that is a feature, or that
        the rule does not have, means nothing.
    """
    feature = tl.arange(0, 4 * CHANNELS)
    channel = tl.arange(0, CHANNELS)
    unit = tl.arange(0, HIDDEN)
    weight1 = tl.load(weights_ptr + feature[:, None] * HIDDEN + unit[None, :])
    second_ptr = weights_ptr + 4 * CHANNELS * HIDDEN
    weight2 = tl.load(second_ptr + unit[:, None] * CHANNELS + channel[None, :])
    biases_ptr = (second_ptr + CHANNELS * HIDDEN).to(tl.pointer_type(tl.float32))
    bias2 = tl.load(biases_ptr + channel)
    bias1 = bias2
    if not RULE.bias_is_feature:
        bias1 = tl.load(biases_ptr + CHANNELS + unit)
    return weight1, bias1, weight2, bias2


@triton.jit
def filter_weight(weight, feature, RULE: tl.constexpr):
    """Divide weights that meet a feature, or their gradients, by the scale of its filter."""
    for number in tl.static_range(4):
        if number < len(RULE.filters) and RULE.filters[number].scale != 1:
            weight = tl.where(feature == number, weight * (1 / RULE.filters[number].scale), weight)
    return weight


@triton.jit
def first_layer(w1_ptr, b1_ptr, row, unit, sizes, RULE: tl.constexpr, DTYPE: tl.constexpr):
    """Return elements of the first layer as packed.

    Args:
        w1_ptr: `[hidden, K * channels]` float32.
        b1_ptr: `[hidden]` float32.
        row: number 4c + k of the feature that they meet.
        unit: hidden unit.
        sizes: channels and hidden units of the parameters.
        RULE: the rule, with K filters.
        DTYPE: type of the operands.
    """
    channels, hidden = sizes
    feature, channel = row % 4, row // 4
    count: tl.constexpr = len(RULE.filters)
    known = (unit < hidden) & (channel < channels)
    tap = known & (feature < count)
    offsets = unit * (count * channels) + count * channel + feature
    weight = filter_weight(tl.load(w1_ptr + offsets, tap, other=0.0), feature, RULE)
    if RULE.bias_is_feature:
        constant = (unit < hidden) & (feature == count) & (channel < 2)
        bias = tl.load(b1_ptr + unit, mask=constant, other=0.0)
        rounded = bias.to(DTYPE).to(tl.float32)
        finite = tl.abs(rounded) < float("inf")  # not infinity - infinity
        rest = tl.where(finite, bias - rounded, 0.0)
        weight = tl.where(constant, tl.where(channel == 0, rounded, rest), weight)
    return weight.to(DTYPE)


@triton.jit
def second_layer(w2_ptr, unit, channel, outputs, hidden, DTYPE: tl.constexpr):
    """Return elements of the second layer, `[outputs, hidden]` float32, as packed."""
    known = (unit < hidden) & (channel < outputs)
    return tl.load(w2_ptr + channel * hidden + unit, mask=known, other=0.0).to(DTYPE)


@triton.jit
def load_parameters(
    parameters,
    sizes,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    RULE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Load what `load_weights` would load, from the parameters as they are.

    Args:
        parameters: pointers to w1, b1, w2 and b2.
        sizes: channels and hidden units of the parameters.
        CHANNELS: padded channels.
        HIDDEN: padded hidden units.
        RULE: the tutorial's rule.
        DTYPE: type of the operands.
    """
    w1_ptr, b1_ptr, w2_ptr, b2_ptr = parameters
    channels, hidden = sizes
    row = tl.arange(0, 4 * CHANNELS)
    channel = tl.arange(0, CHANNELS)
    unit = tl.arange(0, HIDDEN)
    shape: tl.constexpr = (4 * CHANNELS, HIDDEN)
    row, column = tl.broadcast_to(row[:, None], shape), tl.broadcast_to(unit[None, :], shape)
    weight1 = first_layer(w1_ptr, b1_ptr, row, column, sizes, RULE, DTYPE)
    weight2 = second_layer(w2_ptr, unit[:, None], channel[None, :], channels, hidden, DTYPE)
    bias2 = tl.load(b2_ptr + channel, mask=channel < channels, other=0.0)
    return weight1, bias2, weight2, bias2


@triton.jit
def _overflows(weight, DTYPE: tl.constexpr):
    """Test which weights are not finite as operands, 0 or 1."""
    return tl.where(tl.abs(weight.to(DTYPE).to(tl.float32)) < float("inf"), 0, 1)


@triton.jit
def find_overflow(parameters, sizes, BLOCK: tl.constexpr, RULE: tl.constexpr, DTYPE: tl.constexpr):
    """Test whether a weight overflows as an operand, 0 or 1; programs share the weights.

    Args:
        parameters: pointers to w1, b1 and w2.
        sizes: channels and hidden units of the parameters.
        BLOCK: weights that are looked at together.
        RULE: the rule.
        DTYPE: type of the operands.
    """
    w1_ptr, b1_ptr, w2_ptr = parameters
    channels, hidden = sizes
    count: tl.constexpr = len(RULE.filters)
    wrong = tl.zeros((BLOCK,), tl.int32)
    blocks = tl.cdiv(count * channels * hidden, BLOCK)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0)):
        index = block * BLOCK + tl.arange(0, BLOCK)
        weight = tl.load(w1_ptr + index, mask=index < count * channels * hidden, other=0.0)
        wrong |= _overflows(filter_weight(weight, index % count, RULE), DTYPE)
        bias = tl.load(b1_ptr + index, mask=index < hidden, other=0.0)
        weight = tl.load(w2_ptr + index, mask=index < channels * hidden, other=0.0)
        wrong |= _overflows(bias, DTYPE) | _overflows(weight, DTYPE)
    return tl.max(wrong, axis=0)
