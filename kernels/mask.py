"""Device function for the update mask, bit for bit the mask of `fastnca.update_mask`."""

import triton
import triton.language as tl


@triton.jit
def draw_update(cell, seed, step, limit):
    """Decide which cells update (equation 4).

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
    word_0, word_1, word_2, word_3 = tl.philox(seed, low, high, step_low, step_high)
    number = cell.to(tl.int32) & 3
    first = tl.where(number == 0, word_0, word_1)
    second = tl.where(number == 2, word_2, word_3)
    word = tl.where(number < 2, first, second)
    return (word >> 8).to(tl.int32) < limit
