"""Rollouts of a device-side step count, and the ownership of the workspaces that are replayed.

Without a GPU the recorder is a fake that launches again what it recorded; the kernels, their
device-side step count and the memory they share are the real ones.
"""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout, graphs, nodes, release_graphs
from tests.kernels.conftest import INTERPRETED
from tests.kernels.helpers import SEED, Case, make_problem, without_graphs

CASE = Case(3, 3, precision="ieee")  # the smallest tiles are the fastest here
SETTINGS = {"first_step": 5, "update_rate": 0.5, "precision": "ieee"}
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test_gpu_replay.py captures real graphs")


class FakeRecorder:
    """Counts what is recorded and what is replayed; a replay launches again."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, launches, device):
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            launches()

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> FakeRecorder:
    made = FakeRecorder()
    monkeypatch.setattr(nodes, "GRAPHS", graphs.Graphs(made, "cpu"))
    monkeypatch.setattr(graphs, "MIN_STEPS", 1)
    monkeypatch.setattr(graphs, "ROUND_STEPS", 4)
    return made


def leaves(case: Case = CASE) -> tuple[Tensor, tuple[Tensor, ...]]:
    problem = make_problem(case)
    parameters = tuple(p.detach().clone().requires_grad_() for p in problem.parameters)
    return problem.state.detach().clone().requires_grad_(), parameters


def forward(tensors, steps: int, seed: int | Tensor | None = SEED, **options) -> Tensor:
    state, parameters = tensors
    return fused_rollout(state, parameters, steps=steps, seed=seed, **(SETTINGS | options))


def backward(result: Tensor, tensors, **options) -> tuple[Tensor, ...]:
    state, parameters = tensors
    weight = torch.linspace(-1, 1, result.numel()).view_as(result)
    return torch.autograd.grad((result * weight).sum(), (state, *parameters), **options)


def outcome(tensors, steps: int, **options) -> tuple[Tensor, ...]:
    result = forward(tensors, steps, **options)
    return result.detach(), *backward(result, tensors)


def launched(tensors, steps: int, **options) -> tuple[Tensor, ...]:
    """Do what `outcome` does, launch by launch."""
    with without_graphs():
        return outcome(tensors, steps, **options)


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 9])
def test_step_count_on_the_device_gives_the_same_bits(count: int) -> None:
    """Five launches; what is stored beyond the last step is poison, nine steps are five."""
    tensors = leaves()
    found = launched(tensors, 5, device_steps=torch.tensor(count))
    assert equal(found, launched(tensors, min(count, 5)))


@pytest.mark.parametrize("count", [0, 3, 4])
def test_step_count_on_the_device_without_gradient(count: int) -> None:
    tensors = leaves()
    with torch.no_grad():
        found = forward(tensors, 4, device_steps=torch.tensor(count))
        assert torch.equal(found, forward(tensors, count))


def test_seed_on_the_device_is_the_seed() -> None:
    tensors = leaves()
    signed = torch.tensor(SEED - 2**64)
    assert equal(outcome(tensors, 2, seed=signed), outcome(tensors, 2))


def test_step_count_needs_every_state() -> None:
    with pytest.raises(ValueError, match="checkpoint_every=1"):
        forward(leaves(), 4, device_steps=torch.tensor(2), checkpoint_every=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", [SEED, None])
def test_replays_of_all_counts_give_the_same_bits(seed: int | None, recorder: FakeRecorder) -> None:
    """One capture forward and one backward serve every count up to its length, in any order."""
    tensors = leaves()
    for steps in (4, 4, 2, 3, 4):
        plain = launched(tensors, steps, seed=seed)
        assert equal(outcome(tensors, steps, seed=seed), plain)
    assert recorder.recorded == 2
    assert recorder.replayed == 6


@pytest.mark.long
def test_what_an_earlier_rollout_left_is_not_read(recorder: FakeRecorder) -> None:
    """A workspace full of NaN and of flags that are all set gives the same bits."""
    tensors = leaves()
    for _ in range(2):
        outcome(tensors, 4)
    (_, workspace), *more = nodes.GRAPHS._workspaces.values()
    assert not more
    saved, buffers = workspace._saved, workspace.buffers()
    for steps in (3, 4, 1):
        saved.states.fill_(torch.nan)
        saved.flags[:, :, 2:5].copy_(torch.full((5, 1, 3, 1), 0x0000FF00_0000FF00))
        for tensor in buffers.tensors:
            tensor.fill_(torch.nan)
        assert equal(outcome(tensors, steps), launched(tensors, steps))


@pytest.mark.long
def test_parameters_and_state_are_those_of_the_call(recorder: FakeRecorder) -> None:
    for scale in (1.0, 0.5, 0.25):
        state, parameters = leaves()
        with torch.no_grad():
            state.mul_(scale)
            parameters[2].mul_(scale)
        tensors = state, parameters
        assert equal(outcome(tensors, 4), launched(tensors, 4))
    assert recorder.replayed > 0


@pytest.mark.long
def test_rollouts_before_the_first_backward_own_their_states(recorder: FakeRecorder) -> None:
    """Three rollouts wait at once; two workspaces may exist, the third is launched."""
    tensors = leaves()
    expected = [launched(tensors, 4, seed=seed) for seed in range(3)]
    forward(tensors, 4)
    results = [forward(tensors, 4, seed=seed) for seed in range(3)]
    assert len(nodes.GRAPHS._workspaces) == 2
    for order in (1, 0, 2):
        found = results[order].detach(), *backward(results[order], tensors)
        assert equal(found, expected[order])


@pytest.mark.long
def test_a_retained_graph_keeps_its_workspace(recorder: FakeRecorder) -> None:
    tensors = leaves()
    forward(tensors, 4)
    result = forward(tensors, 4, seed=1)
    first = backward(result, tensors, retain_graph=True)
    for seed in (2, 3, 4):
        outcome(tensors, 4, seed=seed)
    assert equal(backward(result, tensors), first)
    assert equal(first, launched(tensors, 4, seed=1)[1:])


@pytest.mark.long
def test_a_dropped_rollout_frees_its_workspace(recorder: FakeRecorder) -> None:
    tensors = leaves()
    for seed in range(6):
        forward(tensors, 4, seed=seed)
        gc.collect()  # the interpreter keeps what it ran on in cycles
    assert len(nodes.GRAPHS._workspaces) == 1
    result = forward(tensors, 4)
    backward(result, tensors)
    (_, workspace), *_ = nodes.GRAPHS._workspaces.values()
    assert not workspace.in_use  # although the result still has its node


def copy_of(tensor: Tensor) -> Tensor:
    return tensor.clone()


def alias_of(tensor: Tensor) -> Tensor:
    return tensor.detach()


@pytest.mark.long
@pytest.mark.parametrize("pack", [copy_of, alias_of])
def test_hooks_on_saved_tensors_see_the_states(pack, recorder: FakeRecorder) -> None:
    """What a hook copies is used instead of the workspace; what it aliases keeps it."""
    tensors = leaves()
    expected = launched(tensors, 4, seed=1)
    forward(tensors, 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        result = forward(tensors, 4, seed=1)
    for seed in (2, 3, 4):
        outcome(tensors, 4, seed=seed)
    assert equal((result.detach(), *backward(result, tensors)), expected)


@pytest.mark.long
def test_recomputation_by_torch_checkpoint(recorder: FakeRecorder) -> None:
    tensors = leaves()
    expected = launched(tensors, 4, seed=1)
    for _ in range(3):
        result = torch.utils.checkpoint.checkpoint(
            lambda: forward(tensors, 4, seed=1), use_reentrant=False
        )
        outcome(tensors, 4, seed=2)
        assert equal((result.detach(), *backward(result, tensors)), expected)


def test_release_leaves_waiting_rollouts_right(recorder: FakeRecorder) -> None:
    tensors = leaves()
    forward(tensors, 4)
    result = forward(tensors, 4, seed=1)
    nodes.GRAPHS.release()
    assert not nodes.GRAPHS._workspaces
    outcome(tensors, 4, seed=2)
    assert equal(backward(result, tensors), launched(tensors, 4, seed=1)[1:])
    release_graphs()


def test_a_released_workspace_does_not_wait_for_the_collector(recorder: FakeRecorder) -> None:
    tensors = leaves()
    for _ in range(2):
        outcome(tensors, 4)
    ((_, workspace),) = nodes.GRAPHS._workspaces.values()
    reference = weakref.ref(workspace)
    del workspace
    gc.disable()
    try:
        nodes.GRAPHS.release()
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.long
def test_memory_is_limited(recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used free workspace goes first; one in use stays."""
    tensors = leaves()
    for _ in range(2):
        outcome(tensors, 4, seed=None)
    (_, workspace), *_ = nodes.GRAPHS._workspaces.values()
    monkeypatch.setattr(graphs, "MAX_BYTES", 2 * workspace.bytes)
    for seed in (None, SEED, None, SEED):
        outcome(tensors, 4, seed=seed)
    assert len(nodes.GRAPHS._workspaces) == 2
    waiting = forward(tensors, 4, seed=None)
    with torch.no_grad():
        forward(tensors, 4)
    for _ in range(2):
        outcome(tensors, 4, update_rate=0.25)
    kinds = [kind[5] for kind, _ in nodes.GRAPHS._workspaces.values()]
    assert len(kinds) == 2
    assert kinds[-1] == 2**22
    expected = launched(tensors, 4, seed=None)
    assert equal((waiting.detach(), *backward(waiting, tensors)), expected)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("reason", ["environment", "few", "large", "checkpoints"])
def test_what_is_not_replayed(
    reason: str, recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, options = leaves(), {}
    if reason == "environment":
        monkeypatch.setenv("FASTNCA_GRAPHS", "0")
    elif reason == "few":
        monkeypatch.setattr(graphs, "MIN_STEPS", 8)
    elif reason == "large":
        monkeypatch.setattr(graphs, "MAX_CELLS", 8)
    else:
        options = {"checkpoint_every": 2}
    for _ in range(3):
        forward(tensors, 4, **options)
    assert recorder.recorded == 0


@pytest.mark.long
def test_a_failed_capture_is_told_and_launches(
    caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    def fail(launches, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(nodes, "GRAPHS", graphs.Graphs(fail, "cpu"))
    monkeypatch.setattr(graphs, "MIN_STEPS", 1)
    tensors = leaves()
    for _ in range(3):
        assert equal(outcome(tensors, 4), launched(tensors, 4))
    assert "capture failed" in caplog.text


def test_a_cpu_is_never_captured_by_default() -> None:
    tensors = leaves()
    with torch.no_grad():
        for _ in range(3):
            forward(tensors, 8)
    assert not graphs.GRAPHS._workspaces
