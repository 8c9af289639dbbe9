"""Captures own their memory pool, and give it up when they fail; a stand-in takes CUDA's place.

`tests/kernels/test_gpu_capture.py` lets real captures fail.
"""

from contextlib import nullcontext

import pytest
import torch

from fastnca.cuda_graphs import record_cuda

POOL = (0, 7)
DEVICE = torch.device("cuda", 0)


class Allocator:
    """What torch's allocator is told."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.recording: list[tuple[int, tuple[int, int]]] = []
        self.references = 0

    def end(self, device: int, pool: tuple[int, int]) -> None:
        if (device, pool) not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove((device, pool))

    def release(self, device: int, pool: tuple[int, int]) -> None:
        assert self.references > 0
        self.references -= 1


def graph_class(allocator: Allocator, fails: str | None):
    """Return a class like `torch.cuda.CUDAGraph` whose method of that name fails."""

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            assert capture_error_mode == "thread_local"
            allocator.recording.append((0, pool))
            allocator.references += 1
            if fails == "capture_begin":
                raise RuntimeError("operation not permitted")

        def capture_end(self):
            broken = fails == "capture_end"
            if allocator.version == "later" or not broken:
                allocator.end(0, POOL)
            if broken:
                raise RuntimeError("operation failed due to a previous error during capture")

        def replay(self):
            pass

    return Graph


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch):
    """Return what prepares a capture in one of torch's versions."""

    def prepare(version: str, fails: str | None = None) -> Allocator:
        allocator = Allocator(version)
        for name, value in {
            "CUDAGraph": graph_class(allocator, fails),
            "graph_pool_handle": lambda: POOL,
            "device": lambda device: nullcontext(),
            "stream": lambda stream: nullcontext(),
            "Stream": lambda device: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", allocator.end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", allocator.release, raising=False)
        return allocator

    return prepare


@pytest.mark.parametrize("version", ["2.11", "later"])
def test_a_capture_has_a_pool_of_its_own(version: str, capture) -> None:
    allocator, launched = capture(version), []
    replay = record_cuda(lambda: launched.append(1), DEVICE)
    assert launched == [1]
    assert replay.__name__ == "replay"
    assert (allocator.recording, allocator.references) == ([], 1)


def test_the_pool_of_a_capture_that_fails_is_released(capture) -> None:
    allocator = capture("2.11", "capture_end")
    with pytest.raises(RuntimeError, match="previous error during capture"):
        record_cuda(lambda: None, DEVICE)
    assert (allocator.recording, allocator.references) == ([], 0)


def test_a_pool_that_torch_ended_itself_is_left_to_it(capture) -> None:
    allocator = capture("later", "capture_end")
    with pytest.raises(RuntimeError, match="previous error during capture"):
        record_cuda(lambda: None, DEVICE)
    assert (allocator.recording, allocator.references) == ([], 1)


def test_the_pool_of_a_capture_that_does_not_begin_is_released(capture) -> None:
    allocator = capture("2.11", "capture_begin")
    with pytest.raises(RuntimeError, match="not permitted"):
        record_cuda(lambda: None, DEVICE)
    assert (allocator.recording, allocator.references) == ([], 0)


def test_what_launches_raise_comes_through(capture) -> None:
    """The capture itself is fine then, and the graph gives its pool back when it goes."""
    allocator = capture("2.11")

    def fail() -> None:
        raise RuntimeError("no such shape")

    with pytest.raises(RuntimeError, match="no such shape"):
        record_cuda(fail, DEVICE)
    assert (allocator.recording, allocator.references) == ([], 1)
