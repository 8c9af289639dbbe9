"""Situations small enough that the right answer is known without a reference."""

import torch
from torch import Tensor

from fastnca.fused import fused_rollout
from fastnca.states import ALIVE_THRESHOLD

STEP = {"first_step": 0, "update_rate": 0.5, "precision": "fp16", "seed": None}


def zero_network(channels: int, hidden: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return parameters of a network that changes nothing."""
    shapes = ((hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,))
    return tuple(torch.zeros(shape, device=device) for shape in shapes)


def threshold_errors(device: torch.device) -> list[str]:
    """A cell whose alpha is exactly the threshold is dead, before and after the update."""
    errors = []
    network = zero_network(16, 16, device)
    state = torch.zeros(1, 16, 1, 5, device=device)
    state[0, :, 0, 2] = 1.0
    state[0, 3, 0, 2] = ALIVE_THRESHOLD
    if fused_rollout(state, network, steps=1, **STEP).any():
        errors.append("a cell at the threshold is alive before the update")
    state[0, 3, 0, 2] = 2 * ALIVE_THRESHOLD
    fall = torch.zeros(16, device=device)
    fall[3] = -ALIVE_THRESHOLD
    if fused_rollout(state, (*network[:3], fall), steps=1, **STEP).any():
        errors.append("a cell at the threshold is alive after the update")
    return errors


def halo_errors(device: torch.device) -> list[str]:
    """A cell that is dead before the step rises above the threshold and saves its neighbour.

    Cells 5 to 7 of the line are alive before the step, since cell 6 is visible; a tile ends after
    cell 7. The step makes cell 6 invisible and cell 8 visible, so cell 7 alone survives, and
    gradients come from it alone.
    """
    errors = []
    state = torch.zeros(1, 16, 1, 20, device=device)
    state[0, 3, 0, 6] = 1.0
    state[0, 4, 0, 8] = 1.0
    w1, b1, w2, b2 = zero_network(16, 16, device)
    w1[0, 3 * 3] = 1.0
    w2[3, 0] = -1.0
    w1[1, 3 * 4] = 1.0
    w2[3, 1] = 0.5
    b2[0] = 1.0
    state.requires_grad_()
    b2.requires_grad_()
    result = fused_rollout(state, (w1, b1, w2, b2), steps=1, **STEP)
    grad_state, grad_b2 = torch.autograd.grad(result.sum(), (state, b2))
    survivor = torch.zeros_like(result)
    survivor[0, 0, 0, 7] = 1.0
    if not torch.equal(result, survivor):
        errors.append("another cell than the saved one is alive")
    if not torch.equal(grad_b2, torch.ones_like(b2)):
        errors.append("the bias feels other cells than the saved one")
    survivor[0, :, 0, 7] = 1.0
    if not torch.equal(grad_state, survivor):
        errors.append("the state feels other cells than the saved one")
    return errors


def count_errors(device: torch.device) -> list[str]:
    """Three launches of which the device takes two; each step adds 1 to channel 0 of every cell."""
    errors = []
    *network, b2 = zero_network(16, 16, device)
    b2[0] = 1.0
    b2.requires_grad_()
    state = torch.ones(1, 16, 1, 2, device=device)
    count = torch.tensor(2, device=device)
    result = fused_rollout(state, (*network, b2), steps=3, count=count, **STEP)
    expected = state.clone()
    expected[:, 0] = 3.0
    if not torch.equal(result, expected):
        errors.append("another number of steps than the device says was taken")
    with torch.no_grad():  # two slots take turns, so a step too many shows
        once = fused_rollout(state, (*network, b2), steps=3, count=count - 1, **STEP)
    expected[:, 0] = 2.0
    if not torch.equal(once, expected):
        errors.append("another number of steps than the device says was taken without gradient")
    (grad_b2,) = torch.autograd.grad(result.sum(), b2)
    if not torch.equal(grad_b2, torch.full_like(b2, 4.0)):
        errors.append("another number of steps than the device says was differentiated")
    return errors
