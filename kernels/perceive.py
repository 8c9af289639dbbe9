"""Device functions for perception (E1), by any bank of 3x3 filters.

Opposite neighbours are taken together, as their difference and their sum: of the taps of a filter
an odd part meets the differences, an even part the sums (`rule.py`). Filters share them, and what
no filter needs is not computed. Sobel filters are odd, identity and Laplacian even.
"""

import triton
import triton.language as tl

from .status import has


@triton.jit
def add_tap(total, values, TAP: tl.constexpr):
    """Return `total + TAP * values`; None is no total yet."""
    if TAP == 0:
        return total
    elif total is None:
        return values if TAP == 1 else TAP * values
    elif TAP == 1:
        return total + values
    elif TAP == -1:
        return total - values
    else:
        return total + TAP * values


@triton.jit
def load_neighbour(pointers, status, BIT: tl.constexpr, MASKED: tl.constexpr):
    """Load neighbours; zero where their bit in `status` is not set."""
    if MASKED:
        return tl.load(pointers, mask=has(status, BIT), other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _filter(center, differences, sums, FILTER: tl.constexpr):
    """Apply one filter to a neighbourhood whose opposite cells are taken together."""
    total = add_tap(None, center, FILTER.center)
    for pair in tl.static_range(4):
        total = add_tap(total, differences[pair], FILTER.odd[pair])
        total = add_tap(total, sums[pair], FILTER.even[pair])
    if total is None:
        return center * 0.0
    else:
        return total


@triton.jit
def perceive(pointers, steps, status, RULE: tl.constexpr, CELL: tl.constexpr, DTYPE: tl.constexpr):
    """Apply the filters to every channel, and join what they give (E1).

    Args:
        pointers: `[CELLS, CHANNELS]` pointers to the cells of a tile of a state, float32.
        steps: how far neighbours are up, down, left and right, in cells (`distances`).
        status: `[CELLS, CHANNELS]` int32, whose bits 0 to 8 are the neighbours that are perceived.
        RULE: the rule.
        CELL: distance from cell to cell, in elements.
        DTYPE: type of the operands.

    Returns:
        The state, `[CELLS, CHANNELS]` float32, and its features, `[CELLS, 4 * CHANNELS]` operands.
    """
    up, down, left, right = steps
    left, right = left * CELL, right * CELL
    above, below = pointers - up * CELL, pointers + down * CELL
    masked: tl.constexpr = RULE.masked
    center = load_neighbour(pointers, status, 4, masked)
    bottom_right = load_neighbour(below + right, status, 8, masked)
    top_left = load_neighbour(above - left, status, 0, masked)
    top_right = load_neighbour(above + right, status, 2, masked)
    bottom_left = load_neighbour(below - left, status, 6, masked)
    right_hand = load_neighbour(pointers + right, status, 5, masked)
    left_hand = load_neighbour(pointers - left, status, 3, masked)
    bottom = load_neighbour(below, status, 7, masked)
    top = load_neighbour(above, status, 1, masked)
    differences = (
        bottom_right - top_left,
        top_right - bottom_left,
        right_hand - left_hand,
        bottom - top,
    )
    sums = (
        bottom_right + top_left,
        top_right + bottom_left,
        right_hand + left_hand,
        bottom + top,
    )
    feature_0 = _feature(center, differences, sums, RULE, 0, DTYPE)
    feature_1 = _feature(center, differences, sums, RULE, 1, DTYPE)
    feature_2 = _feature(center, differences, sums, RULE, 2, DTYPE)
    feature_3 = _feature(center, differences, sums, RULE, 3, DTYPE)
    even, odd = tl.join(feature_0, feature_2), tl.join(feature_1, feature_3)
    joined = tl.reshape(tl.join(even, odd), (center.shape[0], 4 * center.shape[1]))
    return center, joined.to(DTYPE, bitcast=True)


@triton.jit
def _feature(
    center, differences, sums, RULE: tl.constexpr, NUMBER: tl.constexpr, DTYPE: tl.constexpr
):
    """Return one feature of every channel as operands, in integers of the same bits.

    Features beyond the filters are the constant 1, which the first bias meets (E3). As integers
    nothing is computed by joining them, but the compiler is kept from moving the joining into
    shared memory, where it fails for some layouts.
    """
    if RULE.count > NUMBER:
        return _bits(_filter(center, differences, sums, RULE.filters[NUMBER]).to(DTYPE))
    else:
        return _bits(tl.full(center.shape, 1.0, DTYPE))


@triton.jit
def _bits(values):
    """Return the bits of numbers as integers."""
    if values.dtype.primitive_bitwidth == 16:
        return values.to(tl.int16, bitcast=True)
    else:
        return values.to(tl.int32, bitcast=True)


@triton.jit
def split_features(features, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Take the features of every channel apart again, `[CELLS, CHANNELS]` each."""
    even, odd = tl.split(tl.reshape(features, (CELLS, CHANNELS, 2, 2)))
    feature_0, feature_2 = tl.split(even)
    feature_1, feature_3 = tl.split(odd)
    return feature_0, feature_1, feature_2, feature_3


@triton.jit
def grad_of_center(grads, RULE: tl.constexpr):
    """Return what gradients of the features mean for the cell itself, `[CELLS, CHANNELS]` (E12)."""
    total = None
    for number in tl.static_range(4):
        if number < RULE.count:
            total = add_tap(total, grads[number], RULE.filters[number].center)
    return total
