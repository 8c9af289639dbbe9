"""Rollouts replayed as CUDA graphs: one capture for many step counts, in workspaces of their own.

A step of a small grid takes the device less time than its launch takes the host. So the launches
of a rollout are captured once, for more steps than are needed: every launch compares its own
number with the number of steps in device memory and returns at once when the rollout has ended.
Seed, first step and step count may then change from replay to replay. Packing the weights, the
first and the last kernel are launched as always, so no tensor of the caller's is copied.

A graph writes where it was captured to write. Its memory, a workspace, belongs to one rollout
until nothing holds the states any more that autograd saved: `lease` hands them out as tensors
with storages of their own, whose lifetime says whether somebody, also through hooks on saved
tensors, can still read them. A rollout that finds no free workspace is launched step by step.

`FASTNCA_GRAPHS=0` in the environment switches this off, `release_graphs` frees the memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor

from fastnca.backends.triton_fused.capture import Record, graphs_wanted, record_cuda
from fastnca.backends.triton_fused.plan import Plan
from fastnca.backends.triton_fused.storage import Stored
from fastnca.backends.triton_fused.workspace import Workspace
from fastnca.checks import Parameters
from fastnca.kernels import padded_channels

FEWEST_STEPS = 8
"""A rollout of fewer steps is launched."""

MOST_CELLS = 1 << 17
"""With more cells a step takes the device longer than its launch takes the host."""

ROUND_STEPS = 32
"""Captures are as long as the next multiple of this; 65 to 96 steps share one."""

MOST_BYTES = 1 << 30
"""Of all workspaces together, on all devices."""

SLOTS_CARRIED = 4
"""What a backward pass carries takes about as much memory as this many stored states."""

MOST_ALIKE = 2
"""Workspaces of one kind: rollouts that wait for their backward pass at the same time."""


class Graphs:
    """All workspaces of the process, the least recently used first.

    Args:
        record: how launches are captured.
        device_type: the type of the devices that it works on.
    """

    def __init__(self, record: Record = record_cuda, device_type: str = "cuda") -> None:
        self._record, self._device_type = record, device_type
        self._lock = threading.Lock()
        self._workspaces: OrderedDict[int, tuple[Hashable, Workspace]] = OrderedDict()
        self._met: OrderedDict[Hashable, None] = OrderedDict()

    def acquire(
        self, state: Tensor, parameters: Parameters, plan: Plan
    ) -> tuple[Workspace, Stored] | None:
        """Find or make a workspace for a rollout.

        A kind of rollout is launched step by step when it is met for the first time, which
        compiles its kernels; a workspace is made when it comes again.

        Args:
            state: `[B, C, H, W]`, the first state.
            parameters: weights and biases of the two 1x1 convolutions.
            plan: the rollout.

        Returns:
            The workspace and what it handed out; None if the rollout must be launched.
        """
        if not self._suits(state, plan):
            return None
        stream = torch.cuda.current_stream(state.device).cuda_stream if state.is_cuda else 0
        hidden = parameters[1].shape[0]
        kind = (state.device, stream, state.shape, hidden, plan.precision, plan.rule, plan.keep)
        with self._lock:
            workspace = self._free(kind, plan.steps)
            if workspace is None:
                workspace = self._make(kind, state, parameters, plan)
            if workspace is None:
                return None
            self._workspaces.move_to_end(workspace.address)
            return workspace, workspace.lease()

    def find(self, states: Tensor) -> Workspace | None:
        """Return the workspace whose memory `states` is."""
        if not self._workspaces:
            return None
        with self._lock:
            _, workspace = self._workspaces.get(states.data_ptr(), (None, None))
            return workspace

    def release(self) -> None:
        """Forget all workspaces; their memory is freed when no rollout holds it any more."""
        with self._lock:
            self._workspaces.clear()
            self._met.clear()

    def _suits(self, state: Tensor, plan: Plan) -> bool:
        """Tell whether a rollout is of a kind that gains by a graph."""
        batch, _, height, width = state.shape
        return (
            plan.steps >= FEWEST_STEPS
            and state.device.type == self._device_type
            and plan.checkpoint_every == 1
            and 0 < batch * height * width <= MOST_CELLS
            and graphs_wanted()
            and not (state.is_cuda and torch.cuda.is_current_stream_capturing())
        )

    def _free(self, kind: Hashable, steps: int) -> Workspace | None:
        """Return the shortest free workspace of a kind that is long enough, and not far longer."""
        fits = [
            workspace
            for found, workspace in self._workspaces.values()
            if found == kind and 0 <= workspace.plan.steps - steps <= ROUND_STEPS
        ]
        free = [workspace for workspace in fits if not workspace.busy]
        return min(free, key=lambda workspace: workspace.plan.steps, default=None)

    def _make(
        self, kind: Hashable, state: Tensor, parameters: Parameters, plan: Plan
    ) -> Workspace | None:
        """Make a workspace, if the kind has been met before and there is room."""
        steps = -(-plan.steps // ROUND_STEPS) * ROUND_STEPS
        if (kind, steps) not in self._met:
            self._met[kind, steps] = None
            if len(self._met) > 64:
                self._met.popitem(last=False)
            return None
        alike = [w for found, w in self._workspaces.values() if found == kind]
        if len(alike) >= MOST_ALIKE and all(workspace.busy for workspace in alike):
            return None
        plan = Plan(steps, plan.precision, plan.rule, 1, plan.keep)
        cell_bytes = 4 * padded_channels(state.shape[1])
        if not self._make_room((plan.slots + SLOTS_CARRIED) * state[:, 0].numel() * cell_bytes):
            return None
        try:
            workspace = Workspace(state, parameters, plan, self._record)
        except torch.OutOfMemoryError:
            return None
        self._workspaces[workspace.address] = (kind, workspace)
        return workspace

    def _make_room(self, needed: int) -> bool:
        """Drop the least recently used free workspaces until `needed` more bytes fit."""
        total = needed + sum(workspace.bytes for _, workspace in self._workspaces.values())
        for address, (_, workspace) in list(self._workspaces.items()):
            if total <= MOST_BYTES:
                break
            if not workspace.busy:
                del self._workspaces[address]
                total -= workspace.bytes
        return total <= MOST_BYTES


GRAPHS = Graphs()
