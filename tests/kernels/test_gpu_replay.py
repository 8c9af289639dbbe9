"""Rollouts replayed as CUDA graphs, and the persistent kernel, on a GPU.

`test_graphs.py` and `test_persistent.py` hold what the interpreter can show of both.
"""

import random

import pytest
import torch
from torch import Tensor

from fastnca.fused import capture, eager, fused_rollout, graphs
from fastnca.kernels import persistent
from tests.kernels.test_gpu import gradients, make_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SETTINGS = {"first_step": 0, "update_rate": 0.5, "precision": "fp16"}


class CountingRecorder:
    """Captures as the package does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, launches, device):
        self.recorded += 1
        run = capture.record_cuda(launches, device)

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> CountingRecorder:
    made = CountingRecorder()
    monkeypatch.setattr(eager, "GRAPHS", graphs.Graphs(made))
    return made


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_graph_replay_of_64_to_95_steps_captures_once(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(8, 64)
    counts = list(range(64, 96))
    random.Random(0).shuffle(counts)
    for seed, steps in enumerate([95, 95, *counts]):
        plain = gradients(state, parameters, steps, seed=seed, replay=False)
        assert equal(gradients(state, parameters, steps, seed=seed), plain)
    assert recorder.recorded == 2
    assert recorder.replayed == 2 * len(counts)


def test_graph_replay_sees_other_weights_and_states(recorder: CountingRecorder) -> None:
    for number in range(4):
        state, parameters = make_tensors(4, 65, seed=number)
        plain = gradients(state, parameters, 40, seed=number, replay=False)
        assert equal(gradients(state, parameters, 40, seed=number), plain)
    assert recorder.replayed > 0


def test_graph_replay_without_gradient(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(4, 64)
    with torch.no_grad():
        for steps in (40, 64, 33, 34, 63):
            found = fused_rollout(state, parameters, steps=steps, seed=steps, **SETTINGS)
            settings = SETTINGS | {"replay": False}
            plain = fused_rollout(state, parameters, steps=steps, seed=steps, **settings)
            assert torch.equal(found, plain)
    assert recorder.recorded == 1


def test_graph_replay_keeps_the_states_of_waiting_rollouts(recorder: CountingRecorder) -> None:
    state, parameters = make_tensors(4, 64)
    expected = [gradients(state, parameters, 32, seed=s, replay=False) for s in range(4)]
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
    expected = [gradients(state, parameters, 64, seed=s, replay=False) for s in range(2)]
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
    gradients(state, parameters, 96, seed=1, replay=False)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        gradients(state, parameters, 96, seed=1)
    slots = 97 * 8 * 64 * 64 * 16 * 4
    assert torch.cuda.memory_allocated() - before > slots
    eager.GRAPHS.release()
    assert torch.cuda.memory_allocated() - before < slots


@pytest.mark.parametrize("batch", [1, 3, 8, 300])
@pytest.mark.parametrize("size", [8, 33, 64])
def test_persistent_kernel_gives_the_bits_of_many_launches(batch: int, size: int) -> None:
    state, parameters = make_tensors(batch, size)
    for steps in (1, 2, 17):
        plain = gradients(state, parameters, steps, seed=steps, replay=False)
        assert equal(gradients(state, parameters, steps, seed=steps, persistent=True), plain)
        with torch.no_grad():
            found = fused_rollout(
                state, parameters, steps=steps, seed=steps, persistent=True, **SETTINGS
            )
        assert torch.equal(found, plain[0])


def test_persistent_grid_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver refuses programs that could not be resident at once, instead of hanging."""
    state, parameters = make_tensors(64, 64)
    monkeypatch.setattr(persistent, "choose_groups", lambda *_: (64, 64))
    with pytest.raises(RuntimeError), torch.no_grad():
        fused_rollout(state, parameters, steps=2, seed=1, persistent=True, **SETTINGS)
