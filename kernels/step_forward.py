"""One step forward as one kernel: perception, MLP, update mask and both alive tests."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import (
    INSIDE,
    OWN,
    PRE,
    RUN,
    UPDATE,
    alive_rows,
    flag_runs_not_finite,
    has,
    is_finite,
    of_channels,
    pack_flags,
    rows_inside,
    store_flags,
    unite,
)
from .launch import LaunchConfig, Rule, count_tiles, launch
from .mask import draw_update
from .network import apply_network
from .perceive import join_features, perceive
from .tile import advance, any_kept, cells_of, first_cell, first_word, locate
from .weights import Weights, load_bias2, load_weights

ALPHA = tl.constexpr(3)


@triton.jit
def forward_tile(
    source_ptr,
    target_ptr,
    source_flags_ptr,
    target_flags_ptr,
    weight1,
    weight2,
    bias2,
    seed,
    step_number,
    grid,
    strip,
    run,
    height,
    width,
    flag_rows,
    update_limit,
    threshold,
    CHANNELS: tl.constexpr,
    RANDOM: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Advance one tile by one step (equations 1 to 6).

    A tile out of reach of every living cell becomes zero without being computed. What a cell
    needs to know, its living neighbours, whether it was alive, updates, and lies in the grid, is
    one word, computed once per cell; its bits mask the nine loads of the neighbourhood, so dead
    cells and the border read as zero.

    A cell whose alpha is not finite counts as alive, before and after the step, so the alive test
    never hides it. Fp16 operands need no test of the other channels: an operand beyond their range
    is infinite and reaches every channel, alpha included, and products of smaller ones are far
    below the limit of float32.

    Args:
        source_ptr: pointer to the state before the step, `[B, H, W, CHANNELS]` float32.
        target_ptr: pointer to the state after the step.
        source_flags_ptr: pointer to the flags of the former.
        target_flags_ptr: pointer to the flags of the latter.
        weight1: `[4 * CHANNELS, HIDDEN]` operands.
        weight2: `[HIDDEN, CHANNELS]` operands.
        bias2: `[CHANNELS]` float32.
        seed: int64, key of the masks.
        step_number: int64, number of the step.
        grid: number of the tile's grid.
        strip: row of tiles.
        run: run of eight columns.
        height: rows of a grid.
        width: columns of a grid.
        flag_rows: rows of a plane of flags.
        update_limit: a cell updates when its 24-bit draw is below.
        threshold: exclusive lower limit of a living alpha.
        CHANNELS: padded channels.
        RANDOM: whether a mask is drawn.
        HEIGHT: rows of a tile.
    """
    dtype: tl.constexpr = weight1.dtype
    cells: tl.constexpr = HEIGHT * RUN
    runs = tl.cdiv(width, RUN)
    channel = tl.arange(0, CHANNELS)
    row, column = cells_of(HEIGHT)
    position = column + OWN
    local = row * width + column
    offsets = local[:, None] * CHANNELS + channel[None, :]
    y0, x0 = strip * HEIGHT, run * RUN
    cell = first_cell(grid, y0, x0, height, width)
    word = first_word(grid, y0, run, flag_rows, runs)
    out_ptr = target_ptr + cell * CHANNELS
    stored = tl.zeros((cells, CHANNELS), tl.float32)
    found = tl.zeros((HEIGHT,), tl.int32)
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
        status |= ((inside_here >> position) & 1) << INSIDE
        drawn = tl.zeros((cells,), tl.int32)
        if RANDOM:
            update = draw_update(cell + local, seed, step_number, update_limit)
            drawn = update.to(tl.int32) << UPDATE
        status = unite(status, drawn)
        wide = of_channels(status, CHANNELS, CHANNELS)
        pointers = source_ptr + cell * CHANNELS + offsets
        pitch = width * CHANNELS
        identity, sobel_x, sobel_y = perceive(
            pointers - pitch, pointers, pointers + pitch, wide, CHANNELS
        )
        perceived = join_features(identity, sobel_x, sobel_y, dtype)
        delta = apply_network(perceived, weight1, weight2, bias2)
        if RANDOM:
            delta = tl.where(has(wide, UPDATE), delta, 0.0)
        updated = identity + delta
        stored = tl.where(has(wide, PRE), updated, updated * 0.0)  # inf * 0 is NaN and stays
        inside = has(status, INSIDE).to(tl.int32)
        kept = has(status, PRE).to(tl.int32) << PRE
        flags = tl.where(updated > threshold, (inside | kept)[:, None], 0)
        flags = tl.where(is_finite(updated), flags, (inside | (inside << PRE))[:, None])
        found = pack_flags(tl.where((channel == ALPHA)[None, :], flags, 0), HEIGHT)
        if dtype != tl.float16:
            found = flag_runs_not_finite(found, updated)
    inside = (y0 + row < height) & (x0 + column < width)
    tl.store(out_ptr + offsets, stored, mask=inside[:, None])
    store_flags(target_flags_ptr, word, runs, run, runs, found, HEIGHT)


@triton.jit(
    do_not_specialize=[
        "source",
        "target",
        "step",
        "batch",
        "height",
        "width",
        "flag_rows",
        "update_limit",
    ]
)
def _step_forward_kernel(
    states_ptr,
    flags_ptr,
    weights_ptr,
    counter_ptr,
    source,
    target,
    step,
    batch,
    height,
    width,
    flag_rows,
    update_limit,
    threshold,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    RANDOM: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Advance a stored state by one step, unless the rollout has ended before it.

        ŝ = s + m ⊙ (W₂ relu(W₁ p(s) + b₁) + b₂),   v = ŝ ⊙ alive(s)     (equations 1 to 6)

    The source slot holds the v of the step before, and flags from which `alive_rows` finds which
    of its cells that step left alive (equation 7): the test after the update is applied by the
    loads of the next step, so a tile needs a halo of one cell and no cell is computed twice.
    A program keeps the weights and walks over tiles.

    The number of steps is read from the device, so that a CUDA graph of more launches than steps
    can be replayed.
    """
    if step >= tl.load(counter_ptr + 2):
        return
    runs = tl.cdiv(width, RUN)
    strips = tl.cdiv(height, HEIGHT)
    slot_cells = batch.to(tl.int64) * height * width
    slot_words = batch.to(tl.int64) * flag_rows * runs
    source_ptr = states_ptr + source * slot_cells * CHANNELS
    target_ptr = states_ptr + target * slot_cells * CHANNELS
    source_flags_ptr = flags_ptr + source * slot_words
    target_flags_ptr = flags_ptr + target * slot_words
    seed = tl.load(counter_ptr)
    step_number = tl.load(counter_ptr + 1) + step
    weight1, weight2 = load_weights(weights_ptr, CHANNELS, HIDDEN)
    bias2 = load_bias2(weights_ptr, CHANNELS, HIDDEN)

    program, programs = tl.program_id(0), tl.num_programs(0)
    grid, strip, run = locate(program, runs, strips)
    step_grid, step_strip, step_run = locate(programs, runs, strips)
    for _ in tl.range(program, batch * strips * runs, programs, disable_licm=True):
        forward_tile(
            source_ptr,
            target_ptr,
            source_flags_ptr,
            target_flags_ptr,
            weight1,
            weight2,
            bias2,
            seed,
            step_number,
            grid,
            strip,
            run,
            height,
            width,
            flag_rows,
            update_limit,
            threshold,
            CHANNELS,
            RANDOM,
            HEIGHT,
        )
        grid, strip, run = advance(grid, strip, run, step_grid, step_strip, step_run, runs, strips)


def step_forward(
    states: Tensor,
    flags: Tensor,
    weights: Weights,
    counter: Tensor,
    slots: tuple[int, int],
    step: int,
    rule: Rule,
    config: LaunchConfig,
) -> None:
    """Advance a stored state by one step; do nothing if the rollout has fewer steps.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, rows, runs]` int64.
        weights: the packed weights.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        slots: the slot to read and the slot to write.
        step: steps since the rollout's first.
        rule: which cells update, and which are alive.
        config: how to launch.
    """
    _, batch, height, width, channels = states.shape
    tiles = count_tiles(batch, height, width, config.tile_height)
    launch(
        _step_forward_kernel,
        min(tiles, config.programs),
        (states, flags, weights.packed, counter),
        (*slots, step, batch, height, width, flags.shape[2], rule.limit, rule.threshold),
        (channels, weights.hidden, rule.random, config.tile_height),
        config.num_warps,
    )
