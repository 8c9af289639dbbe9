"""Device functions for the network of a cell and its derivative (equations 3 and 9 to 11)."""

import triton
import triton.language as tl

from .perceive import rectify


@triton.jit
def apply_network(perceived, weight1, weight2, bias2):
    """Compute the update of every cell of a tile (equation 3).

    Args:
        perceived: `[CELLS, 4 * CHANNELS]` operands, joined features.
        weight1: `[4 * CHANNELS, HIDDEN]` operands.
        weight2: `[HIDDEN, CHANNELS]` operands.
        bias2: `[CHANNELS]` float32.

    Returns:
        `[CELLS, CHANNELS]` float32.
    """
    hidden = tl.dot(perceived, weight1, input_precision="ieee")
    hidden = rectify(hidden, weight1.dtype)
    return tl.dot(hidden, weight2, input_precision="ieee") + bias2[None, :]


@triton.jit
def differentiate_network(perceived, grad_delta, weight1, weight2, grad1, grad2):
    """Differentiate the network for a tile (equations 9 to 11), all but its second bias.

    Products are laid out with hidden units as rows: the activations then enter the products for
    the weight gradients from registers. Their order decides about spills.

    Args:
        perceived: `[CELLS, 4 * CHANNELS]` operands, joined features.
        grad_delta: `[CELLS, CHANNELS]` float32, gradient of the update, scaled for operands.
        weight1: `[4 * CHANNELS, HIDDEN]` operands.
        weight2: `[HIDDEN, CHANNELS]` operands.
        grad1: `[HIDDEN, 4 * CHANNELS]` float32, gradient of the first layer so far.
        grad2: `[HIDDEN, CHANNELS]` float32, gradient of the second layer so far.

    Returns:
        The two sums, this tile included, and the gradient of the joined features,
        `[CELLS, 4 * CHANNELS]` float32.
    """
    dtype: tl.constexpr = weight1.dtype
    grad_delta = grad_delta.to(dtype)
    grad_hidden = tl.dot(weight2, tl.trans(grad_delta), input_precision="ieee")
    hidden = tl.dot(tl.trans(weight1), tl.trans(perceived), input_precision="ieee")
    grad_hidden = tl.where(hidden <= 0, 0.0, grad_hidden).to(dtype)  # passes where h is NaN
    hidden = rectify(hidden, dtype)
    grad1 = tl.dot(grad_hidden, perceived, grad1, input_precision="ieee")
    grad2 = tl.dot(hidden, grad_delta, grad2, input_precision="ieee")
    grad_perceived = tl.trans(tl.dot(weight1, grad_hidden, input_precision="ieee"))
    return grad1, grad2, grad_perceived
