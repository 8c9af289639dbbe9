"""Rules that are not the tutorial's: outputs and every gradient of the kernels, and their bits."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from fastnca.backends.triton_fused.limits import size_reasons
from fastnca.rule import Rule
from tests.kernels import variant_scenarios as scenarios
from tests.kernels.helpers import without_graphs
from tests.kernels.variant_cases import (
    BANKS,
    CASES,
    Variant,
    VariantProblem,
    draw,
    last_state,
    make_variant,
    run_variant,
    variant_violations,
)
from tests.rule_cases import EVEN, ODD, SKEW

OVERFLOWS = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
TEXTURE = Rule(
    BANKS[4]["texture"], padding="circular", alive="none", hidden=(21,), final_bias=False
)
LONG = [
    Variant(replace(TEXTURE, inputs=1), 13, 3, 9, steps=5, precision="fp16"),
    Variant(Rule(padding="circular", hidden=(10,), inputs=3), 16, 5, 15, steps=5, rate=None),
    Variant(Rule((SKEW, ODD), alive="none", hidden=(17,)), 3, 7, 10, steps=5),
    Variant(
        Rule((EVEN, ODD), padding="circular", alive_threshold=0.25, hidden=(16,), final_bias=False),
        20,
        17,
        5,
        steps=5,
        precision="fp16",
    ),
]
SHORT = [replace(case, steps=steps) for case, steps in zip(LONG, (1, 2, 1, 2), strict=True)]
SINGLE = [case for case in CASES if case.steps == 1][::4]


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """Whether all results are the same bits."""
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def check(
    case: Variant, problem: VariantProblem, device: torch.device, **options
) -> tuple[Tensor, ...]:
    """Run the kernels, compare the results with the oracle's and return them."""
    found = run_variant(case, problem, device, **options)
    assert not variant_violations(case, problem, found)
    return found


def count_of(steps: int, device: torch.device) -> Tensor:
    """Return a number of steps for the device; a single step is a rollout with it."""
    return torch.tensor(steps, device=device)


@pytest.mark.one_in(24)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_variant_matches_oracle(case: Variant, device: torch.device) -> None:
    check(case, make_variant(case), device)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_step_as_a_rollout_matches_oracle(case: Variant, device: torch.device) -> None:
    check(case, make_variant(case), device, device_steps=count_of(1, device))


def test_cases_cover_the_rules() -> None:
    assert len(set(map(str, CASES))) == len(CASES) >= 140
    assert sum(case.is_odd_torus for case in CASES) >= 60
    found = {
        (rule.padding, rule.alive, len(rule.filters), rule.inputs, rule.final_bias)
        for rule in (case.rule for case in CASES)
    }
    combinations = product(("zeros", "circular"), ("both", "none"), BANKS, (0, 1, 3), (True, False))
    assert found >= set(combinations)
    assert {case.rule.filters for case in CASES} >= {
        Rule(bank).filters for banks in BANKS.values() for bank in banks.values()
    }
    assert {case.rule.alive_threshold for case in CASES} >= {0.0, 0.1, 0.25, 0.6}
    assert len(SINGLE) >= 9
    for case in CASES:
        assert not size_reasons(case.precision, case.channels, *case.rule.hidden, capability=9)


@pytest.mark.long
def test_cases_have_cells_that_die() -> None:
    """Either half of the alive test decides in many cases, and the border in most of a torus."""
    seen = dict.fromkeys(("before", "after", "zeros"), 0)
    for case in CASES:
        rules = {"here": case.rule, "zeros": replace(case.rule, padding="zeros")}
        if case.rule.alive == "both":
            rules |= {alive: replace(case.rule, alive=alive) for alive in ("before", "after")}
        state, parameters, _ = draw(case)
        ends = {name: last_state(rule, state, parameters, case) for name, rule in rules.items()}
        for name in seen.keys() & ends.keys():
            seen[name] += not torch.equal(ends[name], ends["here"])
    assert seen["before"] >= 20
    assert seen["after"] >= 30
    assert seen["zeros"] >= 80


def test_fresh_memory_is_no_number() -> None:
    assert torch.empty(7).isnan().all()
    assert torch.empty_like(torch.zeros(3, 5)).isnan().all()
    assert torch.zeros(2).new_empty(4).isnan().all()


@pytest.mark.long
@pytest.mark.parametrize(("case", "every"), list(zip(LONG, (2, 7, 3, 2), strict=True)), ids=str)
def test_checkpoints(case: Variant, every: int, device: torch.device) -> None:
    problem = make_variant(case)
    plain = run_variant(case, problem, device)
    assert equal(plain, check(case, problem, device, checkpoint_every=every))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_the_device_takes_fewer_steps(case: Variant, device: torch.device) -> None:
    fewer = replace(case, steps=3)
    problem = make_variant(fewer)
    found = check(fewer, problem, device, steps=5, device_steps=count_of(3, device))
    assert torch.equal(found[0], run_variant(fewer, problem, device, wanted=slice(0))[0])


@pytest.mark.long
def test_launched_steps_are_replayed_ones(device: torch.device) -> None:
    case = replace(LONG[0], steps=9)  # long enough for a replay on a GPU
    problem = make_variant(case)
    with without_graphs():
        launched = check(case, problem, device)
    assert equal(launched, run_variant(case, problem, device))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_bits(case: Variant, device: torch.device) -> None:
    """They depend neither on the run, nor on strides, nor on whether gradients are wanted."""
    problem = make_variant(case)
    found = check(case, problem, device)
    assert equal(found, run_variant(case, problem, device))

    def last_channels(tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)

    strided = replace(problem, state=last_channels(problem.state), grad=last_channels(problem.grad))
    assert strided.state.is_contiguous() == (1 in case.shape[2:])
    assert equal(found, run_variant(case, strided, device))
    assert torch.equal(found[0], run_variant(case, problem, device, wanted=slice(0))[0])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_only_some_gradients(case: Variant, device: torch.device) -> None:
    """Gradients of the state alone, or of the parameters alone, are those of all."""
    problem = make_variant(case)
    _, state, *parameters = run_variant(case, problem, device)
    assert torch.equal(run_variant(case, problem, device, wanted=slice(0, 1))[1], state)
    alone = run_variant(case, problem, device, wanted=slice(1, None))[1:]
    assert equal(tuple(parameters), alone)


@pytest.mark.long
def test_a_torus_rolls(device: torch.device) -> None:
    assert not scenarios.torus_errors(device)


@pytest.mark.long
def test_every_tap_both_ways(device: torch.device) -> None:
    for form in scenarios.forms(device):
        assert not scenarios.view_errors(device, form)


@pytest.mark.long
def test_living_corners(device: torch.device) -> None:
    for form in scenarios.forms(device):
        assert not scenarios.corner_errors(device, form)


@pytest.mark.long
def test_life_spreads(device: torch.device) -> None:
    assert not scenarios.spread_errors(device)


@pytest.mark.long
def test_every_cell_lives_without_an_alive_test(device: torch.device) -> None:
    assert not scenarios.every_cell_errors(device)


@pytest.mark.long
def test_cells_at_other_thresholds(device: torch.device) -> None:
    for form in scenarios.forms(device):
        assert not scenarios.threshold_errors(device, form)


@pytest.mark.long
@OVERFLOWS
def test_inputs_stay(device: torch.device) -> None:
    assert not scenarios.inputs_errors(device)


def test_gradients_of_inputs(device: torch.device) -> None:
    assert not scenarios.input_gradient_errors(device)


@pytest.mark.long
@OVERFLOWS
def test_not_finite_values_spread(device: torch.device) -> None:
    assert not scenarios.not_finite_errors(device)
