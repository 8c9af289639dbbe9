"""A rule as a value: what it takes and refuses, equality, JSON, and the sentences it is told by."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from fastnca import reference
from fastnca.rule import ACTIVATIONS, CHANNELS, FILTERS, RULES, Rule
from fastnca.states import ALIVE_THRESHOLD
from tests.rule_cases import CASES, VALUES

NAMES = [field.name for field in fields(Rule)]
NAN, INFINITE = float("nan"), float("inf")
ONES = ((1, 1, 1),) * 3

REFUSED = [
    # field, value, error, what the sentence says beside the field
    ("filters", "identity", TypeError, "sequence of names or 3x3 numbers, got 'identity'"),
    ("filters", 3, TypeError, "sequence of names or 3x3 numbers, got 3"),
    ("filters", None, TypeError, "sequence of names or 3x3 numbers, got None"),
    ("filters", (), ValueError, "1 to 16 filters, got 0"),
    ("filters", ("identity",) * 17, ValueError, "1 to 16 filters, got 17"),
    ("filters", ("gauss",), ValueError, "sobel_y, laplacian or 3x3 numbers, got the name 'gauss'"),
    ("filter", (5,), ValueError, "three rows of three numbers, got 5"),
    ("filter", (ONES[:2],), ValueError, "three rows of three numbers, got ((1, 1, 1), (1, 1, 1))"),
    ("filter", (((1, 1),) * 3,), ValueError, "three rows of three numbers, got ((1, 1), (1, 1)"),
    ("filter", (((1, 1, "a"),) * 3,), TypeError, "must be a number, got 'a'"),
    ("filter", (((1, 1, True),) * 3,), TypeError, "must be a number, got True"),
    ("filter", (((1, 1, NAN),) * 3,), ValueError, "must be finite, got nan"),
    ("learn_filters", 1, TypeError, "True or False, got 1"),
    ("learn_filters", None, TypeError, "True or False, got None"),
    ("padding", "wrap", ValueError, "zeros, circular, reflect, replicate, got 'wrap'"),
    ("padding", None, ValueError, "zeros, circular, reflect, replicate, got None"),
    ("padding", ["zeros"], ValueError, "zeros, circular, reflect, replicate, got ['zeros']"),
    ("alive", "never", ValueError, "both, before, after, none, got 'never'"),
    ("alive", None, ValueError, "both, before, after, none, got None"),
    ("alive", True, ValueError, "both, before, after, none, got True"),
    ("alive_threshold", "0.1", TypeError, "must be a number, got '0.1'"),
    ("alive_threshold", True, TypeError, "must be a number, got True"),
    ("alive_threshold", -0.1, ValueError, "at least 0, got -0.1"),
    ("alive_threshold", INFINITE, ValueError, "must be finite, got inf"),
    ("hidden", 128, TypeError, "sequence of widths, such as (128,), got 128"),
    ("hidden", "128", TypeError, "sequence of widths, such as (128,), got '128'"),
    ("hidden", None, TypeError, "sequence of widths, such as (128,), got None"),
    ("hidden", (1.5,), TypeError, "must hold ints, got 1.5"),
    ("hidden", (True,), TypeError, "must hold ints, got True"),
    ("hidden", (0,), ValueError, "at least 1 unit, got 0"),
    ("hidden", (4,) * 9, ValueError, "at most 8 hidden layers, got 9"),
    ("activation", "sin", ValueError, "silu, tanh, sigmoid, got 'sin'"),
    ("activation", None, ValueError, "silu, tanh, sigmoid, got None"),
    ("final_bias", 0, TypeError, "True or False, got 0"),
    ("inputs", 1.0, TypeError, "must be an int, got float"),
    ("inputs", True, TypeError, "must be an int, got bool"),
    ("inputs", "2", TypeError, "must be an int, got str"),
    ("inputs", -1, ValueError, "at least 0, got -1"),
    ("clamp", 1, TypeError, "None or (lowest, highest), got 1"),
    ("clamp", (1,), TypeError, "None or (lowest, highest), got (1,)"),
    ("clamp", "ab", TypeError, "None or (lowest, highest), got 'ab'"),
    ("clamp", ("a", 1), TypeError, "must be a number, got 'a'"),
    ("clamp", (-1, INFINITE), ValueError, "must be finite, got inf"),
    ("clamp", (1, 2), ValueError, "two limits with 0 between them, got (1.0, 2.0)"),
    ("clamp", (1, -1), ValueError, "two limits with 0 between them, got (1.0, -1.0)"),
    ("clamp", (0, 0), ValueError, "two limits with 0 between them, got (0.0, 0.0)"),
    ("step_size", "1", TypeError, "must be a number, got '1'"),
    ("step_size", None, TypeError, "must be a number, got None"),
    ("step_size", 0, ValueError, "must be above 0, got 0"),
    ("step_size", -1, ValueError, "must be above 0, got -1"),
    ("step_size", NAN, ValueError, "must be finite, got nan"),
]


@pytest.mark.parametrize(("field", "value", "error", "said"), REFUSED)
def test_a_refusal_says_field_what_was_expected_and_what_came(field, value, error, said):
    name = "filters" if field == "filter" else field
    for make in (lambda: Rule(**{name: value}), lambda: Rule.from_dict({name: value})):
        with pytest.raises(error) as caught:
            make()
        assert type(caught.value) is error
        assert field in str(caught.value)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_field_is_checked():
    assert {field for field, *_ in REFUSED} - {"filter"} == set(NAMES)


@pytest.mark.parametrize("field", ["filters", "alive_threshold", "clamp", "step_size"])
def test_ints_that_no_float_holds_are_refused_like_infinity(field):
    huge = 10**400
    value = {"filters": (((huge, 0, 0),) * 3,), "clamp": (-huge, huge)}.get(field, huge)
    with pytest.raises(ValueError, match="must be finite"):
        Rule(**{field: value})


def test_taps_that_no_float32_holds_are_refused():
    with pytest.raises(ValueError, match="must fit float32, got 1e\\+39"):
        Rule(filters=(((1, 1, 1e39),) * 3,))


def test_the_default_is_the_tutorials_rule():
    rule = Rule()
    assert rule == RULES["growing"]
    assert rule.filters == ("identity", "sobel_x", "sobel_y")
    assert (rule.padding, rule.alive, rule.hidden) == ("zeros", "both", (128,))
    assert rule.alive_threshold == ALIVE_THRESHOLD
    assert (rule.learn_filters, rule.final_bias, rule.inputs) == (False, True, 0)
    assert (rule.activation, rule.clamp, rule.step_size) == ("relu", None, 1.0)
    assert rule.changed == ()


def test_the_texture_rule_is_that_of_self_organising_textures():
    rule = RULES["texture"]
    changed = ("filters", "padding", "alive", "hidden", "final_bias")
    assert rule.changed == changed
    assert rule.shapes(12)["update_net.0.weight"] == (96, 48, 1, 1)
    assert rule.shapes(12)["update_net.2.weight"] == (12, 96, 1, 1)
    assert "update_net.2.bias" not in rule.shapes(12)
    assert RULES.keys() == CHANNELS.keys()


def test_filters_are_what_their_names_say():
    taps = {name: torch.tensor(rows) for name, rows in FILTERS.items()}
    ramp = torch.arange(3.0).expand(3, 3)  # grows to the right by 1
    assert (taps["sobel_x"] * ramp).sum() == (taps["sobel_y"] * ramp.T).sum() == 1
    assert (taps["sobel_x"] * ramp.T).sum() == (taps["sobel_y"] * ramp).sum() == 0
    assert (taps["identity"] * ramp).sum() == 1
    assert taps["laplacian"].sum() == 0
    assert taps["laplacian"][1].tolist() == [0.25, -1.5, 0.25]
    assert torch.equal(taps["laplacian"], taps["laplacian"].flip(0, 1))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("kind", [tuple, list, np.array, torch.tensor], ids=lambda k: k.__name__)
def test_numbers_of_a_named_filter_become_its_name(name, kind):
    numbers = kind([list(row) for row in FILTERS[name]])
    assert Rule(filters=(numbers,)).filters == (name,)
    assert Rule(filters=[numbers, "identity"]) == Rule(filters=(name, "identity"))


def test_numbers_are_kept_as_floats():
    rule = Rule(filters=(((1, 2, 3), (4, 5, 6), (7, 8, 9)), "identity"))
    assert rule.filters[0] == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))
    assert all(type(tap) is float for row in rule.filters[0] for tap in row)
    assert rule.taps == (rule.filters[0], FILTERS["identity"])
    assert len(Rule(filters=("identity",) * 16).taps) == 16


def test_taps_are_rounded_to_what_a_model_holds():
    rule = Rule(filters=(((0.1, -0.2, 0.3),) * 3,))
    held = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float32).double().tolist()
    assert rule.taps == ((tuple(held),) * 3,)
    assert rule == Rule(filters=(np.array([[0.1, -0.2, 0.3]] * 3, np.float32),))
    assert replace(rule, filters=rule.taps) == rule


def test_one_rule_has_one_spelling():
    spelled = Rule(["identity"], hidden=[4, 5], clamp=[-1, 2], step_size=1, alive_threshold=0)
    assert spelled == Rule(("identity",), hidden=(4, 5), clamp=(-1.0, 2.0), alive_threshold=0.0)
    assert type(spelled.hidden) is type(spelled.clamp) is type(spelled.filters) is tuple
    assert type(spelled.step_size) is type(spelled.alive_threshold) is float


def test_a_threshold_without_an_alive_test_tells_no_rules_apart():
    assert Rule(alive="none", alive_threshold=0.7) == Rule(alive="none")
    assert Rule(alive="none", alive_threshold=0.7).changed == ("alive",)
    assert Rule(alive="after", alive_threshold=0.7) != Rule(alive="after")


def test_alive_says_when():
    when = {
        name: (Rule(alive=name).alive_before, Rule(alive=name).alive_after)
        for name in VALUES["alive"]
    }
    assert when == {
        "both": (True, True),
        "before": (True, False),
        "after": (False, True),
        "none": (False, False),
    }


def test_rules_are_equal_hashed_and_copied_by_their_fields():
    rules = {case.rule for case in CASES}
    assert len(rules) > 100
    for rule in rules:
        for twin in (replace(rule), copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
            assert twin == rule
            assert hash(twin) == hash(rule)
            assert twin.changed == rule.changed
    assert Rule() != "Rule()"


@pytest.mark.parametrize("field", NAMES)
def test_a_rule_that_differs_in_one_field_is_another(field):
    for value in VALUES[field]:
        rule = replace(Rule(), **{field: value})
        assert rule.changed == ((field,) if value != getattr(Rule(), field) else ())
        assert (rule == Rule()) == (rule.changed == ())


def test_a_rule_cannot_be_changed():
    rule = Rule()
    with pytest.raises(FrozenInstanceError):
        rule.padding = "circular"
    assert rule == Rule()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_json_gives_the_same_rule(case):
    text = json.dumps(case.rule.to_dict(), allow_nan=False)
    assert case.rule.json == text
    assert list(json.loads(text)) == NAMES
    assert Rule.from_dict(json.loads(text)) == case.rule
    assert json.dumps(Rule.from_dict(json.loads(text)).to_dict()) == text


def test_what_a_dictionary_lacks_has_its_default():
    assert Rule.from_dict({}) == Rule()
    assert Rule.from_dict({"padding": "circular"}) == Rule(padding="circular")


def test_a_dictionary_is_not_shared_with_its_rule():
    values = {"filters": [[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], "hidden": [3]}
    rule = Rule.from_dict(values)
    values["filters"][0][0][0] = 100
    values["hidden"].append(4)
    assert rule == Rule((((1, 2, 3), (4, 5, 6), (7, 8, 9)),), hidden=(3,))
    rule.to_dict()["hidden"].append(4)
    assert rule.hidden == (3,)


@pytest.mark.parametrize("unknown", ["filtres", "channels", "changed", "taps", ""])
def test_an_unknown_field_is_refused_by_name(unknown):
    with pytest.raises(ValueError, match=f"a rule has no field '{unknown}'"):
        Rule.from_dict({"padding": "circular", unknown: 1})


def test_all_unknown_fields_are_named():
    with pytest.raises(ValueError, match="a rule has no field 'a', 'b'"):
        Rule.from_dict({"b": 1, "a": 2})


@pytest.mark.parametrize("values", [None, [], "padding", 3, [("padding", "circular")]])
def test_only_a_mapping_is_a_dictionary_of_a_rule(values):
    with pytest.raises(TypeError, match="must be a mapping of its fields, got"):
        Rule.from_dict(values)


def test_hidden_units_asked_for_beside_a_rule():
    assert Rule().with_hidden(128) == Rule()
    assert Rule().with_hidden(64) == Rule(hidden=(64,))
    assert Rule(padding="circular").with_hidden(64) == Rule(padding="circular", hidden=(64,))
    assert Rule(hidden=(96,)).with_hidden(96) == Rule(hidden=(96,))
    for hidden in ((96,), (), (64, 64)):  # 128 is what a model has when nothing is asked for
        assert Rule(hidden=hidden).with_hidden(128) == Rule(hidden=hidden)


@pytest.mark.parametrize("hidden", [(96,), (), (64, 64)])
def test_hidden_units_that_contradict_a_rule_are_refused(hidden):
    with pytest.raises(ValueError, match="hidden_dim=64 and the rule's hidden=") as caught:
        Rule(hidden=hidden).with_hidden(64)
    assert str(hidden) in str(caught.value)
    with pytest.raises(ValueError, match="differ; give one"):
        reference.NeuralCA(16, 64, rule=Rule(hidden=hidden))


def test_the_sentence_of_a_rule_names_what_is_not_the_tutorials():
    assert str(Rule()) == "Rule()"
    assert str(Rule(padding="circular", hidden=(3, 4))) == (
        "Rule(padding='circular', hidden=(3, 4))"
    )
    for case in CASES:
        assert eval(str(case.rule), {"Rule": Rule}) == case.rule
        assert eval(repr(case.rule), {"Rule": Rule}) == case.rule


def test_a_representation_has_every_field():
    assert all(f"{name}=" in repr(Rule()) for name in NAMES)
    assert str(Rule(inputs=3)) in f"{Rule(inputs=3)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_are_those_of_a_model_and_of_the_cases(case):
    shapes = case.rule.shapes(case.channels)
    model = reference.NeuralCA(case.channels, rule=case.rule)
    for tensors in (model.state_dict(), case.weights()):
        assert list(shapes.items()) == [(name, tuple(t.shape)) for name, t in tensors.items()]


def test_a_model_learns_its_filters_only_if_the_rule_says_so():
    for learns in (False, True):
        model = reference.NeuralCA(5, rule=Rule(learn_filters=learns))
        assert model.perception.filters.requires_grad is learns
        names = {name for name, each in model.named_parameters() if each.requires_grad}
        assert ("perception.filters" in names) is learns


def test_a_new_model_has_the_taps_of_its_rule_and_changes_nothing():
    for case in CASES:
        model = reference.NeuralCA(case.channels, rule=case.rule)
        filters = model.perception.filters.view(case.channels, -1, 3, 3)
        expected = torch.tensor(case.rule.taps).expand_as(filters)
        assert torch.equal(filters, expected)
        if case.rule.alive == "none" and case.rule.clamp is None:
            state = torch.randn(1, case.channels, 4, 4)
            assert torch.equal(model(state), state)


@pytest.mark.parametrize(
    ("alive", "inputs", "least"), [("both", 0, 4), ("after", 2, 6), ("none", 3, 4)]
)
def test_a_state_has_room_for_alpha_and_inputs(alive, inputs, least):
    rule = Rule(alive=alive, inputs=inputs)
    rule.check_channels(least)
    with pytest.raises(
        ValueError, match=f"num_channels must be at least {least} .*got {least - 1}"
    ):
        rule.check_channels(least - 1)


def test_activations_are_the_modules_of_their_names():
    assert set(ACTIVATIONS) == set(reference.ACTIVATIONS)
    for name, kind in reference.ACTIVATIONS.items():
        assert kind.__name__.lower() == name.replace("_", "")
