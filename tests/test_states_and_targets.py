"""Game of Life, seeds, damage and drawn targets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from fastnca import (
    create_seed,
    create_target,
    create_target_circle,
    game_of_life_step,
    get_visible_state,
)
from fastnca.states import disc, rectangle
from fastnca.targets import TARGETS
from fastnca.testing import tutorial

grids = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8))


@given(grids)
@settings(deadline=None)
def test_life_equals_its_definition_and_the_tutorial(cells):
    height, width = cells.shape
    padded = np.pad(cells, 1).astype(int)
    neighbours = sum(
        padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if dy or dx
    )
    expected = (neighbours == 3) | (cells & (neighbours == 2))
    grid = torch.from_numpy(cells)
    step = game_of_life_step(grid)
    assert step.dtype == torch.float32
    assert np.array_equal(step.numpy() == 1, expected)
    assert torch.equal(step, game_of_life_step(grid.double()))
    if height > 1 and width > 1:  # the tutorial's squeeze drops axes of length one
        assert torch.equal(step, tutorial.game_of_life_step(grid.float()))


def test_glider_moves_by_one_cell_in_four_steps():
    grid = torch.zeros(12, 12)
    grid[2:5, 2:5] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 1, 1]])
    end = grid
    for _ in range(4):
        end = game_of_life_step(end)
    assert torch.equal(end, grid.roll((1, 1), (0, 1)))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_seed_and_circle_equal_the_tutorials(size):
    assert torch.equal(create_seed(size), tutorial.create_seed(size))
    assert torch.equal(create_seed(size, 8), tutorial.create_seed(size, 8))
    assert torch.equal(create_target_circle(size), tutorial.create_target_circle(size))


def test_seed_options():
    seed = create_seed(5, 6, batch=3, fill_hidden=True, dtype=torch.float64)
    assert seed.shape == (3, 6, 5, 5)
    assert seed.dtype == torch.float64
    assert seed[:, :, 2, 2].tolist() == [[0, 0, 0, 1, 1, 1]] * 3
    assert seed.sum() == 9
    assert create_target_circle(8, batch=2, dtype=torch.float64).shape == (2, 4, 8, 8)


def test_visible_state_is_clamped_rgba():
    state = torch.randn(2, 16, 3, 3) * 3
    visible = get_visible_state(state)
    assert visible.shape == (2, 4, 3, 3)
    assert torch.equal(visible, tutorial.get_visible_state(state))


def test_visible_state_has_a_gradient_at_both_ends_on_every_torch():
    state = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan")]).view(1, 1, 1, 6)
    state = state.expand(1, 4, 1, 6).clone().requires_grad_()
    get_visible_state(state).sum().backward()
    assert state.grad[0, 0, 0].tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("size", [24, 64])
def test_drawn_targets_are_premultiplied_shapes(name, size):
    target = create_target(name, size)
    assert target.shape == (1, 4, size, size)
    rgb, alpha = target[0, :3], target[0, 3]
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (rgb <= alpha + 1e-6).all()
    assert 0.08 < alpha.mean() < 0.6
    edge = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    assert edge.max() == 0
    assert len({create_target(other, size).sum().item() for other in TARGETS}) == len(TARGETS)


def test_rectangle_and_disc():
    marked = rectangle(6, 8, (1, 2, 3, 5))
    assert marked.sum() == 6
    assert marked[1:3, 2:5].all()
    assert rectangle(6, 8, (-3, -3, 99, 99)).all()
    discs = disc(9, 9, torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([0.5, 0.3]))
    assert discs.shape == (2, 9, 9)
    assert discs[0, 4, 4]
    assert discs[0].sum() == 9  # cells are a quarter apart: the 3x3 block is inside 0.5
    assert discs[1, 8, 0]
    assert discs[1].sum() == 3
