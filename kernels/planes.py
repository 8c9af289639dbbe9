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


@triton.jit
def _parts(values, PAIRED: tl.constexpr):
    """Take pairs apart, in float32."""
    values = values.to(tl.float32)
    if PAIRED:
        return tl.split(tl.reshape(values, (values.shape[0], values.shape[1] // 2, 2)))
    else:
        return (values,)


@triton.jit
def _gather_two(
    total, neighbours, status, PLANE: tl.constexpr, PAIR: tl.constexpr, PAIRED: tl.constexpr
):
    """Add what two opposite neighbours, pointers to them, give to a cell."""
    if PLANE.reads[PAIR]:
        masked: tl.constexpr = status is not None
        first = load_neighbour(neighbours[0], status, PLANE.pairs[PAIR][0], masked)
        second = load_neighbour(neighbours[1], status, PLANE.pairs[PAIR][1], masked)
        if PLANE.mixed:
            first, second = first.to(tl.float32), second.to(tl.float32)
        differences, sums = _parts(second - first, PAIRED), _parts(second + first, PAIRED)
        for number in tl.static_range(2):
            if number < PLANE.count:
                total = add_tap(total, differences[number], PLANE.filters[number].odd[PAIR])
                total = add_tap(total, sums[number], PLANE.filters[number].even[PAIR])
    return total


@triton.jit
def gather(pointers, steps, status, PLANE: tl.constexpr, CELL: tl.constexpr, PAIRED: tl.constexpr):
    """Apply the transposed filters of one plane, but for their centers (E12).

    Where its filters are odd, or even, differences and sums are taken in the type of the plane,
    which is the rounding of one more operand.

    Args:
        pointers: `[CELLS, 2 * CHANNELS]` pointers to a tile of pairs; otherwise of any shape.
        steps: how far neighbours are up, down, left and right, in cells (`distances`).
        status: int32, whose bits 0 to 8 are the neighbours that exist; None if all do.
        PLANE: the plane.
        CELL: distance from cell to cell, in elements.
        PAIRED: whether pairs are stored; otherwise numbers of the plane's only filter.

    Returns:
        Float32, `[CELLS, CHANNELS]` from pairs.
    """
    up, down, left, right = steps
    left, right = left * CELL, right * CELL
    above, below = pointers - up * CELL, pointers + down * CELL
    total = _gather_two(None, (below + right, above - left), status, PLANE, 0, PAIRED)
    total = _gather_two(total, (above + right, below - left), status, PLANE, 1, PAIRED)
    total = _gather_two(total, (pointers + right, pointers - left), status, PLANE, 2, PAIRED)
    return _gather_two(total, (below, above), status, PLANE, 3, PAIRED)


@triton.jit
def _pointers(planes_ptr, area, PLANE: tl.constexpr):
    """Return pointers to a tile of plane number PLANE, `[CELLS, 2 * CHANNELS]`."""
    first, offsets, plane_cells = area
    numbers: tl.constexpr = offsets.shape[1]
    return planes_ptr + (plane_cells * PLANE + first) * numbers + offsets


@triton.jit
def gather_planes(planes_ptr, area, steps, RULE: tl.constexpr):
    """Gather what crossed cells on its way to a tile (E12).

    Args:
        planes_ptr: pointer to one half of the planes.
        area: as in `store_planes`.
        steps: how far neighbours are in a plane (`distances`).
        RULE: the rule.

    Returns:
        `[CELLS, CHANNELS]` float32; None if no filter reads a neighbour.
    """
    total = None
    for plane in tl.static_range(2):
        if plane < RULE.plane_count:
            pointers = _pointers(planes_ptr, area, plane)
            received = gather(pointers, steps, None, RULE.planes[plane], area[1].shape[1], True)
            total = add_tap(total, received, 1)
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
            tl.store(_pointers(planes_ptr, area, plane), values[plane], mask=mask)
