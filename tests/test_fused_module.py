"""`NeuralCA(backend="triton")`, with the kernels in Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

from fastnca import NeuralCA, reference
from fastnca.support import choose_backend, operand_precision
from tests.helpers import copy_weights, excite, relative_error, roll_out

pytest.importorskip("triton", reason="the fused kernels need Triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no CUDA GPU, and the interpreter is switched off", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
    assert chosen == ("triton" if DEVICE == "cuda" else "torch")


def test_auto_precision_follows_torch(monkeypatch):
    assert operand_precision("bf16", "cpu") == "bf16"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert operand_precision("auto", "cuda") == "fp16"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert operand_precision("auto", "cuda") == "ieee"
    with torch.autocast("cpu", torch.bfloat16):
        assert operand_precision("auto", "cpu") == "bf16"
