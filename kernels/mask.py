"""Device function for the update mask, bit for bit the mask of `fastnca.update_mask`."""

import triton
import triton.language as tl

from .status import TAKES_PART, UPDATE


@triton.jit
def _philox(low, high, step_low, step_high, seed):
    """Compute Philox 4x32-10; each product of 32-bit words is one 64-bit multiplication."""
    key_0, key_1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    word_0, word_1, word_2, word_3 = low, high, step_low, step_high
    for _ in tl.static_range(10):
        product_0 = word_0.to(tl.uint64) * 0xD2511F53
        product_1 = word_2.to(tl.uint64) * 0xCD9E8D57
        word_0 = (product_1 >> 32).to(tl.uint32) ^ word_1 ^ key_0
        word_2 = (product_0 >> 32).to(tl.uint32) ^ word_3 ^ key_1
        word_1, word_3 = product_1.to(tl.uint32), product_0.to(tl.uint32)
        key_0 = tl.add(key_0, 0x9E3779B9, sanitize_overflow=False)
        key_1 = tl.add(key_1, 0xBB67AE85, sanitize_overflow=False)
    return word_0, word_1, word_2, word_3


@triton.jit
def draw_status(cell, mask, RULE: tl.constexpr, RANDOM: tl.constexpr):
    """Return the status bit of the cells that update, int32; zero if nobody asks for it.

    Args:
        cell: `[CELLS]` int64, number of the cell in the batch.
        mask: seed, number of the step and limit, as in `draw_update`.
        RULE: the rule.
        RANDOM: whether a mask is drawn; otherwise every cell updates.
    """
    if RANDOM:
        return draw_update(cell, mask[0], mask[1], mask[2]).to(tl.int32) << UPDATE
    elif RULE.first_input > 0:
        return tl.full(cell.shape, TAKES_PART, tl.int32)
    else:
        return tl.zeros(cell.shape, tl.int32)


@triton.jit
def draw_update(cell, seed, step, limit):
    """Decide which cells update (E4).

    Cell n reads word n mod 4 of Philox 4x32-10 at the counter (n div 4, step), two words each,
    and updates when the word's upper 24 bits are below `limit`.

    Args:
        cell: `[CELLS]` int64, number of the cell in the batch.
        seed: int64 scalar, the key.
        step: int64 scalar, number of the step.
        limit: int32 scalar, round(update_rate * 2²⁴).

    Returns:
        `[CELLS]` bool.
    """
    low = (cell >> 2).to(tl.uint32)
    high = (cell >> 34).to(tl.uint32)
    step_low = tl.zeros_like(low) + step.to(tl.uint32)
    step_high = tl.zeros_like(low) + (step >> 32).to(tl.uint32)
    word_0, word_1, word_2, word_3 = _philox(low, high, step_low, step_high, seed)
    number = cell.to(tl.int32) & 3
    first = tl.where(number == 0, word_0, word_1)
    second = tl.where(number == 2, word_2, word_3)
    word = tl.where(number < 2, first, second)
    return (word >> 8).to(tl.int32) < limit
