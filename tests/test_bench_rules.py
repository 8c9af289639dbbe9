"""The bench of rules: what is wrong gets no time, and the page shows what was measured."""

from pathlib import Path

import pytest
import torch

from bench.rules import CASES, RESULTS, Case, check, make_start, markdown, providers
from fastnca import RULES, NeuralCA
from tests.helpers import CPU_DEFAULT

SMALL = Case("texture", 12, 9, 2, 4)


def make_model(backend="torch"):
    weights, state = make_start(SMALL)
    model = NeuralCA(SMALL.channels, rule=RULES["texture"], backend=backend)
    model.load_state_dict(weights)
    return weights, state, model


@pytest.mark.parametrize("backend", ["torch", CPU_DEFAULT])
def test_a_right_model_is_timed(backend):
    check(SMALL, *make_model(backend))


def test_a_wrong_model_is_not():
    weights, state, model = make_model()
    with torch.no_grad():
        model.update_net[2].weight[0, 0] += 0.5
    with pytest.raises(ValueError, match=r"torch: .* of the values, gradients"):
        check(SMALL, weights, state, model)


def test_everybody_starts_from_the_same_weights():
    weights, _ = make_start(SMALL)
    for _, model in providers(SMALL, weights):
        found = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
        assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_the_page_shows_the_committed_results():
    page = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
    assert markdown(RESULTS) in page, f"put this there:\n{markdown(RESULTS)}"
    assert all(f"| {name} |" in page for name in CASES)
