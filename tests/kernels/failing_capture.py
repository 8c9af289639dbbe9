"""Let captures fail on a GPU, and see that torch's allocator serves the process as before.

    python -m tests.kernels.failing_capture

In a process of its own, because a capture that fails badly spoils everything after it.
"""

import torch

from fastnca.cuda_graphs import record_cuda
from tests.kernels.test_training_graph import FIRST, compare, cuda_trainer

SIZE = 1 << 28  # numbers, 1 GiB


def fail_once() -> None:
    """Capture something that waits for the device, which is not allowed."""

    def launches() -> None:
        torch.ones(1 << 20, device="cuda").sum().item()

    try:
        record_cuda(launches, torch.device("cuda", torch.cuda.current_device()))
    except RuntimeError as error:
        print("refused:", str(error).splitlines()[0])
    else:
        raise AssertionError("the capture did not fail")


def check_allocator() -> None:
    """Freed memory goes back to the device, at once and when memory runs out."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    tensor = torch.empty(SIZE, device="cuda")
    del tensor
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before, "freed memory is kept"
    free = torch.cuda.mem_get_info()[0]
    parts = [torch.empty(free // 64, dtype=torch.uint8, device="cuda") for _ in range(48)]
    del parts  # cached in pieces too small for the next one
    whole = torch.empty(free // 2, dtype=torch.uint8, device="cuda")
    del whole
    torch.cuda.empty_cache()


def check_trainer() -> None:
    """Training goes on without a graph, with the same numbers."""
    graph, _ = cuda_trainer(True, "tutorial")
    plain, _ = cuda_trainer(False, "tutorial")
    compute = graph.iterate._compute

    def fail(*arguments, **options):
        numbers = compute(*arguments, **options)
        if torch.cuda.is_current_stream_capturing():
            numbers.tolist()
        return numbers

    graph.iterate._compute = fail
    compare(graph, plain, FIRST + 5)
    assert not graph.iterate._supported


if __name__ == "__main__":
    fail_once()
    check_allocator()
    check_trainer()
    check_allocator()
    print("ok")
