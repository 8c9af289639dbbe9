"""What a backend is: the call that it is given, what it answers, and the list of all of them."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastnca.backends import _names
from fastnca.backends.autograd import observed
from fastnca.checks import Parameters
from fastnca.masks import Updates
from fastnca.rule import Rule


class RolloutCall(NamedTuple):
    """One rollout, as every backend is given it.

    Attributes:
        state: `[B, C, H, W]`, any strides.
        parameters: what the steps compute with, as `recognition.parameters_of` orders it.
        rule: what a step computes.
        updates: how many steps, and which cells update in each.
        precision: operand precision of the fused kernels, "auto", "fp16", "bf16" or "ieee".
        checkpoint_every: keep every k-th state for the backward pass and compute the others again;
            for backends that keep states.
        single: whether it is one call of the model, for which torch draws the mask; otherwise it
            is a rollout.
    """

    state: Tensor
    parameters: Parameters
    rule: Rule
    updates: Updates
    precision: str = "auto"
    checkpoint_every: int = 1
    single: bool = False


class Backend(Protocol):
    """A way to compute rollouts that gives what `fastnca.reference` gives.

    Attributes:
        name: what users call it.
        devices: types of the devices on which "auto" takes it.
        precisions: operand precisions that only this backend has; asking for one asks for it.
        draws_masks: whether it draws the mask of a single step itself, from a seed; otherwise the
            mask is drawn as the tutorial draws it, and given.
        least_cells: how many cells a single step must have for "auto" to take it.
    """

    name: str
    devices: frozenset[str]
    precisions: frozenset[str]
    draws_masks: bool
    least_cells: int

    def refuses(self, call: RolloutCall) -> list[str]:
        """Say why it cannot compute `call`, one sentence each; empty if it can.

        What a rule has and the backend has not is named by its field. The model has been
        recognised, and the state is a tensor with values, on the device of its parameters.
        """

    def run(self, call: RolloutCall) -> Tensor:
        """Compute the last state, `[B, C, H, W]`, as one autograd node; at least one step.

        Raises:
            OutOfRangeError: a value left the range in which it is exact; the reference is asked.
        """


BACKENDS: dict[str, Backend] = {}
"""The registered backends by name, the fastest first."""


def register(backend: Backend) -> None:
    """Add a backend, as slower than those that are registered already."""
    BACKENDS[backend.name] = backend
    if backend.name not in _names:
        _names.insert(2, backend.name)  # after "auto" and "reference", the slower ones first


class ExactBackend(ABC):
    """What the backends have in common that compute in the state's own dtype."""

    name: str
    precisions: frozenset[str] = frozenset()
    draws_masks = False
    least_cells = 0

    def run(self, call: RolloutCall) -> Tensor:
        """Compute a rollout; as one operator where torch looks at what is computed."""
        if observed((call.state, *call.parameters)):
            from fastnca.backends.operators import record

            return record(call, self.name)
        return self.compute(call)

    @abstractmethod
    def compute(self, call: RolloutCall) -> Tensor:
        """Compute a rollout that nothing of torch looks at; see `Backend.run`."""


def precision_reasons(precision: str) -> list[str]:
    """List what keeps a backend without operand precisions from one."""
    if precision in ("fp16", "bf16"):
        return [f"precision='{precision}' exists only in the fused kernels"]
    return []


def exact_reasons(call: RolloutCall) -> list[str]:
    """List what keeps a call from the backends that compute in the state's own dtype."""
    if call.single and torch.compiler.is_compiling():
        return ["torch.compile traces the reference operators of a single step"]
    state = call.state
    reasons = []
    if call.precision not in ("auto", "ieee"):
        reasons += precision_reasons(call.precision)
    if state.dtype not in (torch.float32, torch.float64):
        reasons.append(f"states must be float32 or float64, got {state.dtype}")
    if torch.is_autocast_enabled(state.device.type):
        reasons.append("autocast is on, and its rounding is that of the reference operators")
    return reasons
