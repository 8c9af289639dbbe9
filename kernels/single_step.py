"""One step of a state as it is, `[B, C, H, W]`, in one launch."""

import torch
import triton
import triton.language as tl

from .alive import HERE, PRE, RUN, UPDATE, has, is_visible, of_channels, unite
from .bits import dilate_bits, gather_bits
from .launch import RUN_CELLS, Launch, LaunchConfig, Rule
from .mask import draw_update
from .network import apply_network
from .perceive import join_features, perceive
from .tile import advance, cells_of, first_cell, locate
from .weights import DTYPES, padded_channels, padded_hidden, read_weights

ALPHA = tl.constexpr(3)

SURVIVES = tl.constexpr(0)
"""Bit of a cell's fate: alive before and after the step."""

UPDATES = tl.constexpr(1)
"""Bit of a cell's fate: takes part in the step."""

USERS = ["state_ptr", "w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "seed_ptr"]
"""Tensors of the caller's, which may begin at any number of their memory."""


@triton.jit
def neighbours_inside(y, x, height, width):
    """Tell which cells of each 3x3 neighbourhood lie in the grid, nine bits as in `around`."""
    columns = tl.where(_lies_below(x - 1, width), 1, 0) | tl.where(_lies_below(x, width), 2, 0)
    columns |= tl.where(_lies_below(x + 1, width), 4, 0)
    rows = tl.where(_lies_below(y - 1, height), 1, 0) | tl.where(_lies_below(y, height), 8, 0)
    rows |= tl.where(_lies_below(y + 1, height), 64, 0)
    return rows * columns


@triton.jit
def _lies_below(number, size):
    """Tell whether 0 <= number < size."""
    return number.to(tl.uint32) < size.to(tl.uint32)


@triton.jit
def make_uniform(value):
    """Return a scalar such that the compiler sees it is the same in all threads."""
    return tl.max(tl.zeros((32,), value.dtype) + value, axis=0)


@triton.jit(
    do_not_specialize=[
        "seed",
        "step",
        "tiles",
        "height",
        "width",
        "hidden",
        "update_limit",
    ],
    do_not_specialize_on_alignment=USERS,
)
def _single_step_kernel(
    state_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    seed_ptr,
    result_ptr,
    fates_ptr,
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
    RANDOM: tl.constexpr,
    SEED_GIVEN: tl.constexpr,
    KEEP: tl.constexpr,
    HEIGHT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Advance a state by one step (equations 1 to 7).

    The test after the update needs the updated alpha around each cell. So neighbouring tiles
    overlap: every cell of a tile is updated, and all but the outermost ones, its ring, are stored.
    What the derivative has to know about a cell, whether it survived and took part, is one byte.
    A cell whose alpha is not finite counts as alive; what is not finite in a cell that dies all the
    same is NaN, not zero, in the result.
    """
    cells: tl.constexpr = HEIGHT * RUN
    nothing = height.to(tl.int64) * 0  # the interpreter holds some long arguments in 32 bits
    seed, step = seed + nothing, step + nothing
    if SEED_GIVEN:
        seed = tl.load(seed_ptr)
    weight1, weight2 = read_weights(w1_ptr, b1_ptr, w2_ptr, CHANNELS, hidden, PADDED, HIDDEN, DTYPE)
    channel = tl.arange(0, PADDED)
    bias2 = tl.load(b2_ptr + channel, mask=channel < CHANNELS, other=0.0)
    row, column = cells_of(HEIGHT)
    local = row * width + column
    plane = height.to(tl.int64) * width
    in_ring = (row == 0) | (row == HEIGHT - 1) | (column == 0) | (column == RUN - 1)

    runs, strips = tl.cdiv(width, RUN - 2), tl.cdiv(height, HEIGHT - 2)
    program, programs = tl.program_id(0), tl.num_programs(0)
    grid, strip, run = locate(program, runs, strips)
    step_grid, step_strip, step_run = locate(programs, runs, strips)
    for _ in tl.range(program, tiles, programs, disable_licm=True):
        y0, x0 = strip * (HEIGHT - 2) - 1, run * (RUN - 2) - 1
        y, x = y0 + row, x0 + column
        status = neighbours_inside(y, x, height, width)
        inside = has(status, HERE)
        cell = first_cell(grid, y0, x0, height, width)
        corner = grid.to(tl.int64) * (CHANNELS - 1) * plane + cell
        offsets = local[:, None] + channel[None, :] * (height * width)
        alpha_ptr = state_ptr + corner + ALPHA * plane
        alpha = tl.load(alpha_ptr + local, mask=inside, other=0.0)
        words = gather_bits(is_visible(alpha, threshold), cells)
        stored = inside & (in_ring == 0)
        fate = tl.zeros((cells,), tl.int32)
        updated = tl.zeros((cells, PADDED), tl.float32)
        if make_uniform(tl.max(words, axis=0)) != 0:
            status |= dilate_bits(words, cells) << PRE
            drawn = tl.full((cells,), 1, tl.int32) << UPDATE
            if RANDOM:
                update = draw_update(cell + local, seed, step, update_limit)
                drawn = update.to(tl.int32) << UPDATE
            status = unite(status, drawn)
            wide = of_channels(status, CHANNELS, PADDED)
            here_ptr = state_ptr + corner
            above, below = here_ptr - width + offsets, here_ptr + width + offsets
            identity, sobel_x, sobel_y = perceive(above, here_ptr + offsets, below, wide, 1)
            perceived = join_features(identity, sobel_x, sobel_y, DTYPE)
            delta = apply_network(perceived, weight1, weight2, bias2)
            if RANDOM:
                delta = tl.where(has(wide, UPDATE), delta, 0.0)
            updated = identity + delta
            visible = (channel == ALPHA)[None, :] & ((updated <= threshold) == 0)
            words = gather_bits(visible & has(wide, HERE), cells)
            survives = dilate_bits(words, cells) & (status >> PRE) & 1
            fate = survives | ((status >> UPDATE) & 1) << UPDATES
        survives = tl.where(has(fate, SURVIVES), 1.0, 0.0)  # a factor: inf * 0 is NaN and stays
        result = updated * survives[:, None]
        mask = stored[:, None] & (channel < CHANNELS)[None, :]
        tl.store(result_ptr + corner + offsets, result, mask=mask)
        if KEEP:
            tl.store(fates_ptr + cell + local, fate.to(tl.uint8), mask=stored)
        grid, strip, run = advance(grid, strip, run, step_grid, step_strip, step_run, runs, strips)


def prepare_forward(
    shape: tuple[int, int, int, int],
    hidden: int,
    precision: str,
    rule: Rule,
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
        rule: which cells update, and which are alive.
        seed_given: whether the seed is a tensor.
        keep: whether fates are stored.
        device: where the tensors are.
        config: how to launch.

    Returns:
        The launch. Its arguments: the state `[B, C, H, W]`; w1, b1, w2 and b2, all float32 and
        contiguous; the seed, `[]` int64 that is read on the device, or any tensor; the result,
        like the state; the fates `[B, H, W]` uint8, or any tensor; the seed's 64 bits as a signed
        number, or any; the number of the step.
    """
    batch, channels, height, width = shape
    tiles = single_tiles(batch, height, width, config.tile_height)
    sizes = (channels, padded_channels(channels), padded_hidden(hidden))
    return Launch(
        _single_step_kernel,
        min(tiles, config.programs),
        (tiles, height, width, hidden, rule.limit, rule.threshold),
        (*sizes, rule.random, seed_given, keep, config.tile_height, DTYPES[precision]),
        config.num_warps,
        device,
    )


def single_tiles(batch: int, height: int, width: int, tile_height: int) -> int:
    """Return the number of tiles of a batch of grids, which overlap by their rings."""
    return batch * -(-height // (tile_height - 2)) * -(-width // (RUN_CELLS - 2))
