"""Situations small enough that the right answer is known without a reference."""

import torch
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout
from fastnca.states import ALIVE_THRESHOLD

STEP = {"first_step": 0, "update_rate": 0.5, "precision": "fp16", "seed": None}


def forms(device: torch.device) -> tuple[dict, dict]:
    """Return options of a single step, and of the same step as a rollout like any other."""
    return STEP, STEP | {"device_steps": torch.tensor(1, device=device)}


def zero_network(channels: int, hidden: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return parameters of a network that changes nothing."""
    shapes = ((hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,))
    return tuple(torch.zeros(shape, device=device) for shape in shapes)


def threshold_errors(device: torch.device, form: dict) -> list[str]:
    """A cell whose alpha is exactly the threshold is dead, before and after the update."""
    errors = []
    network = zero_network(16, 16, device)
    state = torch.zeros(1, 16, 1, 5, device=device)
    state[0, :, 0, 2] = 1.0
    state[0, 3, 0, 2] = ALIVE_THRESHOLD
    if fused_rollout(state, network, steps=1, **form).any():
        errors.append("a cell at the threshold is alive before the update")
    state[0, 3, 0, 2] = 2 * ALIVE_THRESHOLD
    fall = torch.zeros(16, device=device)
    fall[3] = -ALIVE_THRESHOLD
    if fused_rollout(state, (*network[:3], fall), steps=1, **form).any():
        errors.append("a cell at the threshold is alive after the update")
    state[0, 3, 0, 2] = ALIVE_THRESHOLD
    if fused_rollout(state, (*network[:3], -fall), steps=1, **form).any():
        errors.append("a cell at the threshold is alive before an update that raises it")
    return errors


def border_errors(device: torch.device, form: dict) -> list[str]:
    """The step hides the only cell of a grid, and would raise the cells beyond its border."""
    state = torch.ones(1, 16, 1, 1, device=device)
    w1, b1, w2, b2 = zero_network(16, 16, device)
    w1[0, 3 * 3] = 1.0
    w2[3, 0] = -2.0
    b2[3] = 0.5
    result = fused_rollout(state, (w1, b1, w2, b2), steps=1, **form)
    return ["a cell beyond the border keeps its neighbour alive"] if result.any() else []


def halo_errors(device: torch.device, form: dict, down: bool = False) -> list[str]:
    """A cell that is dead before the step rises above the threshold and saves its neighbour.

    In a line, cells s - 2 to s are alive before the step, since cell s - 1 is visible. The step
    makes it invisible and cell s + 1 visible, so cell s alone survives, and gradients come from
    it alone. There are lines, or mirror images of them, for several s where tiles begin and end;
    they go right or down.
    """
    errors = []
    length = 18 if down else 10
    lines = [(13, 1), (14, -1), (15, 1)] if down else [(5, 1), (5, -1), (6, -1), (7, 1)]
    state, survivor = torch.zeros(2, len(lines), 16, length, device=device)
    for number, (place, sign) in enumerate(lines):
        state[number, 3, place - sign] = 1.0
        state[number, 4, place + sign] = 1.0
        survivor[number, 0, place] = 1.0
    w1, b1, w2, b2 = zero_network(16, 16, device)
    w1[0, 3 * 3] = 1.0
    w2[3, 0] = -1.0
    w1[1, 3 * 4] = 1.0
    w2[3, 1] = 0.5
    b2[0] = 1.0
    shape = (len(lines), 16, length, 1) if down else (len(lines), 16, 1, length)
    state = state.view(shape).requires_grad_()
    b2.requires_grad_()
    result = fused_rollout(state, (w1, b1, w2, b2), steps=1, **form)
    grad_state, grad_b2 = torch.autograd.grad(result.sum(), (state, b2))
    if not torch.equal(result, survivor.view(shape)):
        errors.append("another cell than the saved one is alive")
    if not torch.equal(grad_b2, torch.full_like(b2, len(lines))):
        errors.append("the bias feels other cells than the saved one")
    if not torch.equal(grad_state, survivor.amax(1, keepdim=True).expand(-1, 16, -1).view(shape)):
        errors.append("the state feels other cells than the saved one")
    return errors


def reach_errors(device: torch.device) -> list[str]:
    """Each of three steps raises alpha by 1 in every living cell; they spread along a line.

    Most of its tiles are out of reach, and would rise as well if one step took them for living.
    """
    errors = []
    *network, b2 = zero_network(16, 16, device)
    b2[3] = 1.0
    b2.requires_grad_()
    state = torch.zeros(1, 16, 1, 41, device=device)
    state[..., 0] = 1.0
    result = fused_rollout(state, (*network, b2), steps=3, **STEP)
    expected = state.clone()
    expected[0, 3, 0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0], device=device)
    if not torch.equal(result, expected):
        errors.append("other cells than the first four are alive")
    (grad_b2,) = torch.autograd.grad(result.sum(), b2)
    if not torch.equal(grad_b2, torch.full_like(b2, 9.0)):
        errors.append("the bias feels other updates than nine")
    return errors


def count_errors(device: torch.device) -> list[str]:
    """Three launches of which the device takes two; each step adds 1 to channel 0 of every cell."""
    errors = []
    *network, b2 = zero_network(16, 16, device)
    b2[0] = 1.0
    b2.requires_grad_()
    state = torch.ones(1, 16, 1, 2, device=device)
    count = torch.tensor(2, device=device)
    result = fused_rollout(state, (*network, b2), steps=3, device_steps=count, **STEP)
    expected = state.clone()
    expected[:, 0] = 3.0
    if not torch.equal(result, expected):
        errors.append("another number of steps than the device says was taken")
    with torch.no_grad():  # two slots take turns, so a step too many shows
        once = fused_rollout(state, (*network, b2), steps=3, device_steps=count - 1, **STEP)
    expected[:, 0] = 2.0
    if not torch.equal(once, expected):
        errors.append("another number of steps than the device says was taken without gradient")
    (grad_b2,) = torch.autograd.grad(result.sum(), b2)
    if not torch.equal(grad_b2, torch.full_like(b2, 4.0)):
        errors.append("another number of steps than the device says was differentiated")
    return errors


def scale_errors(device: torch.device) -> list[str]:
    """Single steps of grids that share a program and have gradients of very different size.

    Every cell of the hidden layer is 1, so a weight's gradient is the sum of all gradients; those
    of the small grid vanish in it, those of the large grid must not.
    """
    errors = []
    w1, b1, w2, b2 = zero_network(16, 16, device)
    b1 += 1.0
    leaves = [leaf.requires_grad_() for leaf in (torch.ones(3, 16, 2, 2, device=device), w2)]
    for sizes in ([2.0**-40, 0.0, 2.0**40], [2.0**40, 0.0, 2.0**-40]):
        grad = torch.ones(3, 16, 2, 2, device=device)
        grad *= torch.tensor(sizes, device=device)[:, None, None, None]
        result = fused_rollout(leaves[0], (w1, b1, leaves[1], b2), steps=1, **STEP)
        grad_state, grad_w2 = torch.autograd.grad(result, leaves, grad)
        if not torch.equal(grad_state, grad):
            errors.append("the state's gradients have other sizes")
        if not torch.equal(grad_w2, torch.full_like(grad_w2, 4 * 2.0**40)):
            errors.append("the weights' gradients have another size")
    return errors


def not_finite_errors(device: torch.device, form: dict) -> list[str]:
    """What is not finite stays so, also in cells that are dead or die.

    In a row of 26 cells only the first is alive. First, alpha of a cell far from it is not finite.
    Then, with float32 operands, alpha or another channel overflows: in the first cell, whose alpha
    falls below the threshold in the same step, or in the third, which is dead and sees the second.
    Last, an operand overflows in fp16, and alpha becomes minus infinity.
    """
    errors = []
    w1, b1, w2, b2 = zero_network(16, 16, device)
    options = form | {"steps": 1, "precision": "ieee"}
    for value in (float("nan"), float("inf"), float("-inf")):
        state = torch.zeros(2, 16, 1, 26, device=device)
        state[:, 3, 0, 0] = 1.0
        state[0, 3, 0, 20] = value
        result = fused_rollout(state, (w1, b1, w2, b2), **(form | {"steps": 1}))
        if result[0].isfinite().all():
            errors.append(f"{value} in a dead cell is cleared")
        if not result[1].isfinite().all():
            errors.append(f"{value} reaches another grid")
    w1[0, 3 * 3], w1[1, 3 * 4], w1[2, 3 * 4 + 1] = 1.0, 1.0, -1.0
    for channel, weight in ((3, 1e3), (3, -1e3), (4, 1e3)):
        for cell in (0, 2):
            second = w2.clone()
            second[channel, 1 if cell == 0 else 2] = weight
            if channel == 4:
                second[3, 0] = -2.0
            state = torch.zeros(1, 16, 1, 26, device=device)
            state[0, 3, 0, 0] = 1.0
            state[0, 4, 0, 0 if cell == 0 else 1] = 1e37
            result = fused_rollout(state, (w1, b1, second, b2), **options)
            if result.isfinite().all():
                errors.append(f"channel {channel} of cell {cell} overflows and is cleared")
    state = torch.zeros(1, 16, 1, 26, device=device)
    state[0, 3, 0, 0], state[0, 4, 0, 0] = 1.0, 1e5
    w1[:, 3 * 4], w1[:, 3 * 4 + 1] = -1.0, 1.0  # no weight of 0: times infinity that is NaN
    w1[1, 3 * 4], w2[3, 1] = 1.0, -1.0
    if fused_rollout(state, (w1, b1, w2, b2), **(form | {"steps": 1})).isfinite().all():
        errors.append("an operand overflows and its cell is cleared")
    return errors


def overflow_errors(device: torch.device) -> list[str]:
    """A weight beyond fp16 makes all gradients of a single step NaN, not some of them.

    The grid fills a tile: a cell outside would perceive 0, and infinity times 0 be noticed anyway
    where the interpreter's maximum keeps NaN, which a GPU's does not.
    """
    w1, b1, w2, b2 = zero_network(16, 16, device)
    w1[0, 0] = -1e6
    leaves = [torch.ones(1, 16, 16, 8, device=device), w1, b1, w2, b2]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    result = fused_rollout(leaves[0], tuple(leaves[1:]), steps=1, **STEP)
    grads = torch.autograd.grad(result.sum(), leaves)
    return [] if all(grad.isnan().all() for grad in grads) else ["a gradient is not NaN"]
