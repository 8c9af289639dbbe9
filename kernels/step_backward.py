"""One step backward as one kernel: the exact derivative of `step_forward`."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import (
    OWN,
    PRE,
    RUN,
    UPDATE,
    alive_rows,
    dilate,
    has,
    load_flags,
    of_channels,
    rows_inside,
    unite,
)
from .gradients import store_sums
from .launch import LaunchConfig, Rule, count_tiles, launch
from .mask import draw_update
from .network import differentiate_network
from .perceive import join_features, perceive, perceive_grad, split_features
from .tile import advance, any_kept, cells_of, first_cell, first_word, locate
from .weights import Weights, load_weights


@triton.jit(
    do_not_specialize=[
        "source",
        "step",
        "batch",
        "height",
        "width",
        "flag_rows",
        "update_limit",
    ]
)
def _step_backward_kernel(
    states_ptr,
    flags_ptr,
    passed_ptr,
    pairs_ptr,
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
    RANDOM: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Take the gradient back through one step, unless the rollout has ended before it.

        ĝ  = g ⊙ alive(s) ⊙ alive(ŝ),   δ = m ⊙ ĝ                        (equations 8, 9)
        ∂h = (W₂ᵀ δ) ⊙ [h > 0],         ∂p = W₁ᵀ ∂h                      (equations 10, 11)
        ∂s = ĝ + Iᵀ ∂p - 8 Sx ∂pₓ - 8 Sy ∂p_y                            (equation 12)

    Everything of the forward step is recomputed from the stored state and the counter. The
    gradient travels in two parts, so that the gather of equation 12 is left to the step before:
    `passed` is what reaches the cell itself, `pairs` the gradients of its Sobel features, in
    planes with a margin of zeros. Halves alternate between the steps.

    Products are laid out with hidden units as rows: the activations then enter the products for
    the weight gradients from registers. Those sums stay in registers over all tiles and end in
    this program's own row of `partials`, which the rollout's last step, the first to come here,
    overwrites. The loop's order is fixed, so are the bits.
    """
    if step >= tl.load(counter_ptr + 2):
        return
    dtype: tl.constexpr = weights_ptr.dtype.element_ty
    cells: tl.constexpr = HEIGHT * RUN
    features: tl.constexpr = 4 * CHANNELS
    runs = tl.cdiv(width, RUN)
    strips = tl.cdiv(height, HEIGHT)
    slot_cells = batch.to(tl.int64) * height * width
    slot_words = batch.to(tl.int64) * flag_rows * runs
    parity = step % 2
    source_ptr = states_ptr + source * slot_cells * CHANNELS
    source_flags_ptr = flags_ptr + source * slot_words
    target_flags_ptr = source_flags_ptr + slot_words
    passed_in_ptr = passed_ptr + (1 - parity) * slot_cells * CHANNELS
    passed_out_ptr = passed_ptr + parity * slot_cells * CHANNELS
    slot_pairs = batch.to(tl.int64) * (height + 2) * (width + 2)
    pairs_in_ptr = pairs_ptr + (1 - parity) * slot_pairs * (2 * CHANNELS)
    pairs_out_ptr = pairs_ptr + parity * slot_pairs * (2 * CHANNELS)
    seed = tl.load(counter_ptr)
    step_number = tl.load(counter_ptr + 1) + step

    channel = tl.arange(0, CHANNELS)
    both = tl.arange(0, 2 * CHANNELS)
    weight1, weight2 = load_weights(weights_ptr, CHANNELS, HIDDEN)
    grad1 = tl.zeros((HIDDEN, features), tl.float32)
    grad2 = tl.zeros((HIDDEN, CHANNELS), tl.float32)
    grad_bias2 = tl.zeros((cells // 2, CHANNELS), tl.float32)

    row, column = cells_of(HEIGHT)
    position = column + OWN
    local = row * width + column
    offsets = local[:, None] * CHANNELS + channel[None, :]
    pair_local = row * (width + 2) + column
    pair_offsets = pair_local[:, None] * (2 * CHANNELS) + both[None, :]

    program, programs = tl.program_id(0), tl.num_programs(0)
    grid, strip, run = locate(program, runs, strips)
    step_grid, step_strip, step_run = locate(programs, runs, strips)
    for _ in tl.range(program, batch * strips * runs, programs, disable_licm=True):
        y0, x0 = strip * HEIGHT, run * RUN
        cell = first_cell(grid, y0, x0, height, width)
        word = first_word(grid, y0, run, flag_rows, runs)
        passed_target_ptr = passed_out_ptr + cell * CHANNELS
        pair_cell = first_cell(grid, y0 + 1, x0 + 1, height + 2, width + 2)
        pair_target_ptr = pairs_out_ptr + pair_cell * (2 * CHANNELS)
        passed = tl.zeros((cells, CHANNELS), tl.float32)
        pair = tl.zeros((cells, 2 * CHANNELS), dtype)
        if any_kept(source_flags_ptr, word, runs, HEIGHT):
            inside_above, inside_here, inside_below = rows_inside(y0 + row, x0, height, width)
            status = alive_rows(
                source_flags_ptr + word,
                row * runs,
                runs,
                inside_above,
                inside_here,
                inside_below,
                position,
            )
            after_above = load_flags(target_flags_ptr + word, row * runs, -runs)[0]
            after_here = load_flags(target_flags_ptr + word, row * runs, 0)[0]
            after_below = load_flags(target_flags_ptr + word, row * runs, runs)[0]
            post = dilate(after_above, after_here, after_below) >> position
            status &= ~(((post & 1) ^ 1) << PRE)
            drawn = tl.zeros((cells,), tl.int32)
            if RANDOM:
                update = draw_update(cell + local, seed, step_number, update_limit)
                drawn = update.to(tl.int32) << UPDATE
            status = unite(status, drawn)

            wide = of_channels(status, CHANNELS, CHANNELS)
            alive = has(wide, PRE)
            # The order of these loads and of the products after them decides about spills.
            pointers = source_ptr + cell * CHANNELS + offsets
            pitch = width * CHANNELS
            identity, sobel_x, sobel_y = perceive(
                pointers - pitch, pointers, pointers + pitch, wide, CHANNELS
            )
            perceived = join_features(identity, sobel_x, sobel_y, dtype)
            grad = tl.load(passed_in_ptr + cell * CHANNELS + offsets, mask=alive, other=0.0)
            received = perceive_grad(
                pairs_in_ptr + pair_cell * (2 * CHANNELS) + pair_offsets,
                (width + 2) * (2 * CHANNELS),
                CHANNELS,
            )
            grad += tl.where(alive, received, 0.0)
            grad_delta = grad
            if RANDOM:
                grad_delta = tl.where(has(wide, UPDATE), grad, 0.0)

            grad_bias2 += tl.sum(tl.reshape(grad_delta, (2, cells // 2, CHANNELS)), axis=0)
            grad1, grad2, grad_perceived = differentiate_network(
                perceived, grad_delta, weight1, weight2, grad1, grad2
            )
            grad_identity, grad_x, grad_y = split_features(grad_perceived, cells, CHANNELS)
            passed = grad + grad_identity
            pair = tl.join(grad_x.to(dtype), grad_y.to(dtype))
            pair = tl.reshape(pair, (cells, 2 * CHANNELS))
        inside = ((row < height - y0) & (column < width - x0))[:, None]
        tl.store(passed_target_ptr + offsets, passed, mask=inside)
        tl.store(pair_target_ptr + pair_offsets, pair, mask=inside)
        grid, strip, run = advance(grid, strip, run, step_grid, step_strip, step_run, runs, strips)

    # Pointers that lived through the loop would cost it registers.
    size: tl.constexpr = (features + CHANNELS) * HIDDEN + CHANNELS
    row_ptr = partials_ptr + program.to(tl.int64) * size
    later = step + 1 < tl.load(counter_ptr + 2)
    store_sums(row_ptr, grad1, grad2, grad_bias2, later, CHANNELS, HIDDEN, True)


def step_backward(
    states: Tensor,
    flags: Tensor,
    carried: tuple[Tensor, Tensor],
    weights: Weights,
    counter: Tensor,
    partials: Tensor,
    source: int,
    step: int,
    rule: Rule,
    config: LaunchConfig,
) -> None:
    """Take the gradient back through one step; do nothing if the rollout has fewer steps.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, rows, runs]` int64; slot `source + 1` holds the state after the step.
        carried: `passed` `[2, B, H, W, CP]` float32 and `pairs` `[pair_cells, CP, 2]` operands,
            two planes with a margin of one cell around each grid: the gradient in two parts
            (equation 12). Half `step % 2` is written, the other read.
        weights: the packed weights.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        partials: `[programs, partial_size]` float32; every program adds to its own row.
        source: the slot of the state before the step.
        step: steps since the rollout's first.
        rule: which cells update, and which are alive.
        config: how to launch; `partials` has a row for each of its programs.
    """
    _, batch, height, width, channels = states.shape
    tiles = count_tiles(batch, height, width, config.tile_height)
    launch(
        _step_backward_kernel,
        min(tiles, config.programs),
        (states, flags, *carried, weights.packed, counter, partials),
        (source, step, batch, height, width, flags.shape[2], rule.limit),
        (channels, weights.hidden, rule.random, config.tile_height),
        config.num_warps,
    )
