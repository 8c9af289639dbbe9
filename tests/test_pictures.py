"""Figures and animations: what they show, and what they leave alone."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastnca import NeuralCA, Rule, test_regeneration, visualize_growth, visualize_regeneration
from fastnca.pictures import encode_gif, plot_life, plot_loss, rollout_states, to_pixels
from fastnca.pictures.render import seed_of
from fastnca.states import clear_cells
from fastnca.testing import tutorial
from tests.helpers import excite


def panels(figure):
    """Return title and pixels of every panel that shows something."""
    return [
        (axis.get_title(), np.asarray(axis.images[0].get_array()))
        for axis in figure.axes
        if axis.images
    ]


def test_pixels_are_composited_on_white():
    state = torch.zeros(1, 5, 1, 4)
    state[0, :4, 0, 1] = torch.tensor([1.0, 0.5, 0.0, 1.0])
    state[0, :4, 0, 2] = torch.tensor([0.5, 0.0, 0.0, 0.5])
    state[0, :4, 0, 3] = torch.tensor([9.0, -9.0, float("nan"), 1.0])
    expected = [[255, 255, 255], [255, 128, 0], [255, 128, 128], [255, 0, 0]]
    assert to_pixels(state)[0].tolist() == expected


def test_growth_shows_the_tutorials_moments():
    model = excite(NeuralCA(8, 8))
    shown = panels(visualize_growth(model, size=12))
    assert [title for title, _ in shown] == [f"Step {n}" for n in (0, 20, 40, 60, 80, 100)]
    model.eval()
    state = tutorial.create_seed(12, 8)
    with torch.no_grad():
        for _ in range(20):
            state = model(state)
    assert np.array_equal(shown[1][1], to_pixels(state))


def test_regeneration_shows_the_tutorials_damage():
    model = excite(NeuralCA(8, 8))
    shown = panels(visualize_regeneration(model, 64, grow_steps=30, regen_steps=4))
    assert [title for title, _ in shown] == [
        "Fully Grown",
        "After Damage",
        *[f"Regen Step {n}" for n in (0, 1, 2, 3, 4)],
    ]
    grown, damaged, first = shown[0][1], shown[1][1], shown[2][1]
    assert (damaged[20:44, 20:44] == 255).all()
    outside = np.ones((64, 64), bool)
    outside[20:44, 20:44] = False
    assert np.array_equal(grown[outside], damaged[outside])
    assert np.array_equal(first, damaged)
    assert not np.array_equal(grown, damaged)


def test_damage_of_ones_own():
    damage = torch.zeros(10, 10, dtype=torch.bool)
    damage[0] = True
    shown = panels(visualize_regeneration(excite(NeuralCA(8, 8)), 10, 12, 0, damage=damage))
    assert (shown[1][1][0] == 255).all()
    assert np.array_equal(shown[0][1][1:], shown[1][1][1:])


def test_the_tutorials_name_is_an_alias_that_pytest_leaves_alone():
    assert test_regeneration is visualize_regeneration
    assert test_regeneration.__test__ is False


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_left_alone(training):
    model = excite(NeuralCA(8, 8)).train(training)
    before = torch.get_rng_state()
    visualize_growth(model, 8, 5)
    visualize_regeneration(model, 8, 5, 5)
    assert model.training is training
    assert torch.equal(before, torch.get_rng_state())


def test_random_updates_are_reproducible_and_leave_the_random_state_alone():
    model = excite(NeuralCA(8, 8)).eval()
    before = torch.get_rng_state()
    runs = [
        list(rollout_states(model, seed_of(model, 9), 6, mask_seed=seed))[-1] for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], list(rollout_states(model, seed_of(model, 9), 6))[-1])
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    assert len(panels(visualize_growth(model, 9, 3, mask_seed=4))) == 6


def test_the_tutorials_own_class_can_be_drawn():
    assert len(panels(visualize_growth(tutorial.NeuralCA(), 9, 2))) == 6


def test_no_figure_is_left_open():
    import matplotlib.pyplot as plt

    visualize_growth(NeuralCA(8, 4), 5, 1)
    assert plt.get_fignums() == []


def test_the_seed_is_the_one_that_was_trained():
    model = NeuralCA(8, 4).double()
    assert seed_of(model, 5)[0, 4:].abs().sum() == 0
    model.metadata["fill_hidden"] = True
    assert seed_of(model, 5)[0, 3:, 2, 2].tolist() == [1] * 5
    assert seed_of(model, 5).dtype == torch.float64


def test_loss_curve_and_its_median():
    values = np.linspace(1, 0.1, 60).tolist()
    values[5] = float("nan")
    values[9] = float("inf")
    (axis,) = plot_loss(values).axes
    raw, median = axis.lines
    assert axis.get_yscale() == "log"
    assert len(raw.get_ydata()) == 60
    assert np.isnan(raw.get_ydata()[[5, 9]]).all()
    assert median.get_ydata()[30 - 10] == pytest.approx(values[30], rel=1e-6)
    assert len(plot_loss([0.5, 0.4]).axes[0].lines) == 1
    assert plot_loss([]).axes


def test_life_figure():
    grid = torch.zeros(6, 6)
    grid[2, 1:4] = 1
    shown = panels(plot_life(grid, 4))
    assert [title for title, _ in shown] == [f"Step {n}" for n in (0, 1, 2, 3, 4)]
    assert np.array_equal(shown[0][1], shown[2][1])
    assert shown[1][1].sum() == 3


def test_gif_frames_are_the_states():
    model = excite(NeuralCA(8, 8))
    frames = [to_pixels(s) for s in rollout_states(model, seed_of(model, 9), 12)][::4]
    with Image.open(io.BytesIO(encode_gif(frames, scale=3, milliseconds=80))) as gif:
        assert gif.n_frames == 4
        assert gif.size == (27, 27)
        assert gif.info["loop"] == 0
        for number, frame in enumerate(frames):
            gif.seek(number)
            shown = np.asarray(gif.convert("RGB"))[1::3, 1::3].astype(int)
            assert np.abs(shown - frame).max() <= 16
            assert gif.info["duration"] == (1080 if number == 3 else 80)
    with pytest.raises(ValueError, match="at least one frame"):
        encode_gif([])


def test_pictures_update_cells_at_the_rate_of_training():
    model = excite(NeuralCA(8, 8))
    half = list(rollout_states(model, seed_of(model, 9), 6, mask_seed=1))[-1]
    every = list(rollout_states(model, seed_of(model, 9), 6))[-1]
    model.metadata = {"update_rate": 1.0}
    assert torch.equal(list(rollout_states(model, seed_of(model, 9), 6, mask_seed=1))[-1], every)
    assert not torch.equal(half, every)


def test_damage_leaves_the_inputs_of_a_rule():
    states = torch.ones(2, 5, 4, 4)
    cells = torch.zeros(4, 4, dtype=torch.bool)
    cells[1, 2] = True
    damaged = clear_cells(states, cells, inputs=2)
    assert damaged[:, :, 1, 2].tolist() == [[0, 0, 0, 1, 1]] * 2
    assert damaged.sum() == states.sum() - 6
    assert states.min() == 1  # a copy
    model = excite(NeuralCA(8, rule=Rule(inputs=2, hidden=(8,))))
    seed = seed_of(model, 5)
    assert not seed[:, -2:].any()
    model.metadata = {"fill_hidden": True}
    assert seed_of(model, 5)[0, :, 2, 2].tolist() == [0] * 3 + [1] * 3 + [0] * 2
