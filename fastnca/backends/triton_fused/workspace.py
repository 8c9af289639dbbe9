"""The memory of one rollout at a time, and the launches that are captured in it."""

import logging

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.dlpack import from_dlpack

from fastnca.backends.triton_fused.capture import Launches, Record
from fastnca.backends.triton_fused.plan import Plan
from fastnca.backends.triton_fused.rollout import launch_backward, launch_forward
from fastnca.backends.triton_fused.storage import (
    Carried,
    Stored,
    allocate_carried,
    allocate_states,
    allocate_weights,
)
from fastnca.checks import Parameters
from fastnca.kernels import Weights

_log = logging.getLogger("fastnca")


class Recorded:
    """Launches that run as they are at first, and are replayed from then on.

    Args:
        launches: the launches, the same each time.
        record: how they are captured.
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
        plan: as many steps as are captured.
        record: how launches are captured.

    Attributes:
        plan: see above.
    """

    def __init__(self, state: Tensor, parameters: Parameters, plan: Plan, record: Record) -> None:
        self.plan = plan
        self._record, self._device = record, state.device
        states, flags = allocate_states(state, plan.slots)
        counter = torch.zeros(3, dtype=torch.int64, device=state.device)
        weights = allocate_weights(parameters, plan.precision)
        # the launches hold the memory, not this object, which a cycle would keep
        self._stored = stored = Stored(states, flags.zero_(), counter, weights)
        self._carried: Carried | None = None
        self._backward: Recorded | None = None
        self._leased: list[StorageWeakRef] = []
        self.forward = Recorded(lambda: launch_forward(stored, plan), record, state.device)

    @property
    def address(self) -> int:
        """Address of the states."""
        return self._stored.states.data_ptr()

    @property
    def bytes(self) -> int:
        """Bytes of device memory."""
        tensors = [self._stored.states, self._stored.flags, self._stored.weights.packed]
        if self._carried is not None:
            tensors += vars(self._carried).values()
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def busy(self) -> bool:
        """Whether somebody can still read what the last lease handed out."""
        return any(not storage.expired() for storage in self._leased)

    def lease(self) -> Stored:
        """Hand out the memory, as tensors whose storages live as long as they are used."""
        stored = self._stored
        tensors = (stored.states, stored.flags, stored.counter, stored.weights.packed)
        states, flags, counter, packed = (from_dlpack(tensor) for tensor in tensors)
        self._leased = [
            StorageWeakRef(tensor.untyped_storage()) for tensor in (states, flags, counter, packed)
        ]
        weights = Weights(packed, stored.weights.channels, stored.weights.hidden)
        return Stored(states, flags, counter, weights)

    def carried(self) -> Carried:
        """Return what the backward pass carries from step to step."""
        if self._carried is None:
            self._carried = allocate_carried(self._stored)
        return self._carried

    def backward(self) -> None:
        """Launch the derivative of every step."""
        if self._backward is None:
            stored, carried, plan = self._stored, self.carried(), self.plan
            self._backward = Recorded(
                lambda: launch_backward(stored, carried, plan),
                self._record,
                self._device,
            )
        self._backward()
