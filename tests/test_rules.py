"""Every rule on every backend: states and all gradients are the oracle's, or a field is refused."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastnca import BackendError, NeuralCA, reference
from fastnca.rule import ALIVE, PADDINGS, Rule
from tests import rule_oracle
from tests.helpers import ACTIVE, COMPILED, relative_error
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.rule_cases import BASES, CASES, PUBLISHED, Case, Grid, published_cases
from tests.rule_outcomes import EXACT, Outcome, compute, errors, expect, expected

KINDS = ("auto", "reference", "torch", "cpp", "triton")
BACKENDS = [pytest.param(kind, marks=COMPILED if kind == "cpp" else ()) for kind in KINDS]

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def make_model(case: Case, backend: str) -> torch.nn.Module:
    """Make the model of a case, float64, with its weights."""
    model = NeuralCA(case.channels, rule=case.rule, backend=backend).double()
    model.load_state_dict(case.weights())
    return model


def attempt(model: torch.nn.Module, state: Tensor, grid: Grid, seed: int) -> Outcome | str:
    """Roll out a model, or return the sentences of a refusal."""
    try:
        return compute(model, state, grid, seed)
    except BackendError as error:
        return str(error)


def is_promised(backend: str, rule: Rule) -> bool:
    """Tell whether a backend computes a rule in float64, by the package's design."""
    return {
        "auto": True,
        "reference": True,
        "torch": True,
        "cpp": len(rule.filters) <= 4
        and not rule.learn_filters
        and len(rule.hidden) == 1
        and rule.activation == "relu",
        "triton": False,
    }[backend]


TRITON = {  # by field, which of its values the fused kernels compute; all values of other fields
    "filters": lambda filters: len(filters) <= 4,
    "learn_filters": lambda learned: not learned,
    "padding": lambda padding: padding in ("zeros", "circular"),
    "alive": lambda alive: alive in ("both", "none"),
    "hidden": lambda hidden: len(hidden) == 1,
    "activation": lambda activation: activation == "relu",
    "clamp": lambda clamp: clamp is None,
    "step_size": lambda size: size == 1,
}


def beyond_triton(rule: Rule) -> list[str]:
    """Name the fields of a rule that the fused kernels do not compute."""
    return [name for name, computes in TRITON.items() if not computes(getattr(rule, name))]


def make_promised(case: Case, backend: str) -> torch.nn.Module:
    """Make the model of a case; skip what may be refused, which has a test of its own."""
    if not is_promised(backend, case.rule):
        pytest.skip(f"not every rule is computed by {backend}")
    return make_model(case, backend)


def own_fields(rule: Rule) -> list[str]:
    """Name the fields that can keep a backend from a rule; any width of one layer is usual."""
    return [name for name in rule.changed if name != "hidden" or len(rule.hidden) != 1]


def names_one(message: str, names: list[str]) -> bool:
    return any(re.search(rf"\b{name}\b", message) for name in names)


@pytest.mark.one_in(4)
@on_every_backend
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_state_and_every_gradient_equal_the_oracle_or_a_field_is_refused(
    backend, case, monkeypatch
):
    model = make_model(case, backend)
    if backend != "reference":  # which is asked where another backend gives up
        monkeypatch.setattr(reference.NeuralCA, "run_steps", None)
    names = own_fields(case.rule) + ["float64"] * (backend == "triton")
    few = backend == "auto"  # which is another of them
    for grid in case.grids()[3 * few :]:
        found = attempt(model, case.state(grid), grid, case.number)
        if isinstance(found, str):
            assert not is_promised(backend, case.rule), f"{case.rule}: {found}"
            assert names_one(found, names), f"{case.rule}: names none of {names}: {found}"
            continue
        wrong = {k: e for k, e in errors(found, expected(case, grid)).items() if not e <= EXACT}
        assert not wrong, f"{case.rule} on {grid}: relative errors {wrong}"


@on_every_backend
@pytest.mark.parametrize("case", published_cases(), ids=lambda case: case.name)
def test_a_call_is_one_step(backend, case):
    model = make_promised(case, backend)
    for grid in case.grids():
        model.train(grid.training)
        state = case.state(grid)
        torch.manual_seed(3)
        with torch.no_grad():
            end = model(state, 0.4)
        torch.manual_seed(3)
        mask = torch.rand_like(state[:, 0]) < (0.4 if grid.training else 1.0)
        right = rule_oracle.step(state, case.rule, case.weights(), mask)
        assert relative_error(end, right) <= EXACT


class Watching(TorchDispatchMode):
    """Note the operators that are called."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.seen.add(function.name())
        return function(*arguments, **(options or {}))


@ACTIVE
@pytest.mark.parametrize("case", published_cases(), ids=lambda case: case.name)
def test_the_operators_of_a_rollout_compute_the_rule(backend, case):
    """They are what torch.compile keeps of it, the rule as text among their arguments."""
    model = make_promised(case, backend)
    for grid in case.grids():
        with Watching() as mode:
            found = compute(model, case.state(grid), grid, case.number)
        assert {"fastnca::rollout", "fastnca::rollout_gradients"} <= mode.seen
        assert max(errors(found, expected(case, grid)).values()) <= EXACT


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_triton_names_every_field_that_it_does_not_compute(case, monkeypatch):
    """And nothing else: where it computes the rule, what it misses here is a GPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model, names = make_model(case, "triton").float(), beyond_triton(case.rule)
    for grid in case.grids():
        state = case.state(grid).float()
        with pytest.raises(BackendError) as caught:
            model.run_steps(state, 2, 0.5, seed=1)
        found = [reason.split("=")[0] for reason in caught.value.reasons]
        if names:
            assert found == names
            continue
        small = case.rule.padding == "circular" and min(grid.size) < 3
        assert len(found) == 1 + small
        assert "Triton" in found[0] or "CUDA" in found[0]
        assert not small or "torus of at least 3 cells a side" in found[1]


def test_cases_reach_what_is_promised_and_what_is_not():
    promised = {kind: sum(is_promised(kind, case.rule) for case in CASES) for kind in KINDS}
    assert len(CASES) >= 160
    assert len(PUBLISHED) >= 20
    assert promised["torch"] == promised["reference"] == promised["auto"] == len(CASES)
    assert 70 <= promised["cpp"] <= len(CASES) - 50
    beyond = [beyond_triton(case.rule) for case in CASES]
    assert len(beyond) - 100 >= sum(not names for names in beyond) >= 20
    assert {name for names in beyond for name in names} == set(TRITON)
    assert {names[0] for names in beyond if len(names) == 1} == set(TRITON)
    assert any(not own_fields(case.rule) for case in CASES)


@on_every_backend
@pytest.mark.parametrize("size", [(1, 4), (4, 1), (1, 1)])
def test_a_grid_too_narrow_to_reflect_is_refused_in_a_sentence(backend, size):
    model = make_model(Case("narrow", replace(BASES["growing"], padding="reflect"), 5, 3), backend)
    state = torch.zeros(1, 5, *size, dtype=torch.float64)
    for call in (lambda: model(state), lambda: model.run_steps(state, 2)):
        with pytest.raises(ValueError, match="padding='reflect' needs at least 2 cells a side"):
            call()


@on_every_backend
@pytest.mark.parametrize("alive", ["none", "both"])
def test_limits_themselves_have_a_gradient(backend, alive):
    rule = replace(BASES["texture"], clamp=(-0.5, 0.75), alive=alive)
    case = Case("limits", rule, 5, 3)
    grid = Grid((4, 5), 2, 1.0, 1, True)
    model = make_promised(case, backend)
    torch.nn.init.zeros_(model.update_net[2].weight)
    torch.manual_seed(1)
    state = torch.tensor([-0.6, -0.5, 0.0, 0.3, 0.75, 0.8], dtype=torch.float64)
    state = state[torch.randint(6, (2, 5, 4, 5))]
    right = expect(rule, dict(model.state_dict()), state, grid, 3)
    assert right.state.max() > 0.75  # cells that do not update are not limited
    found = compute(model, state, grid, 3)
    assert max(errors(found, right).values()) <= EXACT


@on_every_backend
@pytest.mark.parametrize("alive", ["both", "before", "after"])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_alpha_at_the_threshold_is_dead(backend, alive, padding):
    rule = replace(BASES["growing"], alive=alive, padding=padding, alive_threshold=0.3)
    case = Case("threshold", rule, 5, 2)
    grid = Grid((6, 7), 2, 1.0, 1, True)
    model = make_promised(case, backend)
    for parameter in model.update_net[2].parameters():
        torch.nn.init.zeros_(parameter)
    state = case.state(grid)
    state[:, 3] = 0.3
    state[0, 3, 0, 0] = 0.3 + 1e-15
    found = compute(model, state, grid, 2)
    assert found.state.any(1).sum() == (9 if padding == "circular" else 4)
    right = expect(rule, dict(model.state_dict()), state, grid, 2)
    assert max(errors(found, right).values()) <= EXACT


@on_every_backend
@pytest.mark.parametrize("alive", ALIVE)
@pytest.mark.parametrize("padding", PADDINGS)
def test_growth_from_a_corner(backend, padding, alive):
    rule = replace(BASES["growing"], padding=padding, alive=alive)
    case = Case("corner", rule, 6, 4)
    grid = Grid((11, 13), 1, 1.0, 6, True)
    model = make_promised(case, backend)
    with torch.no_grad():
        model.update_net[2].weight *= 0.3
        model.update_net[2].bias[3] = 0.3
    state = torch.zeros(1, 6, *grid.size, dtype=torch.float64)
    state[..., 0, 0] = 1
    found = compute(model, state, grid, 4)
    right = expect(rule, dict(model.state_dict()), state, grid, 4)
    assert max(errors(found, right).values()) <= EXACT
    if alive in ("both", "before"):  # one cell further in every step
        lives = found.state[0].any(0)
        assert lives.sum() > 12
        assert lives[-1, -1] == (padding == "circular")
