"""Textures drawn by code."""

import pytest
import torch

from fastnca.textures import TEXTURES, create_texture


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_is_an_opaque_picture(name):
    picture = create_texture(name)
    assert picture.shape == (1, 4, 96, 96)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (picture[:, 3] == 1).all()
    assert picture[0, :3].flatten(1).std(dim=1).min() > 0.05


@pytest.mark.parametrize("name", TEXTURES)
@pytest.mark.parametrize("size", [96, (64, 97)])
def test_a_texture_tiles(name, size):
    """The steps across the border are of the size of the steps inside."""
    rgb = create_texture(name, size, dtype=torch.float64)[0, :3]
    for axis in (1, 2):
        steps = (rgb - rgb.roll(1, axis)).square().mean(dim=(0, 3 - axis)).sqrt()
        assert steps[0] < 1.5 * steps[1:].max()
        # a picture that is cut off has a border like any two of its rows, three times as far
        assert steps[0] < 2 * steps[1:].mean()


@pytest.mark.parametrize("name", TEXTURES)
def test_a_seed_is_a_sample(name):
    first = create_texture(name, 48, seed=3)
    assert torch.equal(first, create_texture(name, 48, seed=3))
    assert not torch.equal(first, create_texture(name, 48, seed=4))


def test_the_generator_of_torch_and_its_defaults_are_left_alone():
    state = torch.get_rng_state()
    expected = create_texture("coral", 32, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(create_texture("coral", 32), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert create_texture("coral", 32).is_meta
        assert torch.equal(create_texture("coral", 32, device="cpu"), expected.float())


@pytest.mark.parametrize("name", TEXTURES)
def test_samples_of_one_material_are_alike_in_their_mean_colours(name):
    colors = torch.stack(
        [create_texture(name, 192, seed=seed)[0, :3].mean(dim=(1, 2)) for seed in range(3)]
    )
    assert (colors - colors[0]).abs().max() < 0.04


# Sums over the picture, of each channel: numbers drawn by another torch or machine are the same.
KNOWN = {
    "cheetah": [0.6243637, 0.4528403, 0.2443005],
    "zebra": [0.5195758, 0.4750722, 0.427265],
    "coral": [0.6124698, 0.3465590, 0.3917955],
}


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_is_the_same_everywhere(name):
    picture = create_texture(name, 32, seed=1, dtype=torch.float64)[0, :3]
    assert picture.mean(dim=(1, 2)).tolist() == pytest.approx(KNOWN[name], abs=1e-6)


@pytest.mark.parametrize("name", TEXTURES)
@pytest.mark.parametrize("size", [1, 2, (1, 30), (30, 5)])
def test_a_texture_of_few_cells_is_finite(name, size):
    assert create_texture(name, size).isfinite().all()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"name": "marble"}, ValueError, "texture must be one of cheetah, zebra, coral"),
        ({"size": 0}, ValueError, "a size of at least 1"),
        ({"size": (8, -1)}, ValueError, "a size of at least 1"),
        ({"size": 8.0}, TypeError, "size must be an int or"),
        ({"size": (8, 8, 8)}, TypeError, "size must be an int or"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
    ],
)
def test_bad_values_are_named(values, error, message):
    with pytest.raises(error, match=message):
        create_texture(**{"name": "zebra", **values})
