"""The 8-bit JSON: the published files' keys, the published values back, the cost said."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastnca import NeuralCA, Rule
from fastnca.exporting.distill import (
    QuantisationLoss,
    export_distill,
    quantisation_loss,
    quantised_model,
)
from tests.helpers import excite
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.published import find, growing_names, make_network, read_growing

BAD = {
    "filters": ("identity", "sobel_y", "sobel_x"),
    "learn_filters": True,
    "padding": "reflect",
    "alive": "before",
    "alive_threshold": 0.2,
    "hidden": (8, 8),
    "activation": "tanh",
    "inputs": 1,
    "clamp": (-2.0, 2.0),
    "step_size": 0.5,
}


def published(name="ex3_lizard"):
    """Return a published model as its authors trained it: seed with hidden channels."""
    model = NeuralCA()
    model.load_state_dict(read_growing(name), strict=False)
    model.metadata = {"fill_hidden": True}
    return model


def shaken(name="ex3_lizard", amount=1e-3):
    """Return a published model with weights that 8 bits do not hold."""
    model, draws = published(name), torch.Generator().manual_seed(0)
    for each in model.update_net.parameters():
        each.data += amount * torch.randn(each.shape, generator=draws)
    return model


def small(**changes):
    torch.manual_seed(3)
    return excite(NeuralCA(8, rule=replace(Rule(hidden=(12,)), **changes)))


def read(data):
    """Read the file as `read_growing` does, independently of the exporter: names and weights."""
    layers = []
    for layer in json.loads(data):
        values = np.frombuffer(base64.b64decode(layer["data_b64"]), np.uint8)
        values = values.reshape(layer["in_ch"] + 1, layer["out_ch"]).astype(np.float32) / 255 - 0.5
        values[:-1] *= layer["weight_scale"]
        values[-1] *= layer["bias_scale"]
        layers.append(values)
    return make_network(layers, 3)


def steps_of(data):
    """Return half of the distance between two neighbouring values: of weights, and of biases."""
    layers = json.loads(data)
    return [[layer[key] / 510 for key in ("weight_scale", "bias_scale")] for layer in layers]


def test_the_keys_are_those_of_a_published_file():
    theirs = json.loads(find("distill-growing/ex3_lizard.json").read_text())
    ours = json.loads(export_distill(published()))
    assert [list(layer) for layer in ours] == [list(layer) for layer in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in other.items():
            assert type(mine[key]) is type(value)
            if key not in ("data_b64", "weight_scale", "bias_scale"):
                assert mine[key] == value
        assert len(mine["data_b64"]) == len(other["data_b64"])


def test_published_models_come_back_as_they_are():
    """They are 8 bits already, and the scale is found again."""
    for name in growing_names():
        model = published(name)
        for key, value in read(export_distill(model)).items():
            assert (value - model.state_dict()[key]).abs().max() < 1e-6, (name, key)


def test_the_quantised_model_is_what_a_reader_reads():
    model = small()
    model.metadata = {"size": 12}
    model.eval()
    before, random = torch.get_rng_state(), export_distill(model)
    quantised = quantised_model(model)
    assert torch.equal(before, torch.get_rng_state())
    for key, value in read(random).items():
        assert torch.equal(quantised.state_dict()[key], value), key
        assert not torch.equal(model.state_dict()[key], value)
    assert quantised.metadata == {"size": 12}
    assert quantised.rule == model.rule
    assert not quantised.training


def test_the_largest_error_is_below_that_of_the_plain_scale():
    """Twice the largest value, the plain choice, is off by up to scale / 510."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = excite(NeuralCA(8, 12))
        for key, value in read(export_distill(model)).items():
            true = model.state_dict()[key]
            scale = 2 * float(true.abs().max())
            plain = (((true / scale + 0.5) * 255).round() / 255 - 0.5) * scale
            error, limit = (float((each - true).abs().max()) for each in (value, plain))
            assert error <= limit * (1 + 1e-4), key
            assert error <= scale / 510


def test_blocks_of_the_first_layer_follow_one_another_filter_by_filter():
    model = small()
    for each in model.update_net.parameters():
        each.data.zero_()
    model.update_net[0].weight.data[5, 3 * 2 + 1] = 1.0  # Sobel-x of channel 2
    (layer, _) = json.loads(export_distill(model))
    values = np.frombuffer(base64.b64decode(layer["data_b64"]), np.uint8).reshape(25, 12)
    assert np.argwhere(values == values.max()).tolist() == [[8 + 2, 5]]


def test_biases_that_are_all_zero_stay_zero():
    model = small(final_bias=False)
    data = export_distill(model)
    assert json.loads(data)[1]["bias_scale"] == 0.0
    assert torch.equal(read(data)["update_net.2.bias"], torch.zeros(8))
    assert "update_net.2.bias" not in quantised_model(model).state_dict()


def test_a_lone_zero_weight_becomes_half_a_step():
    """0 would be byte 127.5."""
    model = small()
    model.update_net[2].weight.data[0, 0] = 0.0
    data = export_distill(model)
    half = steps_of(data)[1][0]
    value = float(read(data)["update_net.2.weight"][0, 0, 0, 0].abs())
    assert value == pytest.approx(half, rel=1e-4)


@pytest.mark.parametrize("field", BAD)
def test_other_rules_are_refused_by_the_name_of_the_field(field):
    with pytest.raises(ValueError, match=field):
        export_distill(small(**{field: BAD[field]}))


@pytest.mark.parametrize(("channels", "hidden"), [(10, 12), (8, 10)])
def test_sizes_that_make_no_pixels_are_refused(channels, hidden):
    with pytest.raises(ValueError, match="in fours only, got 10"):
        export_distill(NeuralCA(channels, hidden))


def test_a_model_that_its_rule_does_not_describe_is_refused():
    model = small()
    model.update_net[1] = torch.nn.Tanh()
    with pytest.raises(ValueError, match=r"cannot describe .*Tanh"):
        export_distill(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_values_without_a_scale_are_refused(value):
    model = small()
    model.update_net[2].bias.data[0] = value
    with pytest.raises(ValueError, match=r"update_net\.2 holds"):
        export_distill(model)


def test_float64_models_are_exported_too():
    model = small().double()
    assert quantised_model(model).update_net[0].weight.dtype is torch.float64
    assert json.loads(export_distill(model))[0]["type"] == "uint8"


def test_a_torus_is_exported_too():
    assert export_distill(small(padding="circular")) == export_distill(small())


def test_the_cost_of_eight_bits_is_small_for_the_lizard():
    model = shaken().eval()
    loss = quantisation_loss(model, size=48, steps=120, seed=5)
    assert not model.training
    assert 0 < loss.rgba < 0.005
    assert 600 < loss.living < 800
    assert abs(loss.living_quantised - loss.living) < 60
    scale = max(max(pair) for pair in steps_of(export_distill(model)))
    assert 0 < loss.weight <= scale * (1 + 1e-4)


def test_the_cost_is_that_of_both_rollouts_with_the_same_masks():
    model, size = shaken(), 24
    start = torch.zeros(1, 16, size, size)
    start[:, 3:, 12, 12] = 1
    loss = quantisation_loss(model, size=size, steps=20, update_rate=0.7, seed=9)
    one, two = (
        each.train().run_steps(start, 20, 0.7, seed=9)[:, :4].detach().clamp(0, 1)
        for each in (model, quantised_model(model))
    )
    assert loss.rgba == pytest.approx(float((one - two).square().mean()), rel=1e-4)
    assert loss.living == int((one[:, 3] > 0.1).sum())
    assert loss.living_quantised == int((two[:, 3] > 0.1).sum())


def test_the_sentence():
    assert str(QuantisationLoss(96, 0.00012, 700, 698, 0.0026)) == (
        "after 96 steps from the seed the model in 8 bits has 698 living cells where the model "
        "has 700, and its picture differs by 0.00012 (mean squared RGBA); weights are off by at "
        "most 0.0026"
    )
