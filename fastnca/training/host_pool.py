"""A pool in host memory, for more states than the device has room for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.training.pool import SamplePool, send


@dataclass(frozen=True)
class _Commit:
    """States on their way from the device to the pool."""

    slots: Tensor  # [B] on the CPU
    there: Tensor  # [B], the same on the device
    states: Tensor  # [B, C, H, W] on the device, as the pool will hold them
    arriving: Tensor  # the same in host memory, complete when `arrived` has happened
    arrived: torch.cuda.Event | None


class HostPool(SamplePool):
    """A pool whose states lie in host memory, pinned where the device is a CUDA GPU.

    States travel while the device computes. The rows of the next batch leave before those of the
    last one have arrived (`prefetch`); where both have a slot in common, the row comes from the
    last batch on the device, so the results are those of `SamplePool`, bit for bit.
    """

    _pending: _Commit | None = None
    _ahead: tuple[Tensor, Tensor] | None = None

    @property
    def states(self) -> Tensor:
        """The states, `[size, C, H, W]` on the CPU; waits for the last commit."""
        self._land()
        self._ahead = None  # the caller may write
        return self._states

    def gather(self, slots: Tensor) -> Tensor:
        """Copy states to the device, or return those that were fetched ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and torch.equal(ahead[0], slots):
            return ahead[1]
        self._land()
        return self._fetch(slots)

    def prefetch(self, slots: Tensor) -> None:
        """Fetch the rows of the next `gather` before the last `commit` has arrived."""
        rows = self._fetch(slots)
        if self._pending is not None:
            same = slots[:, None] == self._pending.slots
            source = send(same.int().argmax(1), rows.device)
            fresh = send(same.any(1), rows.device)[:, None, None, None]
            rows = torch.where(fresh, self._pending.states[source].to(rows.dtype), rows)
        self._ahead = slots, rows

    def _allocate(self, size: int, dtype: torch.dtype) -> Tensor:
        pinned = self._like.is_cuda
        states = torch.empty(size, *self._like.shape, dtype=dtype, pin_memory=pinned)
        return states.copy_(self._like.to("cpu", dtype))

    def _fetch(self, slots: Tensor) -> Tensor:
        return send(self._states[slots], self._like.device).to(self._like.dtype)

    def _write(self, slots: Tensor, there: Tensor, states: Tensor) -> None:
        self._land()
        states = states.to(self._states.dtype)
        arriving, arrived = states, None
        if states.is_cuda:
            arriving = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
            arriving.copy_(states, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending = _Commit(slots, there, states, arriving, arrived)

    def _land(self) -> None:
        """Put the last commit into the pool."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.arrived is not None:
            pending.arrived.synchronize()
        self._states.index_copy_(0, pending.slots, pending.arriving)
