"""Device functions for perception (E1), by any bank of 3x3 filters.

Opposite neighbours are taken together, as their difference and their sum: of the taps of a filter
an odd part meets the differences, an even part the sums (`rule.py`). Filters share them, and what
no filter needs is not computed. Sobel filters are odd, identity and Laplacian even.
"""

import triton
import triton.language as tl

from .status import has
from .tile import rows_around


@triton.jit
def add_tap(total, values, TAP: tl.constexpr):
    """Return `total + TAP * values`."""
    if TAP == 0:
        return total
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
    values = (center,), differences, sums
    first = values[FILTER.terms[0][0]][FILTER.terms[0][1]]
    total = first if FILTER.terms[0][2] == 1 else FILTER.terms[0][2] * first
    for number in tl.static_range(1, 9):
        if number < len(FILTER.terms):
            term = values[FILTER.terms[number][0]][FILTER.terms[number][1]]
            total = add_tap(total, term, FILTER.terms[number][2])
    return total


@triton.jit
def perceive(
    base_ptr, offsets, steps, status, RULE: tl.constexpr, CELL: tl.constexpr, DTYPE: tl.constexpr
):
    """Apply the filters to every channel, and join what they give (E1).

    Args:
        base_ptr: pointer to the first cell of a tile of a state, float32.
        offsets: `[CELLS, CHANNELS]` int32, offsets from there.
        steps: how far neighbours are up, down, left and right, in cells (`distances`).
        status: `[CELLS, CHANNELS]` int32, whose bits 0 to 8 are the neighbours that are perceived.
        RULE: the rule.
        CELL: distance from cell to cell, in elements.
        DTYPE: type of the operands.

    Returns:
        The state, `[CELLS, CHANNELS]` float32, and its features, `[CELLS, 4 * CHANNELS]` operands.
    """
    above, pointers, below = rows_around(base_ptr, offsets, steps, CELL)
    left, right = steps[2] * CELL, steps[3] * CELL
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
    if len(RULE.filters) > NUMBER:
        taps: tl.constexpr = RULE.filters[NUMBER]
        return _bits(_filter(center, differences, sums, taps).to(DTYPE))
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
def add_centers(total, grads, RULE: tl.constexpr):
    """Add what gradients of the features mean for the cell itself (E12).

    Args:
        total: `[CELLS, CHANNELS]` float32.
        grads: gradients of the four features, like it.
        RULE: the rule.
    """
    for number in tl.static_range(4):
        if number < len(RULE.filters):
            total = add_tap(total, grads[number], RULE.filters[number].center)
    return total
