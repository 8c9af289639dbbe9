"""The network's weights in the layout of the step kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

OPERAND_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "ieee": torch.float32}
"""Type of the MMA operands by precision."""

SLOTS = 4
"""Features per channel: identity, Sobel-x, Sobel-y and the constant 1."""


@dataclass(frozen=True)
class Weights:
    """Packed weights.

    Attributes:
        weight1: `[4*CP, HP]` operands; row 4c + k meets feature k of channel c. The Sobel rows
            carry the filters' 1/8. The constant features of channels 0 and 1 carry the bias
            and what rounding it to the operands' type left over.
        weight2: `[HP, CP]` operands.
        bias2: `[CP]` float32.
    """

    weight1: Tensor
    weight2: Tensor
    bias2: Tensor


def padded_channels(channels: int) -> int:
    """Return the channels CP of a stored state, 16 or 32: a dot needs 16."""
    return 16 if channels <= 16 else 32


def padded_hidden(hidden: int) -> int:
    """Return the hidden units HP of the packed weights, a power of two."""
    return max(16, 1 << (hidden - 1).bit_length())


def pack_weights(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dtype: torch.dtype) -> Weights:
    """Pack the parameters of the two 1x1 convolutions.

    Args:
        w1: `[hidden, 3*C, 1, 1]`.
        b1: `[hidden]`.
        w2: `[C, hidden, 1, 1]`.
        b2: `[C]`.
        dtype: type of the MMA operands.

    Returns:
        The packed weights.
    """
    channels, hidden = w2.shape[:2]
    wide, tall = padded_channels(channels), padded_hidden(hidden)
    weight1 = torch.zeros(wide, SLOTS, tall, dtype=torch.float32, device=w1.device)
    taps = w1.detach().view(hidden, channels, 3).permute(1, 2, 0)
    weight1[:channels, 0, :hidden] = taps[:, 0]
    weight1[:channels, 1:3, :hidden] = taps[:, 1:] * 0.125
    weight1[0, 3, :hidden] = b1.detach().to(dtype)
    weight1[1, 3, :hidden] = b1.detach() - weight1[0, 3, :hidden]
    weight2 = torch.zeros(tall, wide, dtype=dtype, device=w1.device)
    weight2[:hidden, :channels] = w2.detach().view(channels, hidden).T
    bias2 = torch.zeros(wide, dtype=torch.float32, device=w1.device)
    bias2[:channels] = b2.detach()
    return Weights(weight1.view(SLOTS * wide, tall).to(dtype), weight2, bias2)


def partial_size(weights: Weights) -> int:
    """Return the numbers in one program's sums of weight gradients."""
    return weights.weight1.numel() + weights.weight2.numel() + weights.bias2.numel()


def unpack_gradients(
    total: Tensor, weights: Weights, channels: int, hidden: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undo `pack_weights` for gradients.

    Args:
        total: `[partial_size]` gradients of `weight1`, `weight2` and `bias2`, in this order.
        weights: the packed weights.
        channels: channels C.
        hidden: hidden units.

    Returns:
        Gradients of w1, b1, w2 and b2 in the shapes of `pack_weights`.
    """
    sizes = [part.numel() for part in (weights.weight1, weights.weight2, weights.bias2)]
    grad1, grad2, grad_bias2 = total.split(sizes)
    taps = grad1.view(-1, SLOTS, weights.weight1.shape[1])[:, :, :hidden]
    sobel = taps[:channels, 1:3] * 0.125
    grad_w1 = torch.cat((taps[:channels, :1], sobel), dim=1).permute(2, 0, 1)
    grad_w2 = grad2.view_as(weights.weight2)[:hidden, :channels].T
    return (
        grad_w1.reshape(hidden, 3 * channels, 1, 1).contiguous(),
        taps[0, 3].clone(),
        grad_w2.reshape(channels, hidden, 1, 1).contiguous(),
        grad_bias2[:channels].clone(),
    )
