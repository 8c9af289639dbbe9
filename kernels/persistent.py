"""Experimental: all steps of a rollout in one launch, whose programs wait for each other.

Nothing in the package launches this kernel; `experimental.py` of the backend does, for its test and
for `bench/gpu/timing.py`. It has not run on hardware yet. Grids do not depend on each other, so the
programs that share a grid, a group, wait for each other after every step and for nobody else.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .alive import RUN
from .launch import INTERPRETED_PROGRAMS, LaunchConfig, Rule, count_tiles, launch
from .step_forward import forward_tile
from .weights import Weights, load_bias2, load_weights


@triton.jit
def _wait_for_group(arrived_ptr, expected):
    """Wait until `expected` arrivals at a barrier, this one included, have been counted.

    The release makes what this program stored visible to who sees its arrival, the acquire what
    the others stored to the loads after it. The count only grows, so it needs no reset.
    """
    tl.debug_barrier()
    tl.atomic_add(arrived_ptr, 1, sem="release", scope="gpu")
    while tl.atomic_add(arrived_ptr, 0, sem="acquire", scope="gpu") < expected:
        pass
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=[
        "most",
        "slots",
        "groups",
        "members",
        "batch",
        "height",
        "width",
        "flag_rows",
        "update_limit",
    ]
)
def _persistent_kernel(
    states_ptr,
    flags_ptr,
    weights_ptr,
    counter_ptr,
    arrived_ptr,
    most,
    slots,
    groups,
    members,
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
    """Advance a stored state by all steps of its rollout (equations 1 to 6 in each).

    Program p belongs to group p div `members`, which takes grids g, g + `groups`, ... through all
    of their steps, one after the other. Step t reads slot t mod `slots` and writes the next.
    """
    runs = tl.cdiv(width, RUN)
    tiles = tl.cdiv(height, HEIGHT) * runs
    slot_cells = batch.to(tl.int64) * height * width
    slot_words = batch.to(tl.int64) * flag_rows * runs
    seed = tl.load(counter_ptr)
    first_step = tl.load(counter_ptr + 1)
    steps = tl.minimum(tl.load(counter_ptr + 2), most).to(tl.int32)
    weight1, weight2 = load_weights(weights_ptr, CHANNELS, HIDDEN)
    bias2 = load_bias2(weights_ptr, CHANNELS, HIDDEN)

    group = tl.program_id(0) // members
    member = tl.program_id(0) - group * members
    expected = members * 0
    for turn in tl.range(0, tl.cdiv(batch - group, groups), disable_licm=True):
        grid = group + turn * groups
        for step in tl.range(0, steps, disable_licm=True):
            source = (first_step * 0 + step) % slots
            target = (first_step * 0 + step + 1) % slots
            for tile in tl.range(member, tiles, members, disable_licm=True):
                strip = tile // runs
                forward_tile(
                    states_ptr + source * slot_cells * CHANNELS,
                    states_ptr + target * slot_cells * CHANNELS,
                    flags_ptr + source * slot_words,
                    flags_ptr + target * slot_words,
                    weight1,
                    weight2,
                    bias2,
                    seed,
                    first_step + step,
                    grid,
                    strip,
                    tile - strip * runs,
                    height,
                    width,
                    flag_rows,
                    update_limit,
                    threshold,
                    CHANNELS,
                    RANDOM,
                    HEIGHT,
                )
            expected += members
            _wait_for_group(arrived_ptr + group, expected)


def choose_persistent(
    channels: int, hidden: int, dtype: torch.dtype, processors: int = 0
) -> LaunchConfig:
    """Choose tiles, warps and the number of programs, all of which must be resident at once.

    Half a tile per program leaves more of them to share out in every step. Two programs of 16
    channels need 56 KiB of a multiprocessor's shared memory, one of 32 channels or of float32
    operands as much as both; consumer GPUs have 99 KiB.

    Args:
        channels: padded channels, 16 or 32.
        hidden: padded hidden units, 16 to 256.
        dtype: type of the MMA operands.
        processors: streaming multiprocessors of the device; 0 in the interpreter.

    Returns:
        The configuration.
    """
    half = dtype != torch.float32
    height, warps = (8, 4) if half else (4, 8)
    resident = 2 if half and channels == 16 and hidden <= 128 else 1
    return LaunchConfig(height, warps, resident * processors or INTERPRETED_PROGRAMS)


def choose_groups(batch: int, tiles: int, programs: int, waits: bool) -> tuple[int, int]:
    """Share programs among grids.

    Args:
        batch: number of grids.
        tiles: tiles of one grid.
        programs: programs that are resident at the same time.
        waits: False where programs run one after the other, and a group must be one program.

    Returns:
        The number of groups, and of programs in each.
    """
    groups = max(1, min(batch, programs))
    return groups, max(1, min(tiles, programs // groups)) if waits else 1


def persistent_forward(
    states: Tensor,
    flags: Tensor,
    weights: Weights,
    counter: Tensor,
    most: int,
    slots: int,
    rule: Rule,
    config: LaunchConfig,
) -> None:
    """Advance a stored state by all steps of its rollout, in one cooperative launch.

    Args:
        states: `[slots, B, H, W, CP]` float32; slot 0 is read.
        flags: `[slots, B, rows, runs]` int64.
        weights: the packed weights.
        counter: `[3]` int64: seed, number of the rollout's first step, number of its steps.
        most: the most steps.
        slots: slots that take turns.
        rule: which cells update, and which are alive.
        config: tiles, warps, and how many programs are resident at the same time.

    Raises:
        RuntimeError: the device cannot hold all programs at once; nothing has run.
    """
    _, batch, height, width, channels = states.shape
    tiles = count_tiles(1, height, width, config.tile_height)
    groups, members = choose_groups(batch, tiles, config.programs, states.is_cuda)
    arrived = torch.zeros(groups, dtype=torch.int32, device=states.device)
    numbers = (most, slots, groups, members, batch, height, width, flags.shape[2])
    launch(
        _persistent_kernel,
        groups * members if batch else 0,
        (states, flags, weights.packed, counter, arrived),
        (*numbers, rule.limit, rule.threshold),
        (channels, weights.hidden, rule.random, config.tile_height),
        config.num_warps,
        cooperative=True,
    )
