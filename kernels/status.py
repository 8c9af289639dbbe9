"""Device functions for a cell's status: one word that says all a step needs to know of it.

Bits 0 to 8 are the neighbours that it perceives; neighbour (dy, dx) is bit 3 (dy + 1) + dx + 1.
"""

import triton
import triton.language as tl

HERE = tl.constexpr(4)
"""Bit of the cell itself."""

PRE = tl.constexpr(9)
"""Bit of a cell that is alive before the step; without an alive test, of every cell."""

UPDATE = tl.constexpr(10)
"""Bit of a cell that takes part in the step."""

TAKES_PART = tl.constexpr(1 << UPDATE.value)
"""That bit alone."""

INSIDE = tl.constexpr(11)
"""Bit of a cell that lies in the grid."""

GRID = tl.constexpr(12)
"""First of the nine bits of the neighbours that lie in the grid, which input channels perceive."""


@triton.jit
def combine_once(first, second):
    """Return `first | second` of words that share no bit, computed once per cell.

    Without the reduction the compiler would repeat everything that leads to a status word in
    each layout that tests its bits, four to eight threads a cell; it cannot look through a sum
    over rows, so it moves this one word between the layouts instead.
    """
    return tl.sum(tl.trans(tl.join(first, second)), axis=0)


@triton.jit
def of_channels(word, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Repeat a word per cell for every channel, `[CELLS, PADDED]`; padded channels have no bit.

    The comparison is there even if there are none: it keeps the compiler from testing bits per
    cell, which it would do in one layout and move, bit by bit, to the other.
    """
    return tl.where((tl.arange(0, PADDED) < CHANNELS)[None, :], word[:, None], 0)


@triton.jit
def with_inputs(status, RULE: tl.constexpr):
    """Give input channels a status of their own: alive in the whole grid, never updated.

    Args:
        status: `[CELLS, CHANNELS]` int32.
        RULE: the rule; without inputs the status stays as it is.
    """
    if RULE.first_input > 0:
        of_input = status & ~TAKES_PART
        if RULE.alive:
            neighbours = (status >> GRID) & 511
            of_input = neighbours | (((neighbours >> HERE) & 1) << PRE)
        is_input = tl.arange(0, status.shape[1]) >= RULE.first_input
        return tl.where(is_input[None, :], of_input, status)
    else:
        return status


@triton.jit
def has(word, BIT: tl.constexpr):
    """Test bit `BIT` of each word."""
    return ((word >> BIT) & 1) != 0


@triton.jit
def is_finite(values):
    """Test which values are neither infinite nor NaN."""
    return tl.abs(values) < float("inf")


@triton.jit
def is_visible(alpha, threshold):
    """Test which alpha are above the threshold, or not finite."""
    return ((alpha <= threshold) & (alpha > float("-inf"))) == 0
