"""Rollouts on the fused Triton kernels, as one autograd node.

    support.py     every reason why the fused path cannot run
    checks.py      those reasons, and shapes, before a launch
    plan.py        steps, precision and slots of a rollout
    storage.py     what a rollout keeps on the device
    rollout.py     the loops over steps, forward and backward
    capture.py     how launches become a CUDA graph
    workspace.py   the memory of a rollout, and those loops captured in it as CUDA graphs
    graphs.py      which workspace a rollout gets
    eager.py       the autograd node that launches kernels
    single.py      the same for a single step, whose host cost counts
    operators.py   the torch operators and their fake implementations
    experimental.py  all steps in one launch; only its test and its timing call it
    autograd.py    the autograd node of the operators, and the choice between the two

Importing this package needs neither Triton nor a GPU; Triton is imported by the first rollout.
"""

from fastnca.backends.triton_fused.autograd import fused_rollout, release_graphs
from fastnca.backends.triton_fused.support import fused_reasons

__all__ = ["fused_reasons", "fused_rollout", "release_graphs"]
