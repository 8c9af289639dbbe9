"""The sample pool: states that survive from one iteration to the next."""

import torch
from torch import Tensor

from fastnca.training.draw import draw_slots


class SamplePool:
    """A fixed number of states on one device; nothing here waits for that device.

    Args:
        seed: `[1, C, H, W]` or `[C, H, W]`, the state that every slot starts with.
        size: number of slots, at least 1.
        dtype: floating-point type that states are kept in; the seed's if None.

    Attributes:
        states: `[size, C, H, W]`.

    Raises:
        ValueError: the seed is not one state, or the size is below 1.
    """

    def __init__(self, seed: Tensor, size: int, *, dtype: torch.dtype | None = None) -> None:
        if seed.dim() == 4 and seed.shape[0] == 1:
            seed = seed[0]
        if seed.dim() != 3:
            raise ValueError(f"seed must be one state [C, H, W], got {list(seed.shape)}")
        if size < 1:
            raise ValueError(f"a pool needs at least one slot, got {size}")
        self._like = seed.detach()
        self._states = self._allocate(size, dtype or seed.dtype)

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
        rows = self._states[send(slots, self._states.device)]
        return rows.to(self._like.dtype)

    def commit(self, slots: Tensor, states: Tensor) -> None:
        """Write states back; of a slot that occurs more than once the last state stays.

        Args:
            slots: `[B]` int64 on the CPU, as `sample` returned them.
            states: `[B, C, H, W]`.
        """
        there = send(slots, states.device)
        self._write(slots, there, keep_last(there, states.detach()))

    def prefetch(self, slots: Tensor) -> None:
        """Hear which slots the next `gather` will ask for; a pool on the device has them."""

    def _allocate(self, size: int, dtype: torch.dtype) -> Tensor:
        return self._like.to(dtype).repeat(size, 1, 1, 1)

    def _write(self, slots: Tensor, there: Tensor, states: Tensor) -> None:
        """Store `states`, equal where slots are; `there` is `slots` on the states' device."""
        self._states.index_copy_(0, there, states.to(self._states.dtype))


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


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to a device without waiting for it; one that is there stays."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
