"""Models that others trained and published live under their rules."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from fastnca import NeuralCA, create_seed, get_visible_state
from fastnca.rule import RULES, Rule
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.published import Network, growing_names, read_growing, read_texture

QUANTISED = replace(RULES["texture"], clamp=(-2, 2), final_bias=True)
TEXTURES = ("dots", "mondrian", "mixed4b_pool_reduce_40")
SIZE = 40


def make_model(network: Network, channels: int, rule: Rule) -> torch.nn.Module:
    """Make a model in training mode, so that half of the cells update."""
    model = NeuralCA(channels, rule=rule).train().requires_grad_(False)
    assert model.load_state_dict(network, strict=False).missing_keys == ["perception.filters"]
    return model


@cache
def lizard(steps: int) -> Tensor:
    """Grow the regenerating lizard from its seed."""
    if steps == 0:
        return create_seed(56, fill_hidden=True)
    model = make_model(read_growing("ex3_lizard"), 16, Rule())
    return model.run_steps(lizard(steps - 100), 100, 0.5, seed=3, first_step=steps - 100)


def count_visible(state: Tensor) -> int:
    return int((state[:, 3] > 0.1).sum())


def test_the_lizard_grows_and_stays():
    areas = [count_visible(lizard(steps)) for steps in (100, 200, 400)]
    assert count_visible(lizard(0)) == 1
    assert 600 < min(areas) <= max(areas) < 800
    assert lizard(400).abs().max() < 5
    assert (lizard(400) - lizard(200))[:, :4].abs().mean() < 0.01


def test_every_published_picture_grows():
    for name in growing_names():
        model = make_model(read_growing(name), 16, Rule())
        end = model.run_steps(create_seed(48, fill_hidden=True), 96, 0.5, seed=1)
        assert 400 < count_visible(end) < 1400, name
        assert end.abs().max() < 20, name
        assert (end[:, :4] - get_visible_state(end)).abs().max() < 0.4, name


def test_the_lizard_is_green_and_does_not_touch_the_border():
    state = lizard(200)[0]
    red, green, blue = (state[channel][state[3] > 0.1].mean() for channel in range(3))
    assert green > 0.4
    assert green > 1.5 * red > 1.5 * blue
    inside = state[:, 2:-2, 2:-2]
    assert state.abs().sum() == inside.abs().sum()


def test_the_lizard_regrows_half_of_its_body():
    whole = lizard(200)
    damaged = whole.clone()
    damaged[..., 30:] = 0
    model = make_model(read_growing("ex3_lizard"), 16, Rule())
    healed = model.run_steps(damaged, 200, 0.5, seed=9)
    assert count_visible(damaged) < 500
    assert count_visible(healed) > 600
    missing, left = ((state - whole)[:, :4].abs().mean() for state in (damaged, healed))
    assert left < missing / 2


def test_the_lizard_explodes_when_its_columns_are_permuted():
    """The readers' layout is not one of many that would do."""
    network = read_growing("ex3_lizard")
    weight = network["update_net.0.weight"]
    blocks = weight.unflatten(1, (16, 3)).transpose(1, 2).flatten(1, 2)
    model = make_model({**network, "update_net.0.weight": blocks}, 16, Rule())
    end = model.run_steps(lizard(0), 100, 0.5, seed=3)
    assert not end.abs().max() < 1000


@cache
def texture(name: str, rule: Rule = QUANTISED) -> Tensor:
    """Let a texture model run from nothing for 500 steps."""
    model = make_model(read_texture(name), 12, rule)
    return model.run_steps(torch.zeros(1, 12, SIZE, SIZE), 500, 0.5, seed=1)


def is_textured(picture: Tensor) -> bool:
    """Tell whether `[3, H, W]` on a torus varies, its neighbours are alike, and those afar less."""
    centred = picture - picture.mean((1, 2), keepdim=True)
    power = centred.square().mean((1, 2))

    def correlate(distance: int) -> Tensor:
        products = [centred * centred.roll(distance, axis) for axis in (1, 2)]
        return (torch.stack(products).mean((2, 3)) / power).mean()

    near, far = correlate(1), correlate(SIZE // 2)
    return bool((power.sqrt() > 0.1).all() and near > 0.5 and far < near - 0.2)


@pytest.mark.parametrize("name", TEXTURES)
def test_published_textures_are_textured_and_bounded_after_500_steps(name):
    end = texture(name)
    assert end.abs().max() <= 2
    picture = end[0, :3] + 0.5
    assert is_textured(picture.clamp(0, 1))
    assert 0 < picture.mean() < 1


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_needs_its_clamp(name):
    assert not texture(name, replace(QUANTISED, clamp=None)).abs().max() < 10


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_is_none_when_its_columns_are_permuted(name):
    network = read_texture(name)
    weight = network["update_net.0.weight"]
    blocks = weight.unflatten(1, (12, 4)).transpose(1, 2).flatten(1, 2)
    model = make_model({**network, "update_net.0.weight": blocks}, 12, QUANTISED)
    end = model.run_steps(torch.zeros(1, 12, SIZE, SIZE), 500, 0.5, seed=1)
    assert not is_textured((end[0, :3] + 0.5).clamp(0, 1))


def test_textures_differ():
    pictures = [texture(name)[0, :3] for name in TEXTURES]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (pictures[one] - pictures[other]).abs().mean() > 0.2


@pytest.mark.parametrize("name", ["dots", "mixed4b_pool_reduce_40"])  # lines may lie anywhere
@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_a_texture_goes_on_across_the_border_of_a_torus_only(name, padding):
    state = texture(name, replace(QUANTISED, padding=padding))[0]
    for axis in (1, 2):
        changes = (state - state.roll(1, axis)).abs().mean((0, 3 - axis))
        across = changes[0] / changes[1:].mean()
        assert across < 2 if padding == "circular" else across > 3


STRIPES = (torch.arange(SIZE) % 10 < 5).float().expand(3, SIZE, SIZE)

NOT_TEXTURED = {
    "zeros": torch.zeros(3, SIZE, SIZE),
    "one colour": torch.full((3, SIZE, SIZE), 0.7),
    "noise": torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
    "a chessboard": ((torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2).expand(3, -1, -1) / 1,
    "faint": 0.1 * STRIPES,
    "one channel": STRIPES * torch.tensor([1.0, 0, 0])[:, None, None],
}


@pytest.mark.parametrize("name", NOT_TEXTURED)
def test_what_is_no_texture_is_told_apart(name):
    assert not is_textured(NOT_TEXTURED[name])
