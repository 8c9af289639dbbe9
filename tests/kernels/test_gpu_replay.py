"""Rollouts replayed as CUDA graphs on a GPU; `test_graphs.py` holds what the interpreter shows."""

import random

import pytest
import torch
from torch import Tensor

from fastnca import cuda_graphs
from fastnca.backends.triton_fused import fused_rollout, graphs, nodes
from tests.kernels.gpu_cases import gradients, launched, make_tensors
from tests.kernels.helpers import without_graphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SETTINGS = {"first_step": 0, "update_rate": 0.5, "precision": "fp16"}


class CountingRecorder:
    """Captures as the package does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, launches, device):
        self.recorded += 1
        run = cuda_graphs.record_cuda(launches, device)

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> CountingRecorder:
    made = CountingRecorder()
    monkeypatch.setattr(nodes, "GRAPHS", graphs.Graphs(made))
    return made


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_graph_replay_of_64_to_95_steps_captures_once(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(8, 64)
    counts = list(range(64, 96))
    random.Random(0).shuffle(counts)
    for seed, steps in enumerate([95, 95, *counts]):
        plain = launched(state, parameters, steps, seed=seed)
        assert equal(gradients(state, parameters, steps, seed=seed), plain)
    assert recorder.recorded == 2
    assert recorder.replayed == 2 * len(counts)


def test_graph_replay_sees_other_weights_and_states(recorder: CountingRecorder) -> None:
    for number in range(4):
        state, parameters = make_tensors(4, 65, seed=number)
        plain = launched(state, parameters, 40, seed=number)
        assert equal(gradients(state, parameters, 40, seed=number), plain)
    assert recorder.replayed > 0


def test_graph_replay_without_gradient(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(4, 64)
    with torch.no_grad():
        for steps in (40, 64, 33, 34, 63):
            found = fused_rollout(state, parameters, steps=steps, seed=steps, **SETTINGS)
            with without_graphs():
                plain = fused_rollout(state, parameters, steps=steps, seed=steps, **SETTINGS)
            assert torch.equal(found, plain)
    assert recorder.recorded == 1


def test_graph_replay_keeps_the_states_of_waiting_rollouts(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(4, 64)
    expected = [launched(state, parameters, 32, seed=s) for s in range(4)]
    for _ in range(3):
        leaf = [t.detach().requires_grad_() for t in (state, *parameters)]
        results = [
            fused_rollout(leaf[0], tuple(leaf[1:]), steps=32, seed=seed, **SETTINGS)
            for seed in range(4)
        ]
        for seed in (2, 0, 3, 1):
            result = results[seed]
            found = result.detach(), *torch.autograd.grad(result.square().sum(), leaf)
            assert equal(found, expected[seed])
    assert recorder.replayed > 0


def test_graph_replay_on_two_streams(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(8, 64)
    expected = [launched(state, parameters, 64, seed=s) for s in range(2)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for seed, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found.append(gradients(state, parameters, 64, seed=seed))
        torch.cuda.synchronize()
        assert all(map(equal, found, expected))
    assert recorder.recorded == 4


def test_graph_replay_gives_its_memory_back(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(8, 64)
    launched(state, parameters, 96, seed=1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        gradients(state, parameters, 96, seed=1)
    slots = 97 * 8 * 64 * 64 * 16 * 4
    assert torch.cuda.memory_allocated() - before > slots
    nodes.GRAPHS.release()
    assert torch.cuda.memory_allocated() - before < slots
