"""One step forward as one kernel: perception, network, update mask and both alive tests."""

import triton
import triton.language as tl
from torch import Tensor

from .alive import look_around, may_live
from .flags import first_word, flag_rows_not_finite, pack_flags, store_flags
from .launch import LaunchConfig, StepSettings, count_tiles, launch
from .mask import draw_status
from .network import update_cells
from .status import INSIDE, PRE, combine_once, has, is_finite, of_channels, with_inputs
from .tile import COLUMNS, advance, cells_of, distances, first_cell, locate
from .weights import Weights, load_weights

ALPHA = tl.constexpr(3)

NUMBERS = ["source", "target", "step", "batch", "height", "width", "flag_rows", "update_limit"]
"""Arguments that are not specialised."""


@triton.jit
def find_flags(updated, status, threshold, HEIGHT: tl.constexpr, DTYPE: tl.constexpr):
    """Find the flags that a step leaves: `updated` (E5) and `kept` (E6).

    A cell whose alpha is not finite counts as alive, before and after the step, so the alive test
    never hides it. Fp16 operands need no test of the other channels: an operand beyond their range
    is infinite and reaches every channel, alpha included, and products of smaller ones are far
    below the limit of float32.

    Args:
        updated: `[CELLS, CHANNELS]` float32, ŝ of a tile.
        status: `[CELLS]` int32 (`look_around`).
        threshold: exclusive lower limit of a living alpha.
        HEIGHT: rows of the tile.
        DTYPE: type of the operands.

    Returns:
        `[HEIGHT]` int32 (`pack_flags`).
    """
    is_alpha = (tl.arange(0, updated.shape[1]) == ALPHA)[None, :]
    inside = has(status, INSIDE).to(tl.int32)
    kept = has(status, PRE).to(tl.int32) << PRE
    flags = tl.where(updated > threshold, (inside | kept)[:, None], 0)
    flags = tl.where(is_finite(updated), flags, (inside | (inside << PRE))[:, None])
    found = pack_flags(tl.where(is_alpha, flags, 0), HEIGHT)
    if tl.float16 != DTYPE:
        found = flag_rows_not_finite(found, updated)
    return found


@triton.jit(do_not_specialize=NUMBERS)
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
    RULE: tl.constexpr,
    RANDOM: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """Advance a stored state by one step, unless the rollout has ended before it (E1 to E6).

    The source slot holds the v of the step before, and flags from which `look_around` finds which
    of its cells that step left alive (E7): the test after the update is applied by the loads of
    the next step, so a tile needs a halo of one cell and no cell is computed twice. What a cell
    needs to know is one word, computed once per cell; its bits mask the nine loads of the
    neighbourhood, so dead cells and what lies beyond the border read as zero.

    A program keeps the weights and walks over tiles. A tile out of reach of every living cell
    becomes zero without being computed. The number of steps is read from the device, so that a
    CUDA graph of more launches than steps can be replayed.

    Shapes and units:
        states_ptr: `[slots, B, H, W, CHANNELS]` float32; slot `source` is read, `target` written.
        flags_ptr: `[slots, B, flag_rows, tile_columns]` int64; likewise.
        weights_ptr: packed weights.
        counter_ptr: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        step: steps since the rollout's first.
        update_limit: a cell updates when its 24-bit draw is below.
        threshold: exclusive lower limit of a living alpha.
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
    source_ptr = states_ptr + source * slot_cells * CHANNELS
    target_ptr = states_ptr + target * slot_cells * CHANNELS
    source_flags_ptr = flags_ptr + source * slot_words
    target_flags_ptr = flags_ptr + target * slot_words
    seed = tl.load(counter_ptr)
    step_number = tl.load(counter_ptr + 1) + step
    weights = load_weights(weights_ptr, CHANNELS, HIDDEN, RULE)

    program, programs = tl.program_id(0), tl.num_programs(0)
    place = locate(program, tile_columns, tile_rows)
    stride = locate(programs, tile_columns, tile_rows)
    for _ in tl.range(program, batch * tile_rows * tile_columns, programs, disable_licm=True):
        channel = tl.arange(0, CHANNELS)
        row, column = cells_of(HEIGHT)
        sample, tile_row, tile_column = place
        y0, x0 = tile_row * HEIGHT, tile_column * COLUMNS
        y, x = y0 + row, x0 + column
        local = row * width + column
        if RULE.circular:
            inside = (y < height) & (x < width)
            y, x = tl.where(inside, y, y0), tl.where(inside, x, x0)
            local = tl.where(inside, local, 0)
        cell = first_cell(sample, y0, x0, height, width)
        offsets = local[:, None] * CHANNELS + channel[None, :]
        stored = tl.zeros((cells, CHANNELS), tl.float32)
        found = tl.zeros((HEIGHT,), tl.int32)
        if RULE.alive and RULE.first_input > 0:
            is_input = (channel >= RULE.first_input)[None, :]
            inside = ((y0 + row < height) & (x0 + column < width))[:, None]
            pointers = source_ptr + cell * CHANNELS + offsets
            stored = tl.load(pointers, mask=inside & is_input, other=0.0)
        if may_live(source_flags_ptr, place, size, RULE, HEIGHT):
            status = look_around(source_flags_ptr, place, size, RULE, HEIGHT, True)
            mask = seed, step_number, update_limit
            status = combine_once(status, draw_status(cell + local, mask, RULE, RANDOM))
            statuses = with_inputs(of_channels(status, CHANNELS, CHANNELS), RULE)
            steps = distances(y, x, height, width, width, RULE.circular)
            tile_ptr = source_ptr + cell * CHANNELS
            updated = update_cells(
                tile_ptr, offsets, steps, statuses, weights, RULE, RANDOM, CHANNELS
            )
            stored = updated
            if RULE.alive:
                alive = has(statuses, PRE)
                stored = tl.where(alive, updated, updated * 0.0)  # inf * 0 is NaN and stays
                found = find_flags(updated, status, threshold, HEIGHT, dtype)
        inside = (y0 + row < height) & (x0 + column < width)
        tl.store(target_ptr + cell * CHANNELS + offsets, stored, mask=inside[:, None])
        if RULE.alive:
            word = first_word(sample, y0, tile_column, flag_rows, tile_columns)
            store_flags(target_flags_ptr, word, tile_column, tile_columns, found, HEIGHT)
        place = advance(place, stride, tile_columns, tile_rows)


def step_forward(
    states: Tensor,
    flags: Tensor,
    weights: Weights,
    counter: Tensor,
    slots: tuple[int, int],
    step: int,
    settings: StepSettings,
    config: LaunchConfig,
) -> None:
    """Advance a stored state by one step; do nothing if the rollout has fewer steps.

    Args:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, flag_rows, tile_columns]` int64; empty without an alive test.
        weights: the packed weights.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        slots: the slot to read and the slot to write.
        step: steps since the rollout's first.
        settings: which cells update, and which are alive.
        config: how to launch.
    """
    _, batch, height, width, channels = states.shape
    tiles = count_tiles(batch, height, width, config.tile_height)
    launch(
        _step_forward_kernel,
        min(tiles, config.programs),
        (states, flags, weights.packed, counter),
        (*slots, step, batch, height, width, flags.shape[2], settings.limit, settings.threshold),
        (channels, weights.hidden, weights.rule, settings.random, config.tile_height),
        config.num_warps,
    )
