"""The processes that train one model together, as `torchrun` starts them."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

_MAX_TIMEOUT = 1e9  # seconds that torch can count
_LOCAL = ("127.0.0.1", "localhost", "::1")


class Processes:
    """This process among those that train together; alone, it needs no process group.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many there are.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @classmethod
    def init(cls, device: torch.device, timeout: float) -> Self:
        """Join the process group that `torchrun` describes in the environment, if it does.

        Args:
            device: where this process trains.
            timeout: seconds after which a process that waits for another one gives up.

        Raises:
            ConnectionError: the group did not come together.
            ValueError: WORLD_SIZE is not a number.
        """
        size = _world_size()
        if size == 1:
            return cls()
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        limit = timedelta(seconds=min(timeout, _MAX_TIMEOUT))
        # torch.optim imports this module, whose functions keep the group there is at that time as
        # a default argument. Such a group lives on after `close`, and its threads, which need the
        # interpreter for a moment, may abort a process that ends.
        importlib.import_module("torch.distributed.nn.functional")
        try:
            dist.init_process_group(backend, timeout=limit)
        except (RuntimeError, ValueError) as error:
            fault = str(error).splitlines()[0]
            raise ConnectionError(
                f"this process did not find the other {size - 1} ({fault}); start all of them "
                "together, with torchrun"
            ) from error
        return cls(dist.get_rank(), size)

    def close(self) -> None:
        """Destroy the process group, all processes together; nothing is exchanged afterwards."""
        if self.world_size > 1 and dist.is_initialized():
            self.all_gather(torch.zeros(1))  # a barrier: none leaves while another one waits
            dist.destroy_process_group()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all processes, in place, without waiting for a GPU."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the CPU tensors, of one shape, that all processes pass, in the order of ranks."""
        if self.world_size == 1:
            return [tensor]
        results = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(results, tensor)
        return results

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Run the block in every process; if it fails in one, it fails in all.

        Raises:
            OSError, ValueError: what the block raised here, or that it failed elsewhere.
        """
        error: Exception | None = None
        try:
            yield
        except (OSError, ValueError) as caught:
            error = caught
        failed = torch.tensor([int(error is not None)])
        ranks = [rank for rank, each in enumerate(self.all_gather(failed)) if int(each)]
        if error is not None:
            raise error
        if ranks:
            raise OSError(f"process {ranks[0]} failed; its own message says why")

    def shard(self, total: int) -> tuple[int, int]:
        """Return this process's part `[first, last)` of `range(total)`."""
        return shard_bounds(total, self.rank, self.world_size)


def shard_bounds(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return part `rank` of `world_size` nearly equal parts of `range(total)`."""
    return rank * total // world_size, (rank + 1) * total // world_size


def local_device(device: str) -> str:
    """Give each process of a machine a GPU of its own: "cuda" becomes "cuda:LOCAL_RANK"."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


def open_address() -> str | None:
    """Return the address at which the processes meet, if other machines can reach it."""
    address = os.environ.get("MASTER_ADDR", "localhost")
    return None if _world_size() == 1 or address in _LOCAL else address


def _world_size() -> int:
    """Return how many processes there are, as `torchrun` says."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {text!r}")
    return int(text)
