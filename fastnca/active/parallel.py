"""Split a batch over threads.

The operators of a rollout are small, and a pool of threads inside each of them costs more in
waiting than it saves; groups of images on threads of their own keep their cells in the cache of
one core. Python's lock is free while an operator runs.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

CELLS_PER_GROUP = 4096
"""Living cells below which a group is not worth a thread: Python's own time would dominate."""

Result = TypeVar("Result")


def split_batch(living: Tensor, steps: int) -> list[Tensor]:
    """Divide the images of a batch into groups of about equal work.

    Args:
        living: `[B]` int64, living cells of each image.
        steps: steps of the rollout; a single step is not split.

    Returns:
        Image numbers of each group, at least one group.
    """
    most = min(torch.get_num_threads(), len(living), int(living.sum()) // CELLS_PER_GROUP)
    if living.device.type != "cpu" or steps < 2 or most < 2:
        return [torch.arange(len(living), device=living.device)]
    order = living.argsort(descending=True, stable=True)
    turns = torch.arange(len(living)) % (2 * most)
    group = torch.minimum(turns, 2 * most - 1 - turns)  # 0 1 .. k-1 k-1 .. 1 0 0 1 ..
    return [order[group == number].sort().values for number in range(most)]


def run_side_by_side(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run jobs on a thread each, sharing torch's threads between them.

    Args:
        jobs: functions without arguments that compute on tensors and record no gradient.

    Returns:
        Their results, in order.
    """
    if len(jobs) == 1:
        return [jobs[0]()]
    threads = torch.get_num_threads()
    share = max(1, threads // len(jobs))
    inference = torch.is_inference_mode_enabled()

    def run(job: Callable[[], Result]) -> Result:
        torch.set_num_threads(share)  # of this thread
        with torch.inference_mode(inference), torch.no_grad():
            return job()

    try:
        with ThreadPoolExecutor(len(jobs)) as executor:
            return list(executor.map(run, jobs))
    finally:
        torch.set_num_threads(threads)
