"""The alive threshold: strict, exact, and flipped only by rounding."""

import pytest
import torch
import torch.nn.functional as F

from fastnca.backends.triton_fused import fused_rollout
from fastnca.states import ALIVE_THRESHOLD
from tests.kernels.helpers import Case, draw
from tests.kernels.scenarios import (
    STEP,
    border_errors,
    forms,
    halo_errors,
    reach_errors,
    threshold_errors,
    zero_network,
)


def test_threshold_is_strict(device: torch.device) -> None:
    for form in forms(device):
        assert not threshold_errors(device, form)
        assert not border_errors(device, form)


@pytest.mark.long
def test_dead_neighbour_keeps_a_cell_alive(device: torch.device) -> None:
    for form in forms(device):
        assert not halo_errors(device, form)
        assert not halo_errors(device, form, down=True)


def test_cells_out_of_reach_stay_dead(device: torch.device) -> None:
    assert not reach_errors(device)


def test_next_number_above_the_threshold_is_alive(device: torch.device) -> None:
    state = torch.zeros(1, 16, 1, 3, device=device)
    above = torch.nextafter(torch.tensor(ALIVE_THRESHOLD), torch.tensor(1.0))
    state[0, 3, 0, 1] = above
    network = zero_network(16, 16, device)
    result = fused_rollout(state, network, steps=2, **STEP)
    assert torch.equal(result, state)


def test_flipped_cells_lie_within_rounding_of_the_threshold(device: torch.device) -> None:
    case = Case(16, 24, precision="fp16", rate=None, steps=1)
    model, state, _ = draw(case, seed=1)
    state[:, 3] = ALIVE_THRESHOLD + 1e-3 * torch.randn(1, 16, 24)
    exact = model._step(state.double(), 1.0)
    updated = state.double() + model.update_net(model.perception(state.double()))
    parameters = tuple(p.detach().float().to(device) for p in model.update_net.parameters())
    before = F.max_pool2d(state[:, 3:4].double(), 3, stride=1, padding=1)[:, 0]
    after = F.max_pool2d(updated[:, 3:4], 3, stride=1, padding=1)[:, 0]
    distance = torch.minimum((before - ALIVE_THRESHOLD).abs(), (after - ALIVE_THRESHOLD).abs())
    for form in forms(device):
        result = fused_rollout(state.to(device), parameters, steps=1, **form).cpu()
        flipped = (result != 0).any(1) != (exact != 0).any(1)
        assert (distance[flipped] < 2e-3).all()
        assert flipped.float().mean() < 0.01
