"""The alive threshold: strict, exact, and flipped only by rounding."""

import torch
import torch.nn.functional as F

from fastnca.fused import fused_rollout
from fastnca.states import ALIVE_THRESHOLD
from tests.kernels.helpers import Case, draw

STEP = {"first_step": 0, "update_rate": 0.5, "precision": "fp16"}


def zero_network(channels: int, hidden: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    shapes = ((hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,))
    return tuple(torch.zeros(shape, device=device) for shape in shapes)


def exact_threshold_is_dead(device: torch.device) -> bool:
    """Whether alpha of exactly the threshold is dead: at the start, and after a step."""
    network = zero_network(16, 16, device)
    state = torch.zeros(1, 16, 1, 5, device=device)
    state[0, :, 0, 2] = 1.0
    state[0, 3, 0, 2] = ALIVE_THRESHOLD
    at_start = fused_rollout(state, network, steps=1, seed=None, **STEP)
    state[0, 3, 0, 2] = 2 * ALIVE_THRESHOLD
    fall = torch.zeros(16, device=device)
    fall[3] = -ALIVE_THRESHOLD
    after_step = fused_rollout(state, (*network[:3], fall), steps=1, seed=None, **STEP)
    return not at_start.any() and not after_step.any()


def test_threshold_is_strict(device: torch.device) -> None:
    assert exact_threshold_is_dead(device)


def test_next_number_above_the_threshold_is_alive(device: torch.device) -> None:
    state = torch.zeros(1, 16, 1, 3, device=device)
    above = torch.nextafter(torch.tensor(ALIVE_THRESHOLD), torch.tensor(1.0))
    state[0, 3, 0, 1] = above
    network = zero_network(16, 16, device)
    result = fused_rollout(state, network, steps=2, seed=None, **STEP)
    assert torch.equal(result, state)


def test_flipped_cells_lie_within_rounding_of_the_threshold(device: torch.device) -> None:
    case = Case(16, 24, precision="fp16", rate=None, steps=1)
    model, state, _ = draw(case, seed=1)
    state[:, 3] = ALIVE_THRESHOLD + 1e-3 * torch.randn(1, 16, 24)
    exact = model._step(state.double(), 1.0)
    updated = state.double() + model.update_net(model.perception(state.double()))
    parameters = tuple(p.detach().float().to(device) for p in model.update_net.parameters())
    result = fused_rollout(state.to(device), parameters, steps=1, seed=None, **STEP).cpu()
    flipped = (result != 0).any(1) != (exact != 0).any(1)
    before = F.max_pool2d(state[:, 3:4].double(), 3, stride=1, padding=1)[:, 0]
    after = F.max_pool2d(updated[:, 3:4], 3, stride=1, padding=1)[:, 0]
    distance = torch.minimum(
        (before - ALIVE_THRESHOLD).abs(), (after - ALIVE_THRESHOLD).abs()
    )
    assert (distance[flipped] < 2e-3).all()
    assert flipped.float().mean() < 0.01


def test_dead_neighbour_keeps_a_cell_alive(device: torch.device) -> None:
    """A cell that is dead before the step may rise above the threshold and save its neighbour."""
    state = torch.zeros(1, 16, 1, 20, device=device)
    state[0, 3, 0, 6] = 1.0  # cells 5 to 7 are alive before the step; a tile ends after cell 7
    state[0, 4, 0, 8] = 1.0
    w1, b1, w2, b2 = zero_network(16, 16, device)
    w1[0, 3 * 3] = 1.0
    w2[3, 0] = -1.0  # alpha of cell 6 falls to 0
    w1[1, 3 * 4] = 1.0
    w2[3, 1] = 0.5  # alpha of cell 8 rises to 0.5
    b2[0] = 1.0
    expected = torch.zeros_like(state)
    expected[0, 0, 0, 7] = 1.0
    result = fused_rollout(state, (w1, b1, w2, b2), steps=1, seed=None, **STEP)
    assert torch.equal(result, expected)
