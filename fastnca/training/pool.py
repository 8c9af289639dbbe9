"""The sample pool: states that survive from one iteration to the next."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.distributed import Processes
from fastnca.training.config import TrainConfig
from fastnca.training.sampling import draw_slots, to_device_async


class SamplePool:
    """A fixed number of states on one device; nothing here waits for that device.

    Args:
        seed_state: `[N, C, H, W]` or `[C, H, W]`; slot i starts as seed `(first + i) % N`.
        size: number of slots, at least 1.
        dtype: floating-point type that states are kept in; the seed's if None.
        first: number of the first slot, where the pool is a shard of a larger one.

    Attributes:
        states: `[size, C, H, W]`.

    Raises:
        ValueError: the seeds are no states, or the size is below 1.
    """

    def __init__(
        self, seed_state: Tensor, size: int, *, dtype: torch.dtype | None = None, first: int = 0
    ) -> None:
        if seed_state.dim() == 3:
            seed_state = seed_state[None]
        if seed_state.dim() != 4 or not len(seed_state):
            raise ValueError(f"seed_state must be [N, C, H, W], got {list(seed_state.shape)}")
        if size < 1:
            raise ValueError(f"a pool needs at least one slot, got {size}")
        self._like = seed_state[:0].detach()
        self._states = self._allocate(size, dtype or seed_state.dtype)
        for number, seed in enumerate(seed_state.detach()):
            self._states[(number - first) % len(seed_state) :: len(seed_state)] = seed

    @property
    def states(self) -> Tensor:
        """The states, `[size, C, H, W]`."""
        return self._states

    def __len__(self) -> int:
        return self._states.shape[0]

    def sample(
        self, count: int, *, replacement: bool = True, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw states at random.

        Args:
            count: number of states B.
            replacement: True may draw a slot more than once.
            generator: CPU generator; torch's default one if None.

        Returns:
            Slot numbers `[B]` int64 on the CPU, and copies of the states `[B, C, H, W]`.

        Raises:
            ValueError: more states than slots are wanted without replacement.
        """
        slots = draw_slots(len(self), count, replacement, generator)
        return slots, self.gather(slots)

    def gather(self, slots: Tensor) -> Tensor:
        """Copy states `[B, C, H, W]`, of the seed's dtype and device, out of `slots` `[B]`."""
        rows = self._states[to_device_async(slots, self._states.device)]
        return rows.to(self._like.dtype)

    def commit(self, slots: Tensor, states: Tensor) -> None:
        """Write states back; of a slot that occurs more than once the last state stays.

        Args:
            slots: `[B]` int64 on the CPU, as `sample` returned them.
            states: `[B, C, H, W]`.
        """
        there = to_device_async(slots, states.device)
        self._write(slots, there, keep_last(there, states.detach()))

    def prefetch(self, slots: Tensor) -> None:
        """Announce the slots of the next `gather`. Does nothing for a pool on the device."""

    def _allocate(self, size: int, dtype: torch.dtype) -> Tensor:
        return self._like.new_empty(size, *self._like.shape[1:], dtype=dtype)

    def _write(self, slots: Tensor, there: Tensor, states: Tensor) -> None:
        """Store `states`, equal where slots are; `there` is `slots` on the states' device."""
        self._states.index_copy_(0, there, states.to(self._states.dtype))


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
            source = to_device_async(same.int().argmax(1), rows.device)
            fresh = to_device_async(same.any(1), rows.device)[:, None, None, None]
            rows = torch.where(fresh, self._pending.states[source].to(rows.dtype), rows)
        self._ahead = slots, rows

    def _allocate(self, size: int, dtype: torch.dtype) -> Tensor:
        shape = size, *self._like.shape[1:]
        return torch.empty(shape, dtype=dtype, pin_memory=self._like.is_cuda)

    def _fetch(self, slots: Tensor) -> Tensor:
        return to_device_async(self._states[slots], self._like.device).to(self._like.dtype)

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


def keep_last(slots: Tensor, states: Tensor) -> Tensor:
    """Give every state the value of the last one with its slot: any order of writes will do.

    Args:
        slots: `[B]` int64, on the states' device.
        states: `[B, C, H, W]`.

    Returns:
        `[B, C, H, W]`, a new tensor.
    """
    numbers = torch.arange(len(slots), device=slots.device)
    last = ((slots[:, None] == slots) * numbers).amax(1)
    return states[last]


def shard_slots(config: TrainConfig, processes: Processes) -> tuple[int, int]:
    """Return the number of the first slot of this process's pool, and how many it has.

    Raises:
        ValueError: the processes are too many for the pool.
    """
    if not config.use_pool:
        return 0, 1
    least = 1 if config.replacement else config.batch_size
    share = config.pool_size // processes.world_size
    if share < least:
        raise ValueError(
            f"a pool of {config.pool_size} states shared out among {processes.world_size} "
            f"processes leaves {share} for one of them, which needs {least}; raise pool_size"
        )
    first, last = processes.shard(config.pool_size)
    return first, last - first
