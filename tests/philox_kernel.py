"""Triton kernels that print what Triton's own generator draws."""

import triton
import triton.language as tl


@triton.jit
def philox_kernel(words_ptr, seed, step, COUNT: tl.constexpr):
    """Store the four words of counters (0..COUNT-1, 0, step, 0), one word per row."""
    quad = tl.arange(0, COUNT)
    zero = quad * 0
    w0, w1, w2, w3 = tl.philox(seed, quad, zero, zero + step, zero)
    tl.store(words_ptr + quad, w0)
    tl.store(words_ptr + COUNT + quad, w1)
    tl.store(words_ptr + 2 * COUNT + quad, w2)
    tl.store(words_ptr + 3 * COUNT + quad, w3)


@triton.jit
def rand_kernel(uniform_ptr, seed, COUNT: tl.constexpr):
    """Store `tl.rand(seed, 0..COUNT-1)`."""
    offset = tl.arange(0, COUNT)
    tl.store(uniform_ptr + offset, tl.rand(seed, offset))
