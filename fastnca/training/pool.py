"""The sample pool: states that survive from one iteration to the next."""

import torch
from torch import Tensor


class SamplePool:
    """A fixed number of states on one device.

    Args:
        seed: `[1, C, H, W]` or `[C, H, W]`, the state that every slot starts with.
        size: number of slots, at least 1.

    Attributes:
        states: `[size, C, H, W]`.

    Raises:
        ValueError: the seed is not one state, or the size is below 1.
    """

    def __init__(self, seed: Tensor, size: int) -> None:
        if seed.dim() == 4 and seed.shape[0] == 1:
            seed = seed[0]
        if seed.dim() != 3:
            raise ValueError(f"seed must be one state [C, H, W], got {list(seed.shape)}")
        if size < 1:
            raise ValueError(f"a pool needs at least one slot, got {size}")
        self.states = seed.detach().repeat(size, 1, 1, 1)

    def __len__(self) -> int:
        return self.states.shape[0]

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
        if replacement:
            slots = torch.randint(0, len(self), (count,), generator=generator)
        elif count <= len(self):
            slots = torch.randperm(len(self), generator=generator)[:count]
        else:
            raise ValueError(f"cannot draw {count} of {len(self)} states without replacement")
        return slots, self.states[slots.to(self.states.device)]

    def commit(self, slots: Tensor, states: Tensor) -> None:
        """Write states back; of a slot that occurs more than once the last state stays.

        Args:
            slots: `[B]` int64, as `sample` returned them.
            states: `[B, C, H, W]`.
        """
        for slot, state in zip(slots.tolist(), states.detach(), strict=True):
            self.states[slot] = state
