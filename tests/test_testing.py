"""`fastnca.testing`: the tutorial's class with the masks of a seed."""

import pytest
import torch

from fastnca import NeuralCA
from fastnca.masks import update_masks
from fastnca.testing import injected_masks, tutorial
from tests.helpers import excite


def grow(model, state, steps):
    for _ in range(steps):
        state = model(state)
    return state


@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
def test_the_tutorials_class_draws_the_masks_that_are_injected(backend):
    ours, theirs = excite(NeuralCA(backend=backend)), tutorial.NeuralCA()
    theirs.load_state_dict(ours.state_dict())
    start = torch.rand(2, 16, 24, 20) * (torch.rand(2, 1, 24, 20) < 0.3)
    found = []
    for model in (ours, theirs):
        model.zero_grad()
        with injected_masks(update_masks(9, 0, 5, start.shape, 0.5)):
            end = grow(model, start, 5)
        end.square().mean().backward()
        found.append([end.detach(), *(p.grad for p in model.update_net.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    rollout = ours.run_steps(start, 5, seed=9).detach()
    torch.testing.assert_close(found[1][0], rollout, rtol=0, atol=1e-6)
    assert not torch.equal(rollout, ours.run_steps(start, 5, seed=10))
    assert torch.rand_like(start).unique().numel() > 2  # torch's own again


def test_too_few_masks_and_other_shapes_are_errors():
    model, state = tutorial.NeuralCA(), torch.rand(1, 16, 8, 8)
    masks = update_masks(0, 0, 1, state.shape, 0.5)
    with injected_masks(masks), pytest.raises(RuntimeError, match="more masks are drawn"):
        grow(model, state, 2)
    with injected_masks(masks), pytest.raises(ValueError, match=r"for \[1, 1, 8, 8\], and \[2, 1"):
        grow(model, torch.rand(2, 16, 8, 8), 1)
