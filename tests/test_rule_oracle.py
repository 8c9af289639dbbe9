"""The comparison with the oracle can fail: for every field, and for faults of a step."""

import inspect
from dataclasses import fields, replace
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from fastnca import reference
from fastnca.rule import ACTIVATIONS, ALIVE, PADDINGS, Rule
from tests import rule_oracle
from tests.helpers import relative_error
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.rule_cases import BASES, CASES, Case, Grid
from tests.rule_outcomes import EXACT, compute, draw_masks, errors, expect, expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_case_hangs_on_rounding(case):
    """Values as good as at a limit, or at the threshold, would fall on either side."""
    rule, weights = case.rule, case.weights()
    own = case.channels - rule.inputs
    for grid in case.grids():
        state = case.state(grid)
        for mask in draw_masks(grid, case.number):
            new = state[:, :own] + rule.step_size * rule_oracle.update(state, rule, weights)
            near = [(new - limit)[mask[:, None].expand_as(new)] for limit in rule.clamp or ()]
            if rule.alive != "none":
                near += [new[:, 3] - rule.alive_threshold, state[:, 3] - rule.alive_threshold]
            assert not any(((each.abs() < 1e-9) & (each != 0)).any() for each in near)
            state = rule_oracle.step(state, rule, weights, mask)


def test_cases_change_living_cells_and_have_gradients():
    alive = 0
    for case in CASES:
        right = expected(case, case.grids()[0])
        own = case.channels - case.rule.inputs
        alive += bool(
            right.state[:, :own].abs().max() > 0
            and all(gradient.abs().max() > 0 for gradient in right.gradients.values())
        )
    assert alive >= 0.9 * len(CASES)


def fit(weights: dict[str, Tensor], rule: Rule, other: Rule) -> dict[str, Tensor]:
    """Make weights of `rule` those of `other`, by leaving out what it does not have."""
    first, last = (f"update_net.{2 * len(each.hidden)}" for each in (rule, other))
    result = {"perception.filters": weights["perception.filters"]}
    if rule.taps != other.taps:
        taps = torch.tensor(other.taps, dtype=torch.float64)
        result["perception.filters"] = taps.repeat(BASE.channels, 1, 1)[:, None]
    for layer in range(len(other.hidden)):
        for kind in ("weight", "bias"):
            result[f"update_net.{2 * layer}.{kind}"] = weights[f"update_net.{2 * layer}.{kind}"]
    result[f"{last}.weight"] = weights[f"{first}.weight"][: BASE.channels - other.inputs]
    if other.final_bias:
        result[f"{last}.bias"] = weights[f"{first}.bias"][: BASE.channels - other.inputs]
    return result


BASE = Case("base", replace(BASES["growing"], hidden=(9, 9), clamp=(-0.9, 1.2)), 6, 7)
WHERE = Grid((8, 9), 3, 0.12, 3, True)
CHANGES: dict[str, list[tuple]] = {
    "filters": [(BASE.rule.filters, ("identity", "sobel_y", "sobel_x"))],
    "padding": list(combinations(PADDINGS, 2)),
    "alive": list(combinations(ALIVE, 2)),
    "alive_threshold": [(0.1, 0.4)],
    "hidden": [((9, 9), (9,))],
    "activation": list(combinations(ACTIVATIONS, 2)),
    "final_bias": [(True, False)],
    "inputs": [(0, 1), (1, 2)],
    "clamp": [(None, (-0.9, 1.2)), ((-0.9, 1.2), (-0.9, 1.1)), ((-0.9, 1.2), (-0.8, 1.2))],
    "step_size": [(1.0, 0.9)],
    "learn_filters": [(False, True)],
}
PAIRS = [(field, *pair) for field, pairs in CHANGES.items() for pair in pairs]


def test_every_field_has_a_change():
    assert CHANGES.keys() == {field.name for field in fields(Rule)}


@pytest.mark.parametrize(("field", "one", "other"), PAIRS)
def test_a_change_of_one_field_is_noticed(field, one, other):
    rules = [replace(BASE.rule, **{field: value}) for value in (one, other)]
    weights = [fit(BASE.weights(), BASE.rule, rule) for rule in rules]
    model = reference.NeuralCA(BASE.channels, rule=rules[0]).double()
    model.load_state_dict(weights[0])
    found = compute(model, BASE.state(WHERE), WHERE, 5)
    same, changed = (
        errors(found, expect(rule, each, BASE.state(WHERE), WHERE, 5))
        for rule, each in zip(rules, weights, strict=True)
    )
    assert max(same.values()) <= EXACT
    if field == "learn_filters":  # the first values are equal
        assert changed.pop("perception.filters") == float("inf")
        assert max(changed.values()) <= EXACT
    else:
        assert changed["end"] > 1e-3
        assert changed["state"] > 1e-3


MUTANTS = {
    "the pool never wraps": ('"circular" if rule.padding == "circular" else "zeros"', '"zeros"'),
    "beyond the border alpha is 0.2": ('float("-inf")', "0.2"),
    "the threshold is alive": ("nine > rule", "nine >= rule"),
    "taps lie in columns": (
        "for dy in (-1, 0, 1)\n        for dx",
        "for dx in (-1, 0, 1)\n        for dy",
    ),
    "taps are turned around": ("along(y + dy, height", "along(y - dy, height"),
    "filters are blocks": ("bckn", "bkcn"),
    "reflect repeats the border": ('"reflect": 1 if', '"reflect": 0 if'),
    "replicate is zero": ('"replicate": 0 if first else size - 1', '"replicate": None'),
    "circular repeats the border": ("size - 1 if first", "0 if first"),
    "the last layer is active, too": ("if not last:", "if True:"),
    "the last layer has a bias when others do": (
        "if rule.final_bias or not last:",
        "if not last:",
    ),
    "the limits hold for cells that do not update": (
        "torch.where(mask, new, cells)",
        "torch.where(mask, new, cells if rule.clamp is None else cells.clamp(*rule.clamp))",
    ),
    "the limits are those of the update": (
        "cells + rule.step_size * update(state, rule, weights)",
        "cells + (rule.step_size * update(state, rule, weights)).clamp(*rule.clamp or (-9e9, 9e9))",
    ),
    "alive before looks after": ("alive(cells, rule)", "alive(new, rule)"),
    "alive after looks before": ("& alive(new, rule)", "& alive(cells, rule)"),
    "inputs of the dead are cleared": ("0), inputs), 1)", "0), inputs * lives), 1)"),
    "inputs are the first channels": (
        "state.split((state.shape[1] - rule.inputs, rule.inputs), 1)",
        "state.split((rule.inputs, state.shape[1] - rule.inputs), 1)[::-1]",
    ),
    "the step size is left out": ("rule.step_size * update", "update"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_cases_notice_a_fault_of_the_oracle(name):
    """What would not be noticed there is not noticed in a backend either."""
    source = inspect.getsource(rule_oracle)
    old, new = MUTANTS[name]
    assert source.count(old) == 1
    mutant = {"__name__": name}
    exec(source.replace(old, new), mutant)

    noticed = 0
    for case, place in product(CASES, (0, 2)):
        grid = case.grids()[place]
        masks = draw_masks(grid, case.number)
        end = mutant["rollout"](case.state(grid), case.rule, case.weights(), masks)
        noticed += relative_error(end, expected(case, grid).state) > 1e-6
        if noticed == 2:
            return
    raise AssertionError(f"{noticed} cases notice that {name}")
