"""The rollout as a citizen of PyTorch: operators, autograd, compilation, refusals."""

import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from fastnca.backends.triton_fused import fused_reasons, fused_rollout
from fastnca.rule import TUTORIAL
from tests.kernels.helpers import Case, make_problem, run_kernels

SETTINGS = {"first_step": 0, "update_rate": 0.5, "precision": "ieee"}


@pytest.fixture
def tensors(device: torch.device) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    problem = make_problem(Case(3, 3))
    return problem.state.clone().to(device), tuple(p.to(device) for p in problem.parameters)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("checkpoint_every", [2, 3, 7])
def test_checkpoints_give_the_same_bits(checkpoint_every: int, device: torch.device) -> None:
    case = Case(5, 9, steps=5, precision="fp16")
    problem = make_problem(case)
    everything = run_kernels(case, problem, device)
    some = run_kernels(case, problem, device, checkpoint_every)
    assert all(torch.equal(a, b) for a, b in zip(everything, some, strict=True))


def test_repetition_gives_the_same_bits(device: torch.device) -> None:
    case = Case(9, 17, precision="fp16")
    problem = make_problem(case)
    first, second = run_kernels(case, problem, device), run_kernels(case, problem, device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rollout_is_its_steps(tensors, device: torch.device) -> None:
    state, parameters = tensors
    whole = fused_rollout(state, parameters, steps=3, seed=7, **SETTINGS)
    for step in range(3):
        settings = SETTINGS | {"first_step": step}
        state = fused_rollout(state, parameters, steps=1, seed=7, **settings)
    assert torch.equal(state, whole)


@pytest.mark.long
def test_batch_is_its_grids_without_randomness(device: torch.device) -> None:
    problem = make_problem(Case(5, 11, batch=3, precision="fp16"))
    state, parameters = problem.state.to(device), tuple(p.to(device) for p in problem.parameters)
    settings = {"steps": 2, "seed": None} | SETTINGS
    together = fused_rollout(state, parameters, **settings)
    single = [fused_rollout(s[None], parameters, **settings) for s in state]
    assert torch.equal(together, torch.cat(single))


@pytest.mark.long
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded"])
def test_opcheck(tensors, layout: str, keep: bool, device: torch.device) -> None:
    state, parameters = tensors
    state = {
        "contiguous": state,
        "channels_last": state.to(memory_format=torch.channels_last),
        "transposed": state.transpose(2, 3),
        "expanded": state[:, :, :, :1].expand(-1, -1, -1, 3),
    }[layout]
    counter = torch.tensor([1, 2, 2], device=device)
    arguments = (state, *parameters, counter, TUTORIAL.json, 2, 0.5, "ieee", 1, True, keep)
    opcheck(torch.ops.fastnca.rollout_forward.default, arguments)
    if keep:
        result, states, flags = torch.ops.fastnca.rollout_forward(*arguments)
        back = (result, states, flags, *parameters, counter, TUTORIAL.json, 2, 0.5, "ieee", 1, True)
        opcheck(torch.ops.fastnca.rollout_backward.default, back)


@pytest.mark.parametrize("steps", [1, 2])
def test_any_strides_in_contiguous_out(tensors, steps: int) -> None:
    state, parameters = tensors
    settings = {"steps": steps, "seed": 3} | SETTINGS
    plain = fused_rollout(state, parameters, **settings)
    strided = fused_rollout(state.to(memory_format=torch.channels_last), parameters, **settings)
    assert strided.is_contiguous()
    assert torch.equal(plain, strided)


@pytest.mark.parametrize("steps", [1, 2])
def test_second_derivative_is_refused(tensors, steps: int) -> None:
    state, parameters = tensors
    state = state.requires_grad_()
    result = fused_rollout(state, parameters, steps=steps, seed=3, **SETTINGS)
    (grad,) = torch.autograd.grad(result.pow(3).sum(), state, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        (grad.square().sum() + state.square().sum()).backward()


@pytest.mark.parametrize("steps", [1, 2])
def test_forward_mode_is_refused(tensors, steps: int) -> None:
    state, parameters = tensors

    def rollout(state: torch.Tensor) -> torch.Tensor:
        return fused_rollout(state, parameters, steps=steps, seed=3, **SETTINGS)

    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(rollout, (state,), (state,))


@pytest.mark.parametrize("steps", [1, 2])
def test_functional_gradient_works(tensors, steps: int) -> None:
    state, parameters = tensors

    def loss(state: torch.Tensor) -> torch.Tensor:
        return fused_rollout(state, parameters, steps=steps, seed=3, **SETTINGS).square().sum()

    leaf = state.clone().requires_grad_()
    assert torch.equal(torch.func.grad(loss)(state), torch.autograd.grad(loss(leaf), leaf)[0])


@pytest.mark.parametrize("steps", [1, 2])
def test_unneeded_gradients_are_none(tensors, steps: int) -> None:
    state, parameters = tensors
    bias = parameters[3].clone().requires_grad_()
    fused_rollout(state, (*parameters[:3], bias), steps=steps, seed=3, **SETTINGS).sum().backward()
    assert bias.grad is not None
    assert state.grad is None


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_overflow_of_half_precision_is_reported(tensors) -> None:
    state, parameters = tensors
    state = torch.ones_like(state).requires_grad_()
    w1, b1, w2, b2 = parameters
    settings = SETTINGS | {"precision": "fp16"}
    large = (w1 * 0 + 300.0, b1, w2 * 0 + 300.0, b2)
    result = fused_rollout(state, large, steps=2, seed=None, **settings)
    grads = torch.autograd.grad(result.sum(), (state,))
    assert grads[0].isnan().all()


def test_empty_batch(device: torch.device) -> None:
    parameters = tuple(p.to(device) for p in make_problem(Case(3, 3)).parameters)
    state = torch.zeros(0, 16, 4, 4, device=device, requires_grad=True)
    result = fused_rollout(state, parameters, steps=2, seed=3, **SETTINGS)
    result.sum().backward()
    assert state.grad.shape == state.shape


def test_shapes_are_checked(tensors) -> None:
    state, parameters = tensors
    with pytest.raises(ValueError, match="parameters for 12 channels"):
        fused_rollout(state[:, :12], parameters, steps=1, seed=3, **SETTINGS)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        fused_rollout(state, parameters, steps=-1, seed=3, **SETTINGS)
    with pytest.raises(RuntimeError, match="float32"):
        fused_rollout(state.double(), parameters, steps=1, seed=3, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float64}, "float32 state"),
        ({"channels": 33}, "up to 32 channels"),
        ({"hidden": 257}, "up to 256 hidden"),
        ({"precision": "tf32"}, "precisions"),
        ({"precision": "ieee", "channels": 32, "hidden": 256}, "on chip"),
    ],
)
def test_reasons(change: dict, words: str, device: torch.device) -> None:
    asked = {"dtype": torch.float32, "channels": 16, "hidden": 128, "precision": "fp16"}
    assert fused_reasons(device, **asked) == []
    (reason,) = fused_reasons(device, **(asked | change))
    assert words in reason
    assert reason.endswith(".")


def test_a_cpu_is_refused_outside_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    (reason,) = fused_reasons("cpu", torch.float32, 16, 128, "fp16")
    assert "CUDA" in reason


def given_back(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape whose memory has been given back."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def backward_arguments(tensors, steps: int) -> list[torch.Tensor]:
    """Return the tensors that the backward operator takes after a rollout of some steps."""
    state, parameters = tensors
    counter = torch.tensor([1, 2, steps], device=state.device)
    settings = (TUTORIAL.json, 2, 0.5, "ieee", 1, True)
    result, *saved = torch.ops.fastnca.rollout_forward(state, *parameters, counter, *settings, True)
    return [result, *saved, *parameters, counter]


@pytest.mark.parametrize("number", range(8))
def test_memory_that_was_given_back_is_refused(tensors, number: int) -> None:
    arguments = backward_arguments(tensors, 2)
    arguments[number] = given_back(arguments[number])
    with pytest.raises(ValueError, match="its storage has 0"):
        torch.ops.fastnca.rollout_backward(*arguments, TUTORIAL.json, 2, 0.5, "ieee", 1, True)


@pytest.mark.parametrize("steps", [1, 2])
def test_saved_tensors_that_were_given_back_are_refused(tensors, steps: int) -> None:
    state, parameters = tensors
    with torch.autograd.graph.saved_tensors_hooks(given_back, lambda tensor: tensor):
        result = fused_rollout(state.requires_grad_(), parameters, steps=steps, seed=1, **SETTINGS)
    with pytest.raises(ValueError, match="its storage has 0"):
        result.sum().backward()


@pytest.mark.parametrize("count", [-1, -(2**40)])
def test_negative_numbers_of_steps_are_zero(tensors, count: int) -> None:
    """The number of steps is read on the device, where an error cannot be raised."""
    settings = (TUTORIAL.json, 2, 0.5, "ieee", 1, True)
    given, expected = (backward_arguments(tensors, each) for each in (count, 0))
    assert torch.equal(given[0], expected[0])
    found = torch.ops.fastnca.rollout_backward(*given, *settings)
    wanted = torch.ops.fastnca.rollout_backward(*expected, *settings)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_more_steps_than_the_most_are_the_most(tensors) -> None:
    given, expected = (backward_arguments(tensors, each) for each in (2**40, 2))
    assert torch.equal(given[0], expected[0])


@pytest.mark.long
def test_import_needs_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import fastnca.backends.triton_fused; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "imported"
