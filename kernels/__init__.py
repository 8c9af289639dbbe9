"""Fused Triton kernels; imported as `fastnca.kernels`."""
