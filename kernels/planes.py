"""Device functions for the transpose of perception (E12).

The gradient of a feature is needed where its filter read, so it crosses cells. It is stored in a
plane, in pairs of two filters, with a margin of one cell around each grid, and gathered by the next
launch: the transposed filter has the opposite odd part, so it is a gather again, and nothing is
ever scattered. The margin is zero; on a torus nothing reads it. Planes are
`[2, planes, B, H + 2, W + 2, CHANNELS, 2]` operands; their halves take turns. A pair that lacks its
second filter holds zeros: a plane of one filter would be laid out differently from a state, and be
moved through shared memory.
"""

import triton
import triton.language as tl

from .perceive import add_tap, load_neighbour
from .tile import rows_around


@triton.jit
def _neighbours(base_ptr, offsets, steps, CELL: tl.constexpr):
    """Return pointers to opposite neighbours, pair by pair as in `rule.PAIRS`."""
    above, pointers, below = rows_around(base_ptr, offsets, steps, CELL)
    left, right = steps[2] * CELL, steps[3] * CELL
    return (
        (below + right, above - left),
        (above + right, below - left),
        (pointers + right, pointers - left),
        (below, above),
    )


@triton.jit
def _sum_terms(values, PLANE: tl.constexpr):
    """Add up what opposite neighbours give to a cell.

    Args:
        values: of each pair, differences and sums, of each filter: float32.
        PLANE: the plane.
    """
    first = values[PLANE.terms[0][0]][PLANE.terms[0][1]][PLANE.terms[0][2]]
    total = first if PLANE.terms[0][3] == 1 else PLANE.terms[0][3] * first
    for number in tl.static_range(1, 16):
        if number < len(PLANE.terms):
            term = values[PLANE.terms[number][0]][PLANE.terms[number][1]][PLANE.terms[number][2]]
            total = add_tap(total, term, PLANE.terms[number][3])
    return total


@triton.jit
def _split(pairs):
    """Take pairs apart, in float32."""
    return tl.split(tl.reshape(pairs.to(tl.float32), (pairs.shape[0], pairs.shape[1] // 2, 2)))


@triton.jit
def _combine(pointers, PLANE: tl.constexpr):
    """Load opposite neighbours of pairs; return differences and sums, of both filters each.

    Where the filters are odd, or even, these are taken in the type of the plane, which is the
    rounding of one more operand.
    """
    first, second = tl.load(pointers[0]), tl.load(pointers[1])
    if PLANE.mixed:
        first, second = first.to(tl.float32), second.to(tl.float32)
    return _split(second - first), _split(second + first)


@triton.jit
def _combine_apart(firsts, seconds, status, PLANE: tl.constexpr, PAIR: tl.constexpr):
    """Load opposite neighbours of two filters; return differences and sums, of both each."""
    a = load_neighbour(firsts[PAIR][0], status, PLANE.pairs[PAIR][0], True)
    b = load_neighbour(firsts[PAIR][1], status, PLANE.pairs[PAIR][1], True)
    c = load_neighbour(seconds[PAIR][0], status, PLANE.pairs[PAIR][0], True)
    d = load_neighbour(seconds[PAIR][1], status, PLANE.pairs[PAIR][1], True)
    return (b - a, d - c), (b + a, d + c)


@triton.jit
def gather_apart(first_ptr, second_ptr, offsets, steps, status, RULE: tl.constexpr):
    """Apply the transposed filters of a rule's only plane, stored as two arrays of its own (E12).

    Args:
        first_ptr: pointer to the first cell of a tile of one channel of the first filter, float32.
        second_ptr: the same of the second filter.
        offsets: int32, offsets from there.
        steps: how far neighbours are up, down, left and right, in cells (`distances`).
        status: int32, whose bits 0 to 8 are the neighbours in the grid.
        RULE: the rule.

    Returns:
        Float32, of the shape of the offsets: the same bits as from pairs of float32.
    """
    plane: tl.constexpr = RULE.planes[0]
    firsts = _neighbours(first_ptr, offsets, steps, 1)
    seconds = _neighbours(second_ptr, offsets, steps, 1)
    a = _combine_apart(firsts, seconds, status, plane, 0)
    b = _combine_apart(firsts, seconds, status, plane, 1)
    c = _combine_apart(firsts, seconds, status, plane, 2)
    d = _combine_apart(firsts, seconds, status, plane, 3)
    return _sum_terms((a, b, c, d), plane)


@triton.jit
def _tile(planes_ptr, area, PLANE: tl.constexpr):
    """Return a pointer to the first cell of a tile of plane number PLANE."""
    first, offsets, plane_cells = area
    return planes_ptr + (plane_cells * PLANE + first) * offsets.shape[1]


@triton.jit
def _gather(planes_ptr, area, steps, RULE: tl.constexpr, PLANE: tl.constexpr):
    """Apply the transposed filters of one plane, but for their centers (E12)."""
    plane: tl.constexpr = RULE.planes[PLANE]
    pairs = _neighbours(_tile(planes_ptr, area, PLANE), area[1], steps, area[1].shape[1])
    first, second = _combine(pairs[0], plane), _combine(pairs[1], plane)
    third, fourth = _combine(pairs[2], plane), _combine(pairs[3], plane)
    return _sum_terms((first, second, third, fourth), plane)


@triton.jit
def gather_planes(planes_ptr, area, steps, RULE: tl.constexpr):
    """Gather what crossed cells on its way to a tile (E12), of a rule that has planes.

    Args:
        planes_ptr: pointer to one half of the planes.
        area: as in `store_planes`.
        steps: how far neighbours are in a plane (`distances`).
        RULE: the rule.

    Returns:
        `[CELLS, CHANNELS]` float32.
    """
    total = _gather(planes_ptr, area, steps, RULE, 0)
    if len(RULE.planes) > 1:
        total += _gather(planes_ptr, area, steps, RULE, 1)
    return total


@triton.jit
def join_plane(grads, RULE: tl.constexpr, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """Return what of the gradients of the features belongs into a plane.

    Args:
        grads: gradients of the four features, `[CELLS, CHANNELS]` float32.
        RULE: the rule.
        PLANE: number of the plane.
        DTYPE: type of the operands.

    Returns:
        `[CELLS, 2 * CHANNELS]` operands; zeros if the rule has no such plane.
    """
    if len(RULE.planes) <= PLANE:
        first = tl.zeros(grads[0].shape, DTYPE)
        second = first
    else:
        first = grads[RULE.planes[PLANE].numbers[0]].to(DTYPE)
        if len(RULE.planes[PLANE].filters) == 1:
            second = tl.zeros(first.shape, DTYPE)
        else:
            second = grads[RULE.planes[PLANE].numbers[1]].to(DTYPE)
    return tl.reshape(tl.join(first, second), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def store_planes(planes_ptr, area, values, mask, RULE: tl.constexpr):
    """Store a tile of all planes.

    Args:
        planes_ptr: pointer to one half of the planes.
        area: number of the tile's first cell in a plane, offsets from there, `[CELLS, 2 *
            CHANNELS]`, and the number of cells in a plane.
        values: for each of two planes `[CELLS, 2 * CHANNELS]` operands.
        mask: `[CELLS, 1]`, the cells that are stored.
        RULE: the rule.
    """
    for plane in tl.static_range(2):
        if plane < len(RULE.planes):
            tl.store(_tile(planes_ptr, area, plane) + area[1], values[plane], mask=mask)
