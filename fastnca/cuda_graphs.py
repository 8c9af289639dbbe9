"""How kernel launches become a CUDA graph.

`FASTNCA_GRAPHS=0` in the environment switches all graphs of this package off.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from fastnca._torch_internals import end_allocation, release_pool

Launches = Callable[[], None]
Record = Callable[[Launches, torch.device], Launches]

ENVIRONMENT_VARIABLE = "FASTNCA_GRAPHS"


def graphs_wanted() -> bool:
    """Return whether graphs may be captured and replayed."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "1") != "0"


def is_capturing(tensor: Tensor) -> bool:
    """Return whether a CUDA graph is being captured on the current stream of a tensor's device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def record_cuda(launches: Launches, device: torch.device) -> Launches:
    """Capture launches, whose kernels must have run before, without running them.

    Args:
        launches: launches kernels on the current stream. Its allocations belong to the graph.
        device: the CUDA device.

    Returns:
        A function that replays the launches on the then current stream.

    Raises:
        RuntimeError: the launches cannot be captured. The caller's stream is current again, and
            torch's allocator serves it as before.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        try:
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        except RuntimeError:
            _abandon(pool, device)
            raise
        try:
            launches()
        finally:
            try:
                graph.capture_end()
            except RuntimeError:
                _abandon(pool, device)
                raise
    return graph.replay


def _abandon(pool: tuple[int, int], device: torch.device) -> None:
    """Let torch's allocator forget the memory pool of a capture that failed.

    Up to torch 2.11 it otherwise believes until the process ends that a capture is under way: then
    neither `torch.cuda.empty_cache` nor the retry after running out of memory frees anything.
    Later versions end the pool themselves and raise an error here.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        end_allocation(index, pool)
    except RuntimeError:
        return
    release_pool(index, pool)
