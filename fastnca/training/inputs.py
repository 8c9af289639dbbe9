"""What a replayed iteration reads: a draw and a learning rate, in memory that stays."""

import torch
from torch import Tensor

from fastnca.training.config import TrainConfig
from fastnca.training.draw import Draw

_ALIGNMENT = 16  # bytes: the fused kernels take no pointer that is less aligned


class Inputs:
    """A draw and a learning rate in device memory that stays where it is.

    Args:
        config: the options.
        device: where.

    Attributes:
        draw: the draw on the device, with the most steps there may be and `count` of them.
        rate: `[]` float32, the learning rate, as Adam keeps it on the device.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        drawn = config.batch_size if config.use_pool else 0
        self._parts: list[tuple[tuple[int, ...], torch.dtype]] = [
            ((), torch.int64),
            ((), torch.int64),
            ((), torch.float32),
            ((drawn,), torch.int64),
            ((config.damage, 2), torch.float32),
            ((config.damage,), torch.float32),
            ((), torch.bool),
        ]
        size = sum(_padded_bytes(*part) for part in self._parts)
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        seed, count, self.rate, slots, centers, radii, spares = self._cut(self._memory)
        self.draw = Draw(slots, centers, radii, spares, config.max_steps - 1, seed, count)

    def fill(self, draw: Draw, rate: float) -> None:
        """Copy a draw and a learning rate to the device, in one copy that nobody waits for.

        What is copied from is new each time; on CUDA torch keeps pinned memory from being handed
        out again before the copies from it are done.
        """
        memory = torch.empty(self._memory.shape, dtype=torch.uint8, pin_memory=self._memory.is_cuda)
        numbers = draw.seed, draw.steps, rate
        tensors = draw.slots, draw.centers, draw.radii, draw.spares
        for part, value in zip(self._cut(memory), (*numbers, *tensors), strict=True):
            part.copy_(value) if isinstance(value, Tensor) else part.fill_(value)
        self._memory.copy_(memory, non_blocking=True)

    def _cut(self, memory: Tensor) -> list[Tensor]:
        """Return the parts of `memory`."""
        parts, first = [], 0
        for shape, dtype in self._parts:
            size = _padded_bytes(shape, dtype)
            numbers = memory[first : first + size].view(dtype)
            parts.append(numbers[: torch.Size(shape).numel()].view(shape))
            first += size
        return parts


def _padded_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of a tensor, rounded up so that the next one is aligned."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
