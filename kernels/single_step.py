"""One step of a state as it is, `[B, C, H, W]`, in one launch; for the tutorial's rule."""

import torch
import triton
import triton.language as tl

from .bits import dilate_bits, gather_bits
from .launch import TILE_COLUMNS, Launch, LaunchConfig, StepSettings
from .mask import draw_update
from .network import update_cells
from .rule import KernelRule
from .status import HERE, PRE, UPDATE, combine_once, has, is_visible, of_channels
from .tile import COLUMNS, advance, cells_of, distances, first_cell, locate, neighbours_inside
from .weights import DTYPES, load_parameters, padded_channels, padded_hidden

ALPHA = tl.constexpr(3)

ALIVE_AFTER = tl.constexpr(0)
"""Bit of a cell's flags: alive before and after the step."""

UPDATED = tl.constexpr(1)
"""Bit of a cell's flags: took part in the step."""

USERS = ["state_ptr", "w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "seed_ptr"]
"""Tensors of the caller's, which may begin at any number of their memory."""

NUMBERS = ["seed", "step", "tiles", "height", "width", "hidden", "update_limit"]
"""Arguments that are not specialised."""


@triton.jit
def make_uniform(value):
    """Return a scalar such that the compiler sees it is the same in all threads."""
    return tl.max(tl.zeros((32,), value.dtype) + value, axis=0)


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=USERS)
def _single_step_kernel(
    state_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    seed_ptr,
    result_ptr,
    cell_flags_ptr,
    seed: tl.int64,
    step: tl.int64,
    tiles,
    height,
    width,
    hidden,
    update_limit,
    threshold,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    RULE: tl.constexpr,
    RANDOM: tl.constexpr,
    SEED_GIVEN: tl.constexpr,
    KEEP: tl.constexpr,
    HEIGHT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Advance a state by one step (E1 to E7).

    The test after the update needs the updated alpha around each cell. So neighbouring tiles
    overlap: every cell of a tile is updated, and all but the outermost ones, its ring, are stored.
    What the derivative has to know about a cell, whether it is alive after the step and took part
    in it, is one byte. A cell whose alpha is not finite counts as alive; what is not finite in a
    cell that dies all the same is NaN, not zero, in the result.

    Shapes and units:
        state_ptr: `[B, CHANNELS, H, W]` float32.
        w1_ptr: `[hidden, 3 * CHANNELS]` float32, as are b1 `[hidden]`, w2 `[CHANNELS, hidden]` and
            b2 `[CHANNELS]`.
        seed_ptr: `[]` int64, read if SEED_GIVEN instead of `seed`.
        result_ptr: `[B, CHANNELS, H, W]` float32, written.
        cell_flags_ptr: `[B, H, W]` uint8, written if KEEP.
        update_limit: a cell updates when its 24-bit draw is below.
        threshold: exclusive lower limit of a living alpha.
    """
    cells: tl.constexpr = HEIGHT * COLUMNS
    nothing = height.to(tl.int64) * 0  # the interpreter holds some long arguments in 32 bits
    seed, step = seed + nothing, step + nothing
    if SEED_GIVEN:
        seed = tl.load(seed_ptr)
    parameters, sizes = (w1_ptr, b1_ptr, w2_ptr, b2_ptr), (CHANNELS, hidden)
    weights = load_parameters(parameters, sizes, PADDED, HIDDEN, RULE, DTYPE)
    channel = tl.arange(0, PADDED)
    row, column = cells_of(HEIGHT)
    local = row * width + column
    plane = height.to(tl.int64) * width
    in_ring = (row == 0) | (row == HEIGHT - 1) | (column == 0) | (column == COLUMNS - 1)

    tile_columns, tile_rows = tl.cdiv(width, COLUMNS - 2), tl.cdiv(height, HEIGHT - 2)
    program, programs = tl.program_id(0), tl.num_programs(0)
    place = locate(program, tile_columns, tile_rows)
    stride = locate(programs, tile_columns, tile_rows)
    for _ in tl.range(program, tiles, programs, disable_licm=True):
        sample, tile_row, tile_column = place
        y0, x0 = tile_row * (HEIGHT - 2) - 1, tile_column * (COLUMNS - 2) - 1
        y, x = y0 + row, x0 + column
        status = neighbours_inside(y, x, height, width)
        inside = has(status, HERE)
        cell = first_cell(sample, y0, x0, height, width)
        corner = sample.to(tl.int64) * (CHANNELS - 1) * plane + cell
        offsets = local[:, None] + channel[None, :] * (height * width)
        alpha_ptr = state_ptr + corner + ALPHA * plane
        alpha = tl.load(alpha_ptr + local, mask=inside, other=0.0)
        words = gather_bits(is_visible(alpha, threshold), cells)
        stored = inside & (in_ring == 0)
        cell_flags = tl.zeros((cells,), tl.int32)
        updated = tl.zeros((cells, PADDED), tl.float32)
        if make_uniform(tl.max(words, axis=0)) != 0:
            status |= dilate_bits(words, cells) << PRE
            drawn = tl.full((cells,), 1, tl.int32) << UPDATE
            if RANDOM:
                update = draw_update(cell + local, seed, step, update_limit)
                drawn = update.to(tl.int32) << UPDATE
            status = combine_once(status, drawn)
            statuses = of_channels(status, CHANNELS, PADDED)
            steps = distances(y, x, height, width, width, RULE.circular)
            here_ptr = state_ptr + corner
            updated = update_cells(here_ptr, offsets, steps, statuses, weights, RULE, RANDOM, 1)
            visible = (channel == ALPHA)[None, :] & ((updated <= threshold) == 0)
            words = gather_bits(visible & has(statuses, HERE), cells)
            alive = dilate_bits(words, cells) & (status >> PRE) & 1
            cell_flags = alive | ((status >> UPDATE) & 1) << UPDATED
        alive = tl.where(has(cell_flags, ALIVE_AFTER), 1.0, 0.0)  # a factor: inf * 0 stays NaN
        result = updated * alive[:, None]
        mask = stored[:, None] & (channel < CHANNELS)[None, :]
        tl.store(result_ptr + corner + offsets, result, mask=mask)
        if KEEP:
            tl.store(cell_flags_ptr + cell + local, cell_flags.to(tl.uint8), mask=stored)
        place = advance(place, stride, tile_columns, tile_rows)


def prepare_forward(
    shape: tuple[int, int, int, int],
    hidden: int,
    precision: str,
    rule: KernelRule,
    settings: StepSettings,
    seed_given: bool,
    keep: bool,
    device: torch.device,
    config: LaunchConfig,
) -> Launch:
    """Prepare the launch for states of one shape and parameters of one size.

    Args:
        shape: `(B, C, H, W)`, B at least 1.
        hidden: hidden units.
        precision: "fp16", "bf16" or "ieee".
        rule: the tutorial's rule.
        settings: which cells update, and which are alive.
        seed_given: whether the seed is a tensor.
        keep: whether the cells' flags are stored.
        device: where the tensors are.
        config: how to launch.

    Returns:
        The launch. Its arguments: the state `[B, C, H, W]`; w1, b1, w2 and b2, all float32 and
        contiguous; the seed, `[]` int64 that is read on the device, or any tensor; the result,
        like the state; the cells' flags `[B, H, W]` uint8, or any tensor; the seed's 64 bits as a
        signed number, or any; the number of the step.
    """
    batch, channels, height, width = shape
    tiles = single_tiles(batch, height, width, config.tile_height)
    sizes = (channels, padded_channels(channels), padded_hidden(hidden))
    return Launch(
        _single_step_kernel,
        min(tiles, config.programs),
        (tiles, height, width, hidden, settings.limit, settings.threshold),
        (
            *(*sizes, rule, settings.random, seed_given, keep),
            *(config.tile_height, DTYPES[precision]),
        ),
        config.num_warps,
        device,
    )


def single_tiles(batch: int, height: int, width: int, tile_height: int) -> int:
    """Return the number of tiles of a batch of grids, which overlap by their rings."""
    return batch * -(-height // (tile_height - 2)) * -(-width // (TILE_COLUMNS - 2))
