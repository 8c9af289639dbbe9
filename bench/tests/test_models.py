"""Models and states of the cases: the texture rule, the published lizard, what they cost."""

import pytest
import torch

from bench import gate, models
from bench.cases import CLAIMS, TEXTURES, Case
from bench.grown import Grown
from bench.machine import Ceilings, describe
from bench.measure import Bench, measure_case
from bench.models import LIZARD, prepare
from bench.providers import PROVIDERS
from bench.results import SKIPPED
from bench.timing import Clock
from fastnca import NeuralCA

CPU = torch.device("cpu")
NAMES = ["tutorial", "compile", "cpp", "cpp-steps", "torch", "torch-steps", "cax"]
LIZARD_MISSING = pytest.mark.skipif(
    not LIZARD.exists(), reason="the published model is not beside the repository"
)


@pytest.fixture(scope="module")
def grown():
    """A new model's weights, which leave states as they are, and any pool."""
    torch.manual_seed(0)
    weights = {name: value.detach() for name, value in NeuralCA().state_dict().items()}
    return Grown(weights, torch.rand(2, 16, 32, 32))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("compile", "cax")])
@pytest.mark.parametrize("mode", ["rollout+backward", "inference"])
@pytest.mark.parametrize("state", ["texture", pytest.param("lizard", marks=LIZARD_MISSING)])
def test_right_providers_pass_the_gate(name, mode, state, grown):
    provider = PROVIDERS[name]
    if reason := provider.refusal(CPU):
        pytest.skip(reason)
    case = Case(mode, 40, 2, 4, state)
    model, states = prepare(case, grown)
    runner = provider.build(model, CPU)
    assert gate.check(runner, case, states, model, provider.tolerance) is None


@pytest.mark.parametrize("name", ["cpp", "torch"])
def test_another_network_does_not_pass(name, grown):
    case = Case("rollout+backward", 24, 2, 4, "texture")
    model, states = prepare(case, grown)
    provider = PROVIDERS[name]
    if reason := provider.refusal(CPU):
        pytest.skip(reason)
    runner = provider.build(model, CPU)
    with torch.no_grad():
        runner.module.update_net[2].weight[0, 0] += 0.5
    assert "cells differ" in gate.check(runner, case, states, model, provider.tolerance)


@pytest.mark.parametrize(
    "state", ["fresh", "texture", pytest.param("lizard", marks=LIZARD_MISSING)]
)
def test_operations_and_bytes_are_those_of_the_network(state, grown):
    case = Case("inference", 32, 1, 3, state)
    model, states = prepare(case, grown)
    layers = [w for n, w in model.weights.items() if n.startswith("update_net") and w.dim() == 4]
    assert len(layers) == 2
    assert case.flop == case.cell_steps * 2 * sum(w.numel() for w in layers)
    assert states.shape == (1, case.channels, 32, 32)
    assert case.least_bytes == 3 * 2 * states.numel() * states.element_size()
    gradient = Case("rollout+backward", 32, 1, 3, state)
    assert gradient.flop == 3 * case.flop


@LIZARD_MISSING
def test_the_lizard_is_grown(grown):
    model, states = prepare(Case("inference", 64, 2, 1, "lizard"), grown)
    module = NeuralCA(model.channels, rule=model.rule)
    alive = module.get_alive_mask(states).mean(dim=(1, 2, 3))
    assert ((alive > 0.15) & (alive < 0.5)).all()
    assert not torch.equal(states[0], states[1])


def test_a_missing_lizard_is_a_skipped_row(monkeypatch, grown):
    monkeypatch.setattr(models, "LIZARD", LIZARD.with_name("no-such-file.json"))
    machine = describe(CPU, malloc_is_tuned=False)
    bench = Bench(CPU, grown, machine, Ceilings(1e10, 1e11), Clock(CPU), 0.0, 15.0, memory=True)
    providers = [PROVIDERS["tutorial"], PROVIDERS["torch"]]
    rows = measure_case(bench, Case("inference", 64, 1, 1, "lizard"), providers)
    assert [row.status for row in rows] == [SKIPPED, SKIPPED]
    assert {row.reason for row in rows} == {
        "FileNotFoundError: the published model is not beside the repository: no-such-file.json"
    }


def test_claims_have_a_real_pattern_and_textures_their_own_table():
    assert {case.state for case in CLAIMS} == {"fresh", "grown", "lizard"}
    assert {case.state for case in TEXTURES} == {"texture"}
