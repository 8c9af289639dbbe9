"""Rollouts on the fused Triton kernels, as one autograd node.

    support.py     every reason why the fused path cannot run
    operators.py   the torch operators and their fake implementations
    autograd.py    the autograd node
    rollout.py     the loops over steps, forward and backward

Importing this package needs neither Triton nor a GPU; Triton is imported by the first rollout.
"""

from fastnca.fused.autograd import fused_rollout
from fastnca.fused.support import fused_reasons

__all__ = ["fused_reasons", "fused_rollout"]
