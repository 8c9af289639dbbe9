"""How launches become a CUDA graph.

`FASTNCA_GRAPHS=0` in the environment switches all graphs of this package off.
"""

import os
from collections.abc import Callable

import torch

Launches = Callable[[], None]
Record = Callable[[Launches, torch.device], Launches]

ENVIRONMENT_VARIABLE = "FASTNCA_GRAPHS"


def graphs_wanted() -> bool:
    """Tell whether graphs may be captured and replayed."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "1") != "0"


def record_cuda(launches: Launches, device: torch.device) -> Launches:
    """Capture launches, whose kernels must have run before, without running them.

    Args:
        launches: launches kernels on the current stream; what it allocates belongs to the graph.
        device: the CUDA device.

    Returns:
        What replays them on the then current stream.

    Raises:
        RuntimeError: the launches cannot be captured; the caller's stream is current again.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launches()
        finally:
            graph.capture_end()
    return graph.replay
