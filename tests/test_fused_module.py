"""`NeuralCA(backend="triton")`, with the kernels in Triton's interpreter where there is no GPU."""

import pytest
import torch

from fastnca import NeuralCA, reference
from fastnca.backends.choose import choose_backend
from fastnca.backends.triton_fused import fused_reasons, operand_precision
from tests.helpers import (
    CPU_DEFAULT,
    compiled,
    copy_weights,
    excite,
    operators_of,
    relative_error,
    roll_out,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
for reason in fused_reasons(DEVICE, torch.float32, 8, 16, "ieee"):
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture
def model():
    torch.manual_seed(2)
    return excite(NeuralCA(8, 16, backend="triton", precision="ieee"), 0.2).to(DEVICE)


@pytest.fixture
def state():
    torch.manual_seed(3)
    state = torch.rand(2, 8, 5, 6, device=DEVICE)
    state[:, 3] = state[:, 3].round() * 0.8  # off the threshold
    return state


def test_rollout_and_gradients_equal_the_reference(model, state):
    fused = roll_out(model, state, 3, 11, 0.6)
    expected = roll_out(copy_weights(model).to(DEVICE), state, 3, 11, 0.6)
    assert relative_error(fused.state, expected.state) <= 1e-5
    for name, gradient in expected.gradients.items():
        assert relative_error(fused.gradients[name], gradient) <= 1e-4, name


def test_a_step_draws_one_seed_from_torch(model, state):
    torch.manual_seed(5)
    seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
    torch.manual_seed(5)
    end = model(state)
    expected = copy_weights(model).to(DEVICE).run_steps(state, 1, seed=seed)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-5)


def test_eval_and_trajectory(model, state):
    model.eval()
    expected = copy_weights(model, reference.NeuralCA).to(DEVICE).eval()
    states = list(model.trajectory(state, 3, every=2))
    with torch.no_grad():
        for steps, visited in zip((0, 2, 3), states, strict=True):
            torch.testing.assert_close(visited, expected.run_steps(state, steps), rtol=0, atol=1e-5)


def test_auto_takes_the_kernels_on_a_gpu_only(state):
    model = NeuralCA(8, 16).to(DEVICE)
    chosen = choose_backend(model, "auto", "auto", state)
    assert chosen == ("triton" if DEVICE == "cuda" else CPU_DEFAULT)


def test_auto_precision_follows_torch(monkeypatch):
    assert operand_precision("bf16", "cpu") == "bf16"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert operand_precision("auto", "cuda") == "fp16"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert operand_precision("auto", "cuda") == "ieee"
    with torch.autocast("cpu", torch.bfloat16):
        assert operand_precision("auto", "cpu") == "bf16"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_checkpoints_change_no_bit(backend, model, state):
    model.backend = backend
    if backend != "triton":
        model.precision = "auto"
    parameters = tuple(model.update_net.parameters())
    found = []
    for every in (1, 2):
        leaf = state.clone().requires_grad_()
        end = model.run_steps(leaf, 3, seed=4, checkpoint_every=every)
        found.append((end, *torch.autograd.grad(end.square().sum(), (leaf, *parameters))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpoints_are_counted_from_one(model, state):
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1"):
        model.run_steps(state, 2, checkpoint_every=0)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_the_number_of_steps_may_be_a_tensor(backend, count, model, state):
    """Of three steps, at most; state and gradients are those of as many steps."""
    model.backend = backend
    if backend != "triton":
        model.precision = "auto"
    ends, gradients = [], []
    counted = {"steps": 3, "count": torch.tensor(count, device=DEVICE)}
    for options in (counted, {"steps": min(count, 3)}):
        leaf = state.clone().requires_grad_()
        end = model.run_steps(leaf, seed=11, **options)
        ends.append(end.detach())
        gradients.append(torch.autograd.grad(end.square().sum(), leaf)[0])
    assert torch.equal(*ends)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_seed_may_be_a_tensor(backend, model, state):
    model.backend = backend
    seed = torch.tensor(9, device=DEVICE)
    found = model.run_steps(state, 2, seed=seed)
    assert torch.equal(found, model.run_steps(state, 2, seed=9))


@pytest.mark.long
def test_compiled_rollouts_of_33_counts_share_two_graphs(model):
    graphs = []
    state = torch.rand(1, 8, 1, 1, device=DEVICE, requires_grad=True)
    inputs = (state, *model.update_net.parameters())
    seed = torch.tensor(5, device=DEVICE)
    rollout = compiled(lambda state, steps, seed: model.run_steps(state, steps, seed=seed), graphs)
    for steps in range(1, 34):
        result = rollout(state, steps, seed)
    assert len(graphs) <= 2
    assert all(map(operators_of, graphs))
    expected = model.run_steps(state, 33, seed=5)
    assert torch.equal(result, expected)
    found = torch.autograd.grad(result.sum(), inputs)
    for a, b in zip(found, torch.autograd.grad(expected.sum(), inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_step_is_the_fused_step(training, model, state):
    graphs = []
    model.train(training)
    step = compiled(lambda state: model(state), graphs)
    found = step(state)
    assert len(graphs) == 1
    assert operators_of(graphs[0])
    if training:
        assert not torch.equal(step(state), step(state))  # each call draws a mask
    else:
        assert torch.equal(found, model(state))


def test_an_int_seed_is_refused_while_a_graph_is_captured(model, state, monkeypatch):
    monkeypatch.setattr("fastnca.cuda_graphs.is_capturing", lambda state: True)
    with pytest.raises(RuntimeError, match="freeze the seed"):
        model(state)
    end = model.run_steps(state, 1, seed=torch.tensor(3, device=DEVICE))
    monkeypatch.undo()
    assert torch.equal(end, model.run_steps(state, 1, seed=3))
