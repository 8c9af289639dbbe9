"""A single step has kernels of its own: the reference's results, and the rollout's."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout, single_step
from tests.kernels.helpers import FIRST_STEP, SEED, Case, make_problem, run_kernels, violations
from tests.kernels.scenarios import scale_errors
from tests.kernels.test_rollout import CASES as ROLLOUTS

CASES = list(
    dict.fromkeys(
        [
            *(replace(case, steps=1) for case in ROLLOUTS if case.steps),
            *(Case(h, w, steps=1, precision="fp16") for h, w in [(13, 5), (14, 6), (29, 13)]),
            *(Case(h, w, steps=1) for h, w in [(2, 6), (3, 7), (4, 12), (5, 13)]),
            Case(17, 9, steps=1, precision="fp16", pattern="top"),
            Case(7, 13, steps=1, precision="fp16", channels=20, hidden=40),
            Case(33, 65, steps=1, precision="fp16", pattern="seed", rate=None),
        ]
    )
)
SETTINGS = {"steps": 1, "seed": 3, "first_step": 0, "update_rate": 0.5, "precision": "fp16"}
OVERFLOWS = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)


@pytest.fixture
def tensors(device: torch.device) -> tuple[Tensor, ...]:
    """A state, four parameters and a gradient, of two tiles and two programs."""
    problem = make_problem(Case(9, 17, precision="fp16", steps=1))
    tensors = (problem.state, *problem.parameters, problem.grad)
    return tuple(tensor.clone().to(device) for tensor in tensors)


def outcome(tensors: tuple[Tensor, ...], **options) -> tuple[Tensor, ...]:
    """Return the state after a step, and all gradients."""
    *leaves, grad = tensors
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    result = fused_rollout(leaves[0], tuple(leaves[1:]), **(SETTINGS | options))
    return result.detach(), *torch.autograd.grad(result, leaves, grad)


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.one_in(22)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_matches_reference(case: Case, device: torch.device) -> None:
    problem = make_problem(case)
    assert not violations(case, problem, run_kernels(case, problem, device))


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 70


@pytest.mark.long
@pytest.mark.parametrize("precision", ["ieee", "fp16"])
@pytest.mark.parametrize("rate", [0.5, None])
def test_step_is_a_rollout_of_one_step(
    precision: str, rate: float | None, device: torch.device
) -> None:
    case = Case(15, 17, batch=2, precision=precision, rate=rate, steps=1)
    problem = make_problem(case)
    found = run_kernels(case, problem, device)
    expected = run_kernels(case, problem, device, rollout=True)
    assert torch.equal(found[0], expected[0])
    # Only the gradients of the Sobel features are rounded once less, in fp16.
    assert precision == "fp16" or torch.equal(found[1], expected[1])
    for got, wanted in zip(found[1:], expected[1:], strict=True):
        assert (got - wanted).abs().max() <= 1e-3 * wanted.abs().max()


@pytest.mark.long
def test_repetition_gives_the_same_bits(tensors) -> None:
    assert equal(outcome(tensors), outcome(tensors))


@pytest.mark.long
@OVERFLOWS
def test_backward_can_be_repeated(tensors) -> None:
    *leaves, grad = tensors
    leaves = [leaf.requires_grad_() for leaf in leaves]
    result = fused_rollout(leaves[0], tuple(leaves[1:]), **SETTINGS)
    infinite = torch.full_like(grad, float("inf"))
    first = torch.autograd.grad(result, leaves, grad, retain_graph=True)
    spoilt = torch.autograd.grad(result, leaves, infinite, retain_graph=True)
    assert all(s.isnan().all() for s in spoilt)
    assert equal(first, torch.autograd.grad(result, leaves, grad))


@pytest.mark.one_in(10)
@pytest.mark.parametrize("seed", [0, 5, 2**31 + 7, 2**32 - 1, SEED])
@pytest.mark.parametrize("step", [0, 2**31 + 3, FIRST_STEP, 2**40 + 1])
def test_seed_as_a_tensor_draws_the_same_mask(tensors, seed: int, step: int) -> None:
    state, *parameters, _ = tensors
    given = torch.tensor((seed + 2**63) % 2**64 - 2**63, device=state.device)
    options = SETTINGS | {"first_step": step}
    found = fused_rollout(state, tuple(parameters), **(options | {"seed": given}))
    plain = fused_rollout(state, tuple(parameters), **(options | {"seed": seed}))
    as_rollout = options | {"seed": seed, "device_steps": torch.tensor(1, device=state.device)}
    assert torch.equal(found, plain)
    assert torch.equal(found, fused_rollout(state, tuple(parameters), **as_rollout))


@pytest.mark.long
def test_any_strides_of_all_tensors(tensors) -> None:
    def strided(tensor: Tensor) -> Tensor:
        return torch.stack((tensor, tensor), dim=-1)[..., 0]

    plain = outcome(tensors)
    found = outcome(tuple(strided(tensor) for tensor in tensors))
    assert equal(plain, found)
    assert all(tensor.is_contiguous() for tensor in found[:2])


@pytest.mark.long
def test_any_alignment_of_all_tensors(tensors) -> None:
    def shifted(tensor: Tensor) -> Tensor:
        memory = torch.empty(tensor.numel() + 1, device=tensor.device)
        return memory[1:].view_as(tensor).copy_(tensor)

    assert equal(outcome(tensors), outcome(tuple(shifted(tensor) for tensor in tensors)))


@pytest.mark.long
def test_expanded_gradient(tensors) -> None:
    state, *parameters, grad = tensors
    ones = torch.ones((), device=grad.device).expand_as(grad)
    assert equal(
        outcome((state, *parameters, ones)), outcome((state, *parameters, ones.contiguous()))
    )


@pytest.mark.one_in(4)
@pytest.mark.parametrize("exponent", [-60, -20, 20, 60])
def test_gradients_scale_with_powers_of_two(tensors, exponent: int) -> None:
    *rest, grad = tensors
    plain = outcome((*rest, grad))[1:]
    found = outcome((*rest, grad * 2.0**exponent))[1:]
    assert equal(tuple(g * 2.0**exponent for g in plain), found)


@pytest.mark.long
def test_grids_with_gradients_of_any_size(device: torch.device) -> None:
    assert not scale_errors(device)


@OVERFLOWS
def test_dead_grids_hide_large_weights(tensors) -> None:
    state, w1, b1, w2, b2, grad = tensors
    state[:, 3] = -1.0
    grads = outcome((state, w1 * 1e9, b1, w2, b2, grad))[1:]
    assert not any(grad.any() for grad in grads)


def spoil(kind: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Let a value overflow that reaches a gradient."""
    state, w1, b1, w2, b2, grad = (tensor.clone() for tensor in tensors)
    state[:, 3] = 1.0
    match kind:
        case "first layer":
            w1[2, 5] = 1e6
        case "first layer, downwards":
            w1[2, 5] = -1e6
        case "second layer":
            w2[5, 2] = -1e6
        case "hidden unit":
            b1[3] = 7e4
            w2[3, 3] = 0.1  # of alpha: the cells stay alive
        case "state":
            state[0, 7, 4, 4] = 1e6
        case "way back":
            w2[:] = 3e4
            w1[:] = 0.0
            b1[:] = 1.0
        case "gradient":
            grad[0, 2, 3, 3] = float("inf")
        case "no number":
            grad[0, 2, 3, 3] = float("nan")
    return state, w1, b1, w2, b2, grad


@pytest.mark.one_in(16)
@OVERFLOWS
@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize(
    "kind",
    [
        "first layer",
        "first layer, downwards",
        "second layer",
        "hidden unit",
        "state",
        "way back",
        "gradient",
        "no number",
    ],
)
def test_overflow_makes_all_gradients_nan(tensors, kind: str, rate: float) -> None:
    if kind == "way back" and rate == 0.0:
        pytest.skip("nothing goes back through the network")
    grads = outcome(spoil(kind, tensors), update_rate=rate)[1:]
    assert all(grad.isnan().all() for grad in grads)


def test_changes_in_place_are_noticed(tensors) -> None:
    state, *parameters, _ = tensors
    parameters[0].requires_grad_()
    result = fused_rollout(state, tuple(parameters), **SETTINGS)
    state.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@pytest.mark.long
def test_saved_tensors_may_move(tensors) -> None:
    expected = outcome(tensors)
    with torch.autograd.graph.save_on_cpu():
        assert equal(expected, outcome(tensors))


def test_what_does_not_suit_is_a_rollout(tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(tensors, device_steps=torch.tensor(1, device=tensors[0].device))
    monkeypatch.setattr(single_step, "MAX_NUMBERS", 9)
    single_step._prepared.clear()
    assert equal(expected, outcome(tensors))
    single_step._prepared.clear()


def test_kinds_are_forgotten(tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_step, "MAX_PREPARED", 2)
    single_step._prepared.clear()
    state, *parameters, _ = tensors
    for width in (1, 2, 3):
        fused_rollout(state[..., :width], tuple(parameters), **SETTINGS)
    assert len(single_step._prepared) == 1


def test_changed_parameters_are_checked_again(tensors) -> None:
    state, w1, b1, w2, b2, _ = tensors
    fused_rollout(state, (w1, b1, w2, b2), **SETTINGS)
    with pytest.raises(RuntimeError, match="b1 must be float32"):
        fused_rollout(state, (w1, b1.double(), w2, b2), **SETTINGS)
    with pytest.raises(ValueError, match="must have the shapes"):
        fused_rollout(state, (w1, b1[:-1], w2, b2), **SETTINGS)
    with pytest.raises(RuntimeError, match="float32 state"):
        fused_rollout(state.double(), (w1, b1, w2, b2), **SETTINGS)


def test_left_over_tensors_of_a_transform(tensors) -> None:
    state, *parameters, _ = tensors
    left = []
    torch.func.grad(lambda s: (left.append(s), s.sum())[1])(state)
    parameters[0].requires_grad_()
    found = fused_rollout(left[0], tuple(parameters), **SETTINGS)
    assert torch.equal(found, fused_rollout(state, tuple(parameters), **SETTINGS))
