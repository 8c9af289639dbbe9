"""How much memory a run needs, and whether it is there."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fastnca.backends.choose import choose_backend
from fastnca.module import NeuralCA

_FLOAT = 4  # bytes of float32, in which the fused kernels keep states
_COPIES = 8  # of a batch, that live beside a rollout: drawn, reseeded, sorted, on their way back


_NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed")  # torch, on a CPU


class MemoryLimitError(MemoryError):
    """A run does not fit the memory; the message says how much is needed where, and what to do."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a trainer needs, beyond the process and the libraries it has loaded.

    Attributes:
        pool: the pool of this process.
        rollout: upper bound of what the longest rollout keeps for the backward pass.
        batch: copies of the batch, and the model with its optimiser.
        host: whether the pool lies in host memory instead of the device's.
        device: where the rest lies.
    """

    pool: int
    rollout: int
    batch: int
    host: bool
    device: torch.device

    @property
    def total(self) -> int:
        """All bytes, wherever they lie."""
        return self.pool + self.rollout + self.batch

    @classmethod
    def of(
        cls,
        model: NeuralCA,
        seed_state: Tensor,
        slots: int,
        *,
        batch_size: int,
        steps: int,
        update_rate: float = 0.5,
        micro_batches: int = 1,
        checkpoint_every: int = 1,
        half_pool: bool = False,
        pool_memory: str = "auto",
    ) -> Self:
        """Estimate the memory of a trainer, and choose where its pool lies.

        Args:
            model: the model.
            seed_state: `[N, C, H, W]`.
            slots: slots of this process's pool.
            batch_size: states of an iteration.
            steps: of the longest rollout.
            update_rate: as in `NeuralCA.run_steps`.
            micro_batches: parts of a batch that are rolled out one after the other.
            checkpoint_every: as in `NeuralCA.run_steps`.
            half_pool: whether the pool is kept in float16.
            pool_memory: "auto", "device" or "host".

        Raises:
            MemoryLimitError: the pool fits neither the device nor the host.
        """
        device, state = seed_state.device, seed_state[0].numel()
        pool = slots * state * (2 if half_pool else seed_state.itemsize)
        together = math.ceil(batch_size / micro_batches)
        rollout = together * _rollout(model, seed_state, steps, update_rate, checkpoint_every)
        weights = sum(p.numel() * p.itemsize for p in model.parameters())
        batch = _COPIES * batch_size * state * seed_state.itemsize + 8 * weights
        host = pool_memory == "host"
        needed = rollout + batch + (0 if host else pool)
        free = free_memory(device)
        if pool_memory == "auto" and device.type == "cuda" and needed > free:
            host = True
            needed = rollout + batch
        estimate = cls(pool, rollout, batch, host, device)
        if needed > free:
            raise MemoryLimitError(
                f"training needs {describe(needed)} on {device} ({estimate}) and {describe(free)} "
                "are free; lower pool_size, batch_size or size, keep the pool in half precision "
                "(half_pool), cut the batch (micro_batches) or raise checkpoint_every"
            )
        if host and pool > (free := free_memory(torch.device("cpu"))):
            raise MemoryLimitError(
                f"the pool needs {describe(pool)} and the host has {describe(free)} free; lower "
                "pool_size, or keep the pool in half precision (half_pool)"
            )
        return estimate

    def __str__(self) -> str:
        where = "host" if self.host else str(self.device)
        return (
            f"pool {describe(self.pool)} on {where}, rollout up to {describe(self.rollout)}, "
            f"batch and model {describe(self.batch)}"
        )


def _rollout(
    model: NeuralCA, seed_state: Tensor, steps: int, update_rate: float, checkpoint_every: int
) -> int:
    """Return an upper bound of the bytes that a rollout of one state keeps."""
    channels, cells = seed_state.shape[1], seed_state[0, 0].numel()
    backend = "reference"  # of a plain class that has the reference's interface
    if isinstance(model, NeuralCA):
        backend = choose_backend(model, model.backend, model.precision, seed_state)
    size = seed_state.itemsize
    if backend == "triton":  # the one backend that keeps whole states, and can leave some out
        every = checkpoint_every
        kept = steps if every == 1 else every
        starts = 2 if every == 1 else math.ceil(steps / every) + 3
        return cells * max(16, 1 << (channels - 1).bit_length()) * _FLOAT * (kept + starts)
    if backend in ("torch", "cpp"):
        # a step keeps the rows that it overwrites, their numbers, and a flag per cell
        step = math.ceil(update_rate * (channels * size + 8)) + 1
        return cells * (step * steps + 2 * channels * size)
    # autograd keeps the perception, hidden layers before and after ReLU, the state, the masks
    weights = [each for each in model.update_net.parameters() if each.dim() == 4]
    hidden = sum(each.shape[0] for each in weights[:-1])
    step = (weights[0].shape[1] + 2 * hidden + 4 * channels) * size
    return cells * (step * steps + 2 * channels * size)


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still allocate on a device; 2⁶² if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return 2**62
    free = 2**62
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        if limit != "max":
            free = min(free, int(limit) - used)
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limit
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def describe(size: int) -> str:
    """Write a number of bytes with three digits and its unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1024:.3g} KiB"
