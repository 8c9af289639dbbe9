"""Device functions for the power of two that gradients are multiplied by for fp16 operands.

Powers of two are handled by their exponent field, 127 above the exponent, so nothing is rounded.
"""

import triton
import triton.language as tl

HEADROOM = tl.constexpr(4)
"""The largest incoming gradient is scaled to [2⁴, 2⁵) for fp16 operands: a gradient may grow
2¹¹ times on its way back before it overflows, and shrink 2¹⁸ times before it loses bits."""

LARGEST = tl.constexpr(253)
"""Exponent field of the largest scale: its inverse is still a normal number."""

SMALLEST = tl.constexpr(HEADROOM.value)
"""Exponent field of the smallest scale for a gradient that is finite."""


@triton.jit
def scale_exponent(largest):
    """Return the exponent field of the power of two that brings `largest` to [2⁴, 2⁵)."""
    exponent = (largest.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >> 23
    return tl.minimum(tl.maximum(2 * 127 - exponent + HEADROOM, 1), LARGEST)


@triton.jit
def power_of_two(exponent):
    """Return the number with an exponent field; zero, and not less, from 0 downwards."""
    return (tl.maximum(exponent, 0) << 23).to(tl.float32, bitcast=True)
