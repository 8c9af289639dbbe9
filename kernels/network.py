"""Device functions for the network of a cell (E3) and its derivative (E9 to E11)."""

import triton
import triton.language as tl

from .perceive import perceive
from .status import UPDATE, has


@triton.jit
def relu(hidden, DTYPE: tl.constexpr):
    """Apply ReLU and round to `DTYPE`; on packed halves where the type has a packed maximum.

    NaN stays NaN, as in `torch.relu`. The maximum of a GPU would return its other argument.
    """
    keep_nan: tl.constexpr = tl.PropagateNan.ALL
    if tl.float16 == DTYPE:
        return tl.maximum(hidden.to(DTYPE), 0, propagate_nan=keep_nan)
    else:
        return tl.maximum(hidden, 0.0, propagate_nan=keep_nan).to(DTYPE)


@triton.jit
def apply_network(features, weights, RULE: tl.constexpr):
    """Compute the update of every cell of a tile (E3).

    Args:
        features: `[CELLS, 4 * CHANNELS]` operands (`perceive`).
        weights: both layers and both biases (`load_weights`).
        RULE: the rule.

    Returns:
        `[CELLS, CHANNELS]` float32.
    """
    weight1, bias1, weight2, bias2 = weights
    hidden = tl.dot(features, weight1, input_precision="ieee")
    if not RULE.bias_is_feature:
        hidden += bias1[None, :]
    delta = tl.dot(relu(hidden, weight1.dtype), weight2, input_precision="ieee")
    if RULE.final_bias:
        delta += bias2[None, :]
    return delta


@triton.jit
def update_cells(
    base_ptr,
    offsets,
    steps,
    status,
    weights,
    RULE: tl.constexpr,
    RANDOM: tl.constexpr,
    CELL: tl.constexpr,
):
    """Perceive, apply the network, and update the cells that take part (E1, E3, E5).

    Args:
        base_ptr: pointer to the first cell of a tile of a state, float32.
        offsets: `[CELLS, CHANNELS]` int32, offsets from there.
        steps: how far neighbours are up, down, left and right, in cells (`distances`).
        status: `[CELLS, CHANNELS]` int32 (`look_around`).
        weights: both layers and both biases (`load_weights`).
        RULE: the rule.
        RANDOM: whether a mask was drawn; otherwise every cell takes part.
        CELL: distance from cell to cell, in elements.

    Returns:
        The updated state, `[CELLS, CHANNELS]` float32.
    """
    dtype: tl.constexpr = weights[0].dtype
    state, features = perceive(base_ptr, offsets, steps, status, RULE, CELL, dtype)
    updated = state + apply_network(features, weights, RULE)
    if RANDOM or RULE.first_input > 0:
        updated = tl.where(has(status, UPDATE), updated, state)
    return updated


@triton.jit
def differentiate_network(features, grad_delta, weights, sums, RULE: tl.constexpr):
    """Differentiate the network for a tile (E9 to E11), all but its second bias.

    Products are laid out with hidden units as rows: the activations then enter the products for
    the weight gradients from registers. Their order decides about spills.

    Args:
        features: `[CELLS, 4 * CHANNELS]` operands (`perceive`).
        grad_delta: `[CELLS, CHANNELS]` float32, gradient of the update, scaled for operands.
        weights: both layers and both biases (`load_weights`).
        sums: gradients so far of the first layer `[HIDDEN, 4 * CHANNELS]`, of the second
            `[HIDDEN, CHANNELS]`, and of the first bias (`first_bias_sums`), float32.
        RULE: the rule.

    Returns:
        The three sums, this tile included, and the gradient of the features,
        `[CELLS, 4 * CHANNELS]` float32.
    """
    weight1, bias1, weight2, _ = weights
    grad1, grad2, grad_bias1 = sums
    dtype: tl.constexpr = weight1.dtype
    grad_delta = grad_delta.to(dtype)
    grad_hidden = tl.dot(weight2, tl.trans(grad_delta), input_precision="ieee")
    hidden = tl.dot(tl.trans(weight1), tl.trans(features), input_precision="ieee")
    if not RULE.bias_is_feature:
        hidden += bias1[:, None]
    grad_hidden = tl.where(hidden <= 0, 0.0, grad_hidden).to(dtype)  # passes where h is NaN
    hidden = relu(hidden, dtype)
    grad1 = tl.dot(grad_hidden, features, grad1, input_precision="ieee")
    grad2 = tl.dot(hidden, grad_delta, grad2, input_precision="ieee")
    if not RULE.bias_is_feature:
        ones = tl.full((features.shape[0], grad_bias1.shape[1]), 1.0, dtype)
        grad_bias1 = tl.dot(grad_hidden, ones, grad_bias1, input_precision="ieee")
    grad_features = tl.trans(tl.dot(weight1, grad_hidden, input_precision="ieee"))
    return grad1, grad2, grad_bias1, grad_features
