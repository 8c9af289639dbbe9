"""The specification against the tutorial's code, hand-computed arrays, finite differences."""

import pytest
import torch

from fastnca import reference
from fastnca.states import create_seed
from fastnca.testing import tutorial
from tests.helpers import excite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_tutorial_bit_for_bit(dtype, training):
    torch.manual_seed(3)
    theirs = excite(tutorial.NeuralCA()).to(dtype).train(training)
    torch.manual_seed(3)
    ours = excite(reference.NeuralCA()).to(dtype).train(training)
    state = torch.rand(2, 16, 9, 11, dtype=dtype)
    results = []
    for model in (theirs, ours):
        torch.manual_seed(7)
        end = model.run_steps(model(state, update_rate=0.3), 6)
        end.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([end, *gradients, torch.rand(3)])
    for their_value, our_value in zip(*results, strict=True):
        assert torch.equal(their_value, our_value)


def test_state_dict_has_the_tutorials_keys_and_order():
    theirs, ours = tutorial.NeuralCA(8, 20), reference.NeuralCA(8, 20)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_perception_of_a_single_cell_is_the_flipped_filters():
    state = torch.zeros(1, 4, 3, 3)
    state[0, 1, 1, 1] = 8.0
    perceived = reference.PerceptionModule(4)(state)
    assert perceived[0, 3].tolist() == [[0, 0, 0], [0, 8, 0], [0, 0, 0]]
    assert perceived[0, 4].tolist() == [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    assert perceived[0, 5].tolist() == [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    assert perceived[0, [0, 1, 2, 6, 7, 8, 9, 10, 11]].abs().sum() == 0


def test_transposing_the_grid_swaps_the_sobel_filters():
    state = torch.rand(2, 4, 5, 7)
    perceive = reference.PerceptionModule(4)
    straight, turned = perceive(state), perceive(state.mT.contiguous())
    swapped = turned.mT.unflatten(1, (4, 3))[:, :, [0, 2, 1]].flatten(1, 2)
    torch.testing.assert_close(straight, swapped)


def test_alive_is_strictly_above_the_threshold_in_the_neighbourhood():
    model = reference.NeuralCA(4, 8)
    state = torch.zeros(1, 4, 5, 5)
    state[0, 3, 0, 0] = 0.1
    assert model.get_alive_mask(state).sum() == 0
    state[0, 3, 0, 0] = 0.10001
    expected = torch.zeros(5, 5)
    expected[:2, :2] = 1
    assert torch.equal(model.get_alive_mask(state)[0, 0], expected)
    assert model.get_alive_mask(state, threshold=0.2).sum() == 0


def test_zero_initialised_model_keeps_living_cells_and_clears_the_rest():
    state = torch.rand(1, 16, 8, 8)
    state[:, 3] = 0
    state[:, 3, 2, 2] = 1.0
    end = reference.NeuralCA()(state)
    expected = torch.zeros_like(state)
    expected[:, :, 1:4, 1:4] = state[:, :, 1:4, 1:4]
    assert torch.equal(end, expected)


def test_gradcheck_in_float64():
    torch.manual_seed(1)
    model = excite(reference.NeuralCA(4, 6)).double()
    state = torch.rand(1, 4, 4, 5, dtype=torch.float64) * 0.5 + 0.2
    state.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: model.run_steps(s, 2, seed=5), state)


def test_seeded_steps_do_not_touch_the_random_state():
    model = excite(reference.NeuralCA())
    before = torch.get_rng_state()
    model.run_steps(create_seed(9), 4, seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_rollout_can_be_continued():
    model = excite(reference.NeuralCA())
    state = torch.rand(2, 16, 6, 6)
    whole = model.run_steps(state, 7, seed=9)
    parts = model.run_steps(model.run_steps(state, 3, seed=9), 4, seed=9, first_step=3)
    assert torch.equal(whole, parts)
