"""One step backward as one kernel: the exact derivative of `step_forward`."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import look_around, may_live, survivors
from .gradients import first_bias_sums, store_sums
from .launch import LaunchConfig, StepSettings, count_tiles, launch
from .mask import draw_status
from .network import differentiate_network
from .perceive import add_centers, perceive, split_features
from .planes import gather_planes, join_plane, store_planes
from .status import PRE, UPDATE, combine_once, has, of_channels, with_inputs
from .tile import COLUMNS, advance, cells_of, distances, first_cell, locate
from .weights import BIAS_COLUMNS, Weights, load_weights

NUMBERS = ["source", "step", "batch", "height", "width", "flag_rows", "update_limit"]
"""Arguments that are not specialised."""


@triton.jit(do_not_specialize=NUMBERS)
def _step_backward_kernel(
    states_ptr,
    flags_ptr,
    direct_ptr,
    planes_ptr,
    weights_ptr,
    counter_ptr,
    partials_ptr,
    source,
    step,
    batch,
    height,
    width,
    flag_rows,
    update_limit,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    SUMS: tl.constexpr,
    RULE: tl.constexpr,
    RANDOM: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Take the gradient back through one step, unless the rollout has ended before it (E8 to E12).

    Everything of the forward step is recomputed from the stored state and the counter. The
    gradient travels in two parts, so that the gather of E12 is left to the step before: what
    reaches the cell itself, and the gradients of the features that read its neighbours, in planes
    with a margin of one cell around each grid, zero where the grid is no torus. The halves of both
    take turns.

    Products are laid out with hidden units as rows: the activations then enter the products for
    the weight gradients from registers. Those sums stay in registers over all tiles and end in
    this program's own row of `partials`, which the rollout's last step, the first to come here,
    overwrites. The loop's order is fixed, so are the bits.

    Shapes and units:
        states_ptr: `[slots, B, H, W, CHANNELS]` float32; slot `source` is read.
        flags_ptr: `[slots, B, flag_rows, tile_columns]` int64; that slot and the next are read.
        direct_ptr: `[2, B, H, W, CHANNELS]` float32, gradient that reaches the cell itself.
        planes_ptr: `[2, planes, B, H + 2, W + 2, CHANNELS, F]` operands, F filters to a plane.
        weights_ptr: packed weights.
        counter_ptr: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        partials_ptr: `[programs, sums]` float32; a row is added to.
        step: steps since the rollout's first; half `step % 2` is written, the other read.
        update_limit: a cell updates when its 24-bit draw is below.
    """
    if step >= tl.load(counter_ptr + 2):
        return
    dtype: tl.constexpr = weights_ptr.dtype.element_ty
    cells: tl.constexpr = HEIGHT * COLUMNS
    tile_columns = tl.cdiv(width, COLUMNS)
    tile_rows = tl.cdiv(height, HEIGHT)
    size = height, width, flag_rows
    slot_cells = batch.to(tl.int64) * height * width
    slot_words = batch.to(tl.int64) * flag_rows * tile_columns
    parity = step % 2
    source_ptr = states_ptr + source * slot_cells * CHANNELS
    source_flags_ptr = flags_ptr + source * slot_words
    target_flags_ptr = source_flags_ptr + slot_words
    direct_in_ptr = direct_ptr + (1 - parity) * slot_cells * CHANNELS
    direct_out_ptr = direct_ptr + parity * slot_cells * CHANNELS
    plane_cells = batch.to(tl.int64) * (height + 2) * (width + 2)
    half = plane_cells * (len(RULE.planes) * 2 * CHANNELS)
    planes_in_ptr = planes_ptr + (1 - parity) * half
    planes_out_ptr = planes_ptr + parity * half
    seed = tl.load(counter_ptr)
    step_number = tl.load(counter_ptr + 1) + step

    channel, pair = tl.arange(0, CHANNELS), tl.arange(0, 2 * CHANNELS)
    weights = load_weights(weights_ptr, CHANNELS, HIDDEN, RULE)
    grad1 = tl.zeros((HIDDEN, 4 * CHANNELS), tl.float32)
    grad2 = tl.zeros((HIDDEN, CHANNELS), tl.float32)
    grad_bias1 = first_bias_sums(HIDDEN, BIAS_COLUMNS, RULE)
    grad_bias2 = tl.zeros((cells // 2, CHANNELS), tl.float32)

    row, column = cells_of(HEIGHT)
    local = row * width + column
    offsets = local[:, None] * CHANNELS + channel[None, :]
    plane_local = row * (width + 2) + column
    plane_offsets = plane_local[:, None] * (2 * CHANNELS) + pair[None, :]
    program, programs = tl.program_id(0), tl.num_programs(0)
    place = locate(program, tile_columns, tile_rows)
    stride = locate(programs, tile_columns, tile_rows)
    for _ in tl.range(program, batch * tile_rows * tile_columns, programs, disable_licm=True):
        sample, tile_row, tile_column = place
        y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
        y, x = y0 + row, x0 + column
        if RULE.circular:
            inside = (y < height) & (x < width)
            y, x = tl.where(inside, y, y0), tl.where(inside, x, x0)
            local = tl.where(inside, row * width + column, 0)
            offsets = local[:, None] * CHANNELS + channel[None, :]
            plane_local = tl.where(inside, row * (width + 2) + column, 0)
            plane_offsets = plane_local[:, None] * (2 * CHANNELS) + pair[None, :]
        cell = first_cell(sample, y0, x0, height, width)
        plane_cell = first_cell(sample, y0 + 1, x0 + 1, height + 2, width + 2)
        area = plane_cell, plane_offsets, plane_cells
        direct_target_ptr = direct_out_ptr + cell * CHANNELS
        direct = tl.zeros((cells, CHANNELS), tl.float32)
        plane_0 = tl.zeros((cells, 2 * CHANNELS), dtype)
        plane_1 = tl.zeros((cells, 2 * CHANNELS), dtype)
        needed = True  # gradients of input channels go on through tiles where nothing lives
        if RULE.first_input == 0:
            needed = may_live(source_flags_ptr, place, size, RULE, HEIGHT)
        if needed:
            status = look_around(source_flags_ptr, place, size, RULE, HEIGHT, False)
            if RULE.alive:
                post = survivors(target_flags_ptr, place, size, RULE, HEIGHT)
                status &= ~((post ^ 1) << PRE)
            mask = seed, step_number, update_limit
            status = combine_once(status, draw_status(cell + local, mask, RULE, RANDOM))
            statuses = with_inputs(of_channels(status, CHANNELS, CHANNELS), RULE)
            alive = has(statuses, PRE)
            # The order of these loads and of the products after them decides about spills.
            tile_ptr = source_ptr + cell * CHANNELS
            steps = distances(y, x, height, width, width, RULE.circular)
            _state, features = perceive(tile_ptr, offsets, steps, statuses, RULE, CHANNELS, dtype)
            grad = tl.load(direct_in_ptr + cell * CHANNELS + offsets, mask=alive, other=0.0)
            steps = distances(y, x, height, width, width + 2, RULE.circular)
            if len(RULE.planes) > 0:
                received = gather_planes(planes_in_ptr, area, steps, RULE)
                grad += tl.where(alive, received, 0.0)
            grad_delta = grad
            if RANDOM or RULE.first_input > 0:
                grad_delta = tl.where(has(statuses, UPDATE), grad, 0.0)

            grad_bias2 += tl.sum(tl.reshape(grad_delta, (2, cells // 2, CHANNELS)), axis=0)
            sums = grad1, grad2, grad_bias1
            grad1, grad2, grad_bias1, grad_features = differentiate_network(
                features, grad_delta, weights, sums, RULE
            )
            grads = split_features(grad_features, cells, CHANNELS)
            direct = add_centers(grad, grads, RULE)
            plane_0 = join_plane(grads, RULE, 0, dtype)
            plane_1 = join_plane(grads, RULE, 1, dtype)
        inside = ((y0 + row < height) & (x0 + column < width))[:, None]
        tl.store(direct_target_ptr + offsets, direct, mask=inside)
        store_planes(planes_out_ptr, area, (plane_0, plane_1), inside, RULE)
        place = advance(place, stride, tile_columns, tile_rows)

    # Pointers that lived through the loop would cost it registers.
    row_ptr = partials_ptr + program.to(tl.int64) * SUMS
    later = step + 1 < tl.load(counter_ptr + 2)
    store_sums(row_ptr, (grad1, grad2, grad_bias1, grad_bias2), later, RULE, True)


def step_backward(
    states: Tensor,
    flags: Tensor,
    grads: tuple[Tensor, Tensor],
    weights: Weights,
    counter: Tensor,
    partials: Tensor,
    source: int,
    step: int,
    settings: StepSettings,
    config: LaunchConfig,
) -> None:
    """Take the gradient back through one step; do nothing if the rollout has fewer steps.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, flag_rows, tile_columns]` int64, empty without an alive test; slot
            `source + 1` holds the state after the step.
        grads: the gradient in two parts (E12): what reaches the cell itself, `[2, B, H, W, CP]`
            float32, and planes of what crosses cells, `[plane_size]` operands. Half `step % 2` of
            each is written, the other read.
        weights: the packed weights.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        partials: `[programs, weights.sums]` float32; every program adds to its own row.
        source: the slot of the state before the step.
        step: steps since the rollout's first.
        settings: which cells update, and which are alive.
        config: how to launch; `partials` has a row for each of its programs.
    """
    _, batch, height, width, channels = states.shape
    tiles = count_tiles(batch, height, width, config.tile_height)
    sizes = channels, weights.hidden, weights.sums
    launch(
        _step_backward_kernel,
        min(tiles, config.programs),
        (states, flags, *grads, weights.packed, counter, partials),
        (source, step, batch, height, width, flags.shape[2], settings.limit),
        (*sizes, weights.rule, settings.random, config.tile_height),
        config.num_warps,
    )
