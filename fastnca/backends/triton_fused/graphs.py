"""Rollouts replayed as CUDA graphs: one capture for many step counts, each in its own workspace.

A step of a small grid takes the device less time than its launch takes the host. So the step
launches of a rollout are captured once, for more steps than are needed: each compares its own
number with the number of steps in device memory and returns at once when the rollout has ended.
Seed, first step and step count may then change from replay to replay. Packing the weights, the
first and the last kernel are launched as always, so no tensor of the caller's is copied.

A graph writes where it was captured to write. That memory, a workspace, belongs to one rollout
until nothing holds the states any more that autograd saved: `Workspace.acquire` returns tensors
with storages of their own, whose lifetime tells whether somebody, also through hooks on saved
tensors, can still read them. A rollout that finds no free workspace is launched step by step.

`FASTNCA_GRAPHS=0` in the environment switches this off, `release_graphs` frees the memory.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.dlpack import from_dlpack

from fastnca import cuda_graphs
from fastnca.backends.triton_fused.buffers import (
    BackwardBuffers,
    SavedStates,
    allocate_backward,
    allocate_states,
    allocate_weights,
)
from fastnca.backends.triton_fused.loops import launch_backward, launch_forward
from fastnca.backends.triton_fused.settings import RolloutSettings, kernel_rule
from fastnca.checks import Parameters
from fastnca.cuda_graphs import Launches, Record
from fastnca.kernels import padded_channels

MIN_STEPS = 8
"""A rollout of fewer steps is launched."""

MAX_CELLS = 1 << 17
"""With more cells a step takes the device longer than its launch takes the host."""

ROUND_STEPS = 32
"""Captures are as long as the next multiple of this; 65 to 96 steps share one."""

MAX_BYTES = 1 << 30
"""Of all workspaces together, on all devices."""

MAX_SAME_KIND = 2
"""Workspaces of one kind: rollouts that wait for their backward pass at the same time."""

MAX_SEEN = 64
"""Kinds of rollouts that are remembered."""

_log = logging.getLogger("fastnca")


class Recorded:
    """Launches that run as they are at first, and are replayed from then on.

    Args:
        launches: the launches, the same each time.
        record: captures them.
        device: where they run.
    """

    def __init__(self, launches: Launches, record: Record, device: torch.device) -> None:
        self._launches, self._record, self._device = launches, record, device
        self._run: Launches | None = None

    def __call__(self) -> None:
        """Run the launches."""
        if self._run is not None:
            self._run()
            return
        self._launches()
        try:
            self._run = self._record(self._launches, self._device)
        except RuntimeError as error:
            self._run = self._launches
            _log.warning("rollouts are launched step by step, their capture failed: %s", error)


class Workspace:
    """The memory of one rollout at a time, and its captured launches.

    Args:
        state: `[B, C, H, W]`, of the rollouts' shape and device.
        parameters: weights and biases of the two 1x1 convolutions.
        settings: of the rollouts, with as many steps as are captured.
        record: captures launches.

    Attributes:
        settings: see above.
        forward: launches every step.
    """

    def __init__(
        self, state: Tensor, parameters: Parameters, settings: RolloutSettings, record: Record
    ) -> None:
        self.settings = settings
        self._record, self._device = record, state.device
        states, flags = allocate_states(state, settings)
        counter = torch.zeros(3, dtype=torch.int64, device=state.device)
        weights = allocate_weights(state.shape[1], parameters, settings)
        # the launches hold the memory, not this object, which a cycle would keep
        self._saved = saved = SavedStates(states, flags.zero_(), counter, weights)
        self._buffers: BackwardBuffers | None = None
        self._backward: Recorded | None = None
        self._acquired: list[StorageWeakRef] = []
        self.forward = Recorded(lambda: launch_forward(saved, settings), record, state.device)

    @property
    def address(self) -> int:
        """Address of the states."""
        return self._saved.states.data_ptr()

    @property
    def bytes(self) -> int:
        """Bytes of device memory."""
        tensors = [self._saved.states, self._saved.flags, self._saved.weights.packed]
        if self._buffers is not None:
            tensors += self._buffers.tensors
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def in_use(self) -> bool:
        """Whether somebody can still read what `acquire` returned last."""
        return any(not storage.expired() for storage in self._acquired)

    def acquire(self) -> SavedStates:
        """Return the memory, as tensors whose storages live as long as they are used."""
        states, flags, counter, packed = tensors = [from_dlpack(t) for t in self._saved.tensors]
        self._acquired = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return SavedStates(states, flags, counter, replace(self._saved.weights, packed=packed))

    def buffers(self) -> BackwardBuffers:
        """Return the buffers of the backward pass."""
        if self._buffers is None:
            self._buffers = allocate_backward(self._saved)
        return self._buffers

    def backward(self) -> None:
        """Launch the derivative of every step."""
        if self._backward is None:
            saved, buffers, settings = self._saved, self.buffers(), self.settings
            self._backward = Recorded(
                lambda: launch_backward(saved, buffers, settings), self._record, self._device
            )
        self._backward()


class Graphs:
    """All workspaces of the process, the least recently used first.

    Args:
        record: captures launches.
        device_type: type of the devices whose rollouts are captured.
    """

    def __init__(self, record: Record = cuda_graphs.record_cuda, device_type: str = "cuda") -> None:
        self._record, self._device_type = record, device_type
        self._lock = threading.Lock()
        self._workspaces: OrderedDict[int, tuple[Hashable, Workspace]] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def acquire(
        self, state: Tensor, parameters: Parameters, settings: RolloutSettings
    ) -> tuple[Workspace, SavedStates] | None:
        """Find or make a workspace for a rollout.

        The first rollout of a kind is launched step by step, which compiles its kernels. The
        second one makes a workspace.

        Args:
            state: `[B, C, H, W]`, the first state.
            parameters: weights and biases of the two 1x1 convolutions.
            settings: of the rollout.

        Returns:
            The workspace and its memory; None if the rollout must be launched.
        """
        if not self._supports(state, settings):
            return None
        stream = torch.cuda.current_stream(state.device).cuda_stream if state.is_cuda else 0
        kind = (
            state.device,
            stream,
            state.shape,
            parameters[1].shape[0],
            settings.rule.json,
            settings.limit,
            settings.random,
            settings.precision,
            settings.keep,
        )
        with self._lock:
            workspace = self._find_free(kind, settings.steps)
            if workspace is None:
                workspace = self._make(kind, state, parameters, settings)
            if workspace is None:
                return None
            self._workspaces.move_to_end(workspace.address)
            return workspace, workspace.acquire()

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
            self._seen.clear()

    def _supports(self, state: Tensor, settings: RolloutSettings) -> bool:
        """Return whether a rollout is of a kind that gains by a graph."""
        batch, _, height, width = state.shape
        return (
            settings.steps >= MIN_STEPS
            and state.device.type == self._device_type
            and settings.checkpoint_every == 1
            and 0 < batch * height * width <= MAX_CELLS
            and cuda_graphs.graphs_wanted()
            and not cuda_graphs.is_capturing(state)
        )

    def _same_kind(self, kind: Hashable) -> list[Workspace]:
        return [workspace for found, workspace in self._workspaces.values() if found == kind]

    def _find_free(self, kind: Hashable, steps: int) -> Workspace | None:
        """Return the shortest free workspace of a kind that is long enough, and not far longer."""
        free = [
            workspace
            for workspace in self._same_kind(kind)
            if 0 <= workspace.settings.steps - steps <= ROUND_STEPS and not workspace.in_use
        ]
        return min(free, key=lambda workspace: workspace.settings.steps, default=None)

    def _make(
        self, kind: Hashable, state: Tensor, parameters: Parameters, settings: RolloutSettings
    ) -> Workspace | None:
        """Make a workspace, if the kind has been seen before and there is room."""
        steps = -(-settings.steps // ROUND_STEPS) * ROUND_STEPS
        if (kind, steps) not in self._seen:
            self._seen[kind, steps] = None
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
            return None
        same_kind = self._same_kind(kind)
        if len(same_kind) >= MAX_SAME_KIND and all(each.in_use for each in same_kind):
            return None
        settings = replace(settings, steps=steps)
        cell_bytes = 4 * padded_channels(state.shape[1])
        planes = len(kernel_rule(settings.rule, state.shape[1]).planes)
        slots = settings.slots + 2 + 2 * planes  # about what a backward pass needs with 16 bits
        if not self._make_room(slots * state[:, 0].numel() * cell_bytes):
            return None
        try:
            workspace = Workspace(state, parameters, settings, self._record)
        except torch.OutOfMemoryError:
            return None
        self._workspaces[workspace.address] = (kind, workspace)
        return workspace

    def _make_room(self, needed: int) -> bool:
        """Drop the least recently used free workspaces until `needed` more bytes fit."""
        total = needed + sum(workspace.bytes for _, workspace in self._workspaces.values())
        for address, (_, workspace) in list(self._workspaces.items()):
            if total <= MAX_BYTES:
                break
            if not workspace.in_use:
                del self._workspaces[address]
                total -= workspace.bytes
        return total <= MAX_BYTES


GRAPHS = Graphs()
