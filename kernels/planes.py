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
def _parts(values, PAIRED: tl.constexpr):
    """Take pairs apart, in float32."""
    values = values.to(tl.float32)
    if PAIRED:
        return tl.split(tl.reshape(values, (values.shape[0], values.shape[1] // 2, 2)))
    else:
        return values, values


@triton.jit
def _load_two(
    first_ptr, second_ptr, status, PLANE: tl.constexpr, PAIR: tl.constexpr, PAIRED: tl.constexpr
):
    """Load opposite neighbours; return differences and sums of both filters."""
    masked: tl.constexpr = status is not None
    first = load_neighbour(first_ptr, status, PLANE.pairs[PAIR][0], masked)
    second = load_neighbour(second_ptr, status, PLANE.pairs[PAIR][1], masked)
    if PLANE.mixed:
        first, second = first.to(tl.float32), second.to(tl.float32)
    return _parts(second - first, PAIRED), _parts(second + first, PAIRED)


@triton.jit
def gather(
    base_ptr,
    offsets,
    steps,
    status,
    PLANE: tl.constexpr,
    CELL: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """Apply the transposed filters of one plane, but for their centers (E12).

    Where its filters are odd, or even, differences and sums are taken in the type of the plane,
    which is the rounding of one more operand.

    Args:
        base_ptr: pointer to the first cell of a tile of the plane.
        offsets: int32, offsets from there: `[CELLS, 2 * CHANNELS]` of pairs, else of any shape.
        steps: how far neighbours are up, down, left and right, in cells (`distances`).
        status: int32, whose bits 0 to 8 are the neighbours that exist; None if all do.
        PLANE: the plane.
        CELL: distance from cell to cell, in elements.
        PAIRED: whether pairs are stored; otherwise numbers of the plane's only filter.

    Returns:
        Float32, `[CELLS, CHANNELS]` from pairs.
    """
    above, pointers, below = rows_around(base_ptr, offsets, steps, CELL)
    left, right = steps[2] * CELL, steps[3] * CELL
    values = (
        _load_two(below + right, above - left, status, PLANE, 0, PAIRED),
        _load_two(above + right, below - left, status, PLANE, 1, PAIRED),
        _load_two(pointers + right, pointers - left, status, PLANE, 2, PAIRED),
        _load_two(below, above, status, PLANE, 3, PAIRED),
    )
    first = values[PLANE.terms[0][0]][PLANE.terms[0][1]][PLANE.terms[0][2]]
    total = first if PLANE.terms[0][3] == 1 else PLANE.terms[0][3] * first
    for number in tl.static_range(1, 16):
        if number < PLANE.term_count:
            term = values[PLANE.terms[number][0]][PLANE.terms[number][1]][PLANE.terms[number][2]]
            total = add_tap(total, term, PLANE.terms[number][3])
    return total


@triton.jit
def _tile(planes_ptr, area, PLANE: tl.constexpr):
    """Return a pointer to the first cell of a tile of plane number PLANE."""
    first, offsets, plane_cells = area
    return planes_ptr + (plane_cells * PLANE + first) * offsets.shape[1]


@triton.jit
def _gather_plane(planes_ptr, area, steps, RULE: tl.constexpr, PLANE: tl.constexpr):
    """Gather what crossed cells from one plane of pairs (`gather_planes`)."""
    plane: tl.constexpr = RULE.planes[PLANE]
    tile_ptr = _tile(planes_ptr, area, PLANE)
    return gather(tile_ptr, area[1], steps, None, plane, area[1].shape[1], True)


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
    total = _gather_plane(planes_ptr, area, steps, RULE, 0)
    if RULE.plane_count > 1:
        total += _gather_plane(planes_ptr, area, steps, RULE, 1)
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
    if RULE.plane_count <= PLANE:
        first = tl.zeros(grads[0].shape, DTYPE)
        second = first
    else:
        first = grads[RULE.planes[PLANE].numbers[0]].to(DTYPE)
        if RULE.planes[PLANE].count == 1:
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
        if plane < RULE.plane_count:
            tl.store(_tile(planes_ptr, area, plane) + area[1], values[plane], mask=mask)
