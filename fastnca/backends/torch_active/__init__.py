"""The `torch` backend: exact rollouts that evaluate the network on active cells only.

    grid.py       states as padded rows, planes of flags, 3x3 dilation
    network.py    gather with Sobel, the MLP, and their transposes, on a list of cells
    forward.py    steps forward, keeping what each step overwrote
    backward.py   steps backward, undoing and differentiating
    rollout.py    the autograd node

Which cells are active. Let D be the 3x3 dilation and pre = D(alpha > 0.1). A cell outside pre
ends the step at zero, but its updated alpha can keep a neighbour in pre alive; so the forward
pass evaluates the network where mask AND D(pre). No gradient flows through the alive tests, so
the backward pass needs only mask AND pre AND post, where post = D(updated alpha > 0.1).

What is kept for the backward pass: of each step, which cells it overwrote and their old values,
and one flag per cell that says whether it was alive afterwards. Everything else is recomputed.
"""

from torch import Tensor

from fastnca.backends.base import ExactBackend, RolloutCall, exact_reasons
from fastnca.backends.torch_active.rollout import active_rollout

__all__ = ["TorchActive", "active_rollout"]


class TorchActive(ExactBackend):
    """The `torch` backend."""

    name = "torch"
    devices = frozenset(("cpu", "mps", "xpu"))
    least_cells = 2048
    """Below this many cells a single step costs less with the reference operators than the search
    for active cells does (`python -m bench run` measures it)."""

    def refuses(self, call: RolloutCall) -> list[str]:
        """See `fastnca.backends.base.Backend`."""
        return exact_reasons(call)

    def compute(self, call: RolloutCall) -> Tensor:
        """See `fastnca.backends.base.Backend.run`."""
        updates = call.updates.on_host()
        return active_rollout(call.state, call.parameters, updates.masks(call.state), call.rule)
