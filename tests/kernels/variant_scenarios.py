"""Situations of rules that are not the tutorial's, whose right answer is known without a reference.

All numbers that matter are small whole ones, which every precision computes exactly.
"""

from itertools import product

import torch
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout
from fastnca.rule import Rule, Taps

STEP = {"first_step": 0, "update_rate": 0.5, "precision": "fp16", "seed": None}
HIDDEN = 16
WHOLE: tuple[Taps, ...] = (  # whole taps: without symmetry, even, odd, one tap in a corner
    ((1, 2, 3), (4, 5, -6), (-7, 8, 9)),
    ((1, -2, 3), (4, 5, 4), (3, -2, 1)),
    ((1, 2, -3), (4, 0, -4), (3, -2, -1)),
    ((0, 0, 0), (0, 0, 0), (0, 0, 2)),
)
SPARSE: tuple[str | Taps, ...] = (  # few taps: three steps stay whole and small
    "identity",
    ((0, 0, 1), (-1, 0, 0), (0, 0, 0)),
    ((-1, 0, 0), (0, 0, 0), (0, 0, 1)),
    ((0, 1, 0), (0, 0, 0), (0, 1, 0)),
)


def forms(device: torch.device) -> tuple[dict, dict]:
    """Return options of a single step, and of the same step as a rollout like any other."""
    return STEP, STEP | {"device_steps": torch.tensor(1, device=device)}


def zero_network(rule: Rule, channels: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return parameters of a network that changes nothing."""
    shapes = list(rule.shapes(channels).values())[1:]
    return tuple(torch.zeros(shape, device=device) for shape in shapes)


def differentiate(leaves, grad: Tensor | None = None, **options) -> tuple[Tensor, ...]:
    """Return the last state and all gradients, that of the last state being 1 unless given."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    result = fused_rollout(leaves[0], tuple(leaves[1:]), **options)
    grad = torch.ones_like(result) if grad is None else grad
    found = torch.autograd.grad(result, leaves, grad, allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    return result.detach(), *(z if g is None else g for g, z in zip(found, zeros, strict=True))


def distances(height: int, width: int, place: tuple[int, int], padding: str) -> Tensor:
    """Return how many steps it takes from a place to every cell: `[H, W]`."""
    rows = (torch.arange(height) - place[0]).abs()
    columns = (torch.arange(width) - place[1]).abs()
    if padding == "circular":
        rows = torch.minimum(rows, height - rows)
        columns = torch.minimum(columns, width - columns)
    return torch.maximum(rows[:, None], columns[None, :])


def add_up(values: Tensor, taps: Taps, padding: str, sign: int = 1) -> Tensor:
    """Return what cells of `[..., H, W]` see through taps; turned by half a turn for sign -1."""
    total = torch.zeros_like(values)
    for dy, dx in product((-1, 0, 1), repeat=2):
        seen = values.roll((-sign * dy, -sign * dx), (-2, -1))
        if padding == "zeros":
            for axis, step in ((-2, sign * dy), (-1, sign * dx)):
                if step:
                    seen.select(axis, -1 if step > 0 else 0).zero_()
        total += taps[dy + 1][dx + 1] * seen
    return total


def whole_numbers(
    rule: Rule, channels: int, height: int, width: int, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Return a state, sparse parameters and a gradient of -1, 0 and 1."""
    draws = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=draws).float()

    w1, b1, w2, *rest = zero_network(rule, channels, torch.device("cpu"))
    for unit in range(len(w1)):  # each sees one feature, and all filters are seen
        feature = 5 * unit % w1.shape[1]
        w1[unit, feature] = -1.0 if unit % 3 == 1 else 1.0
    for channel in range(len(w2)):
        for turn, weight in ((0, 1.0), (1, -1.0)):
            w2[channel, (3 * channel + 7 * turn) % len(b1)] = weight
    parameters = [w1, draw(len(b1)), w2, *(draw(len(each)) for each in rest)]
    shape = 1, channels, height, width
    leaves = [leaf.to(device) for leaf in (draw(*shape), *parameters)]
    return leaves, draw(*shape).to(device)


def torus_errors(device: torch.device) -> list[str]:
    """Rolling a state rolls what comes of it, and leaves the network's gradients alone.

    With zeros beyond the border it does not.
    """
    errors = []
    names = ("state", "grad_state", "grad_w1", "grad_b1", "grad_w2", "grad_b2")
    sizes = ((9, 10, 1), (5, 13, 3), (17, 11, 1), (7, 3, 3))
    kinds = [("circular", "both", size) for size in sizes]
    kinds += [("circular", "none", size) for size in sizes[1:2]]
    kinds += [("zeros", alive, sizes[0]) for alive in ("both", "none")]
    for number, (padding, alive, (height, width, steps)) in enumerate(kinds):
        inputs = number % 3 % 2
        rule = Rule(SPARSE, padding=padding, alive=alive, hidden=(HIDDEN,), inputs=inputs)
        leaves, grad = whole_numbers(rule, 6, height, width, device)
        options = STEP | {"rule": rule, "steps": steps}
        options["precision"] = "ieee" if number in (1, 3, 5) else "fp16"
        plain = differentiate(leaves, grad, **options)
        for shift in ((1, 3), (height // 2, 8)):
            state, rolled_grad = leaves[0].roll(shift, (2, 3)), grad.roll(shift, (2, 3))
            found = differentiate([state, *leaves[1:]], rolled_grad, **options)
            right = [each.roll(shift, (2, 3)) for each in plain[:2]] + list(plain[2:])
            where = f"{alive} {height}x{width} rolled by {shift}, {steps} steps"
            if padding == "zeros":
                if torch.equal(found[0], right[0]):
                    errors.append(f"zeros {where}: the border is not seen")
                continue
            errors += [
                f"{where}: {name} differs"
                for name, one, other in zip(names, found, right, strict=True)
                if not torch.equal(one, other)
            ]
    return errors


def view_errors(device: torch.device, form: dict) -> list[str]:
    """A cell sees those around it through each tap, and feels their gradients so.

    The network hands each filter's view of the last channel to a channel of its own.
    """
    errors = []
    kinds = product(("circular", "zeros"), (1, 2, 3, 4))
    draws = torch.Generator().manual_seed(4)
    for number, (padding, count) in enumerate(kinds):
        height, width = (3, 3) if count == 2 else (17, 9)
        alive = "both" if number in (0, 1, 3, 6) else "none"
        rule = Rule(WHOLE[:count], padding=padding, alive=alive, hidden=(HIDDEN,))
        outputs = [0, 1, 2, 4][:count]
        network = zero_network(rule, 5, device)
        w1, b1, w2, b2 = network
        b1[:count] = 128.0
        for number, channel in enumerate(outputs):
            w1[number, count * 4 + number] = 1.0
            w2[channel, number] = 1.0
            b2[channel] = -128.0
        state, grad = torch.randint(-2, 3, (2, 1, 5, height, width), generator=draws).float()
        state[:, 3] = 64.0
        expected, expected_grad = state.clone(), grad.clone()
        for channel, taps in zip(outputs, rule.taps, strict=True):
            expected[0, channel] += add_up(state[0, 4], taps, padding)
            expected_grad[0, 4] += add_up(grad[0, channel], taps, padding, -1)
        options = form | {"rule": rule, "steps": 1}
        leaves = (state.to(device), *network)
        result, grad_state, *_ = differentiate(leaves, grad.to(device), **options)
        where = f"{padding} {alive} {count} filters {height}x{width}"
        if not torch.equal(result.cpu(), expected):
            errors.append(f"{where}: a cell sees something else")
        if not torch.equal(grad_state.cpu(), expected_grad):
            errors.append(f"{where}: a cell feels other gradients")
    return errors


def corner_errors(device: torch.device, form: dict) -> list[str]:
    """A living corner keeps its neighbours alive, on a torus those of the other corners too."""
    errors = []
    sizes = ((3, 3), (17, 8), (4, 17))
    for padding, (height, width) in product(("circular", "zeros"), sizes):
        rule = Rule(("laplacian",), padding=padding, hidden=(HIDDEN,), final_bias=False)
        corners = ((0, 0), (height - 1, width - 1))
        away = torch.stack([distances(height, width, each, padding) for each in corners])
        lives = (away <= 1)[:, None].to(device)
        state = torch.ones(2, 5, height, width, device=device)
        state[:, 3] = torch.where(away == 0, 1.0, -1.0).to(device)
        options = form | {"rule": rule, "steps": 1}
        leaves = (state, *zero_network(rule, 5, device))
        result, grad_state, *_ = differentiate(leaves, **options)
        if not torch.equal(result, state * lives):
            errors.append(f"{padding} {height}x{width}: others live than the corner's neighbours")
        if not torch.equal(grad_state, lives.expand_as(state).float()):
            errors.append(f"{padding} {height}x{width}: others have a gradient")
    return errors


def spread_errors(device: torch.device) -> list[str]:
    """Each of three steps raises alpha by 1 in every living cell; one cell lives in the beginning.

    Most tiles are out of reach, and would rise as well if one step took them for living. On a
    torus life goes through the border. The last channel is an input, or there is none.
    """
    errors = []
    sizes = ((5, 33, (0, 0)), (17, 10, (16, 9)), (3, 25, (1, 8)), (34, 3, (0, 1)), (4, 24, (2, 7)))
    kinds = product(("circular", "zeros"), sizes)
    for number, (padding, (height, width, place)) in enumerate(kinds):
        inputs = number % 2
        rule = Rule(("identity", "laplacian"), padding=padding, hidden=(HIDDEN,), inputs=inputs)
        network = zero_network(rule, 6, device)
        network[3][3] = 1.0
        state = torch.ones(1, 6, height, width, device=device)
        state[:, 3] = 0.0
        state[0, 3, place[0], place[1]] = 1.0
        away = distances(height, width, place, padding).to(device)
        expected = state * (away <= 1)
        expected[0, 3] = (4 - away).clamp(min=0)
        expected_grad = (away <= 1).expand_as(state).float()
        if inputs:
            expected[:, 5:], expected_grad = state[:, 5:], expected_grad.clone()
            expected_grad[:, 5:] = 1.0
        options = STEP | {"rule": rule, "steps": 3}
        result, grad_state, *_, grad_b2 = differentiate((state, *network), **options)
        where = f"{padding} {height}x{width} {place} inputs {inputs}"
        if not torch.equal(result, expected):
            errors.append(f"{where}: life is elsewhere")
        if not torch.equal(grad_state, expected_grad):
            errors.append(f"{where}: gradients are elsewhere")
        if not torch.equal(grad_b2, torch.full_like(grad_b2, expected[0, 3].sum().item() - 1)):
            errors.append(f"{where}: the bias feels another number of updates")
    return errors


def every_cell_errors(device: torch.device) -> list[str]:
    """Without an alive test every cell takes every step, whatever its alpha, and is kept."""
    errors = []
    kinds = product((True, False), ((1, 0), (3, 1), (5, 0), (7, 3)))
    for number, (bias, (channels, inputs)) in enumerate(kinds):
        height, width = ((3, 3), (5, 17), (17, 4))[number % 3]
        padding = "circular" if number % 2 else "zeros"
        rule = Rule(
            WHOLE[:2],
            padding=padding,
            alive="none",
            hidden=(HIDDEN,),
            final_bias=bias,
            inputs=inputs,
        )
        network = zero_network(rule, channels, device)
        update = torch.arange(1.0, channels - inputs + 1, device=device)
        if bias:
            network[3][:] = update
        else:
            network[1][2] = 1.0
            network[2][:, 2, 0, 0] = update
        state = torch.zeros(1, channels, height, width, device=device)
        state[..., ::2] = -1.0
        expected = state.clone()
        expected[:, : channels - inputs] += 2 * update[:, None, None]
        options = STEP | {"rule": rule, "steps": 2}
        result, grad_state, *_, last = differentiate((state, *network), **options)
        where = f"{padding} {channels} channels {height}x{width} bias {bias}"
        if not torch.equal(result, expected):
            errors.append(f"{where}: a cell does not take every step")
        if not torch.equal(grad_state, torch.ones_like(state)):
            errors.append(f"{where}: a cell's gradient is not 1")
        cells = 2 * height * width
        count = last if bias else last[:, 2, 0, 0]
        if not torch.equal(count, torch.full_like(count, cells)):
            errors.append(f"{where}: the last layer feels another number of updates")
    return errors


def threshold_errors(device: torch.device, form: dict) -> list[str]:
    """A cell whose alpha is exactly the threshold is dead, before and after the update."""
    errors = []
    for threshold, padding in ((0.0, "circular"), (0.25, "zeros"), (0.5, "circular")):
        rule = Rule(("identity",), padding=padding, alive_threshold=threshold, hidden=(HIDDEN,))
        for start, rise, lives in (
            (threshold, 0.0, False),
            (threshold + 0.5, -0.5, False),
            (threshold, 0.5, False),
            (threshold + 0.5, 0.0, True),
            (threshold + 0.5, -0.25, True),
        ):
            network = zero_network(rule, 4, device)
            network[3][3] = rise
            state = torch.zeros(1, 4, 3, 9, device=device)
            state[:, 0] = 1.0
            state[:, 3] = -8.0
            state[0, 3, 1, 4] = start
            result = fused_rollout(state, network, rule=rule, steps=1, **form)
            near = (distances(3, 9, (1, 4), padding) <= 1).to(device)
            if not torch.equal(result[0, 0], near * float(lives)):
                errors.append(f"{padding}: {start} and then {rise} above {threshold}")
    return errors


def inputs_errors(device: torch.device) -> list[str]:
    """Inputs come back as they were, bit for bit, wherever cells are dead, alive or out of reach.

    So do numbers that arithmetic would round or lose, in cells that nothing living sees.
    """
    errors = []
    draws = torch.Generator().manual_seed(1)
    kinds = product(("circular", "zeros"), ("both", "none"))
    for number, (padding, alive) in enumerate(kinds):
        inputs = 1 if number in (0, 3) else 3
        rule = Rule(WHOLE[1:3], padding=padding, alive=alive, hidden=(HIDDEN,), inputs=inputs)
        w1, b1, w2, b2 = zero_network(rule, 4 + inputs, device)
        w1 += torch.randn(w1.shape, generator=draws).to(device)
        w2 += torch.randn(w2.shape, generator=draws).to(device)
        state = torch.randn(2, 4 + inputs, 5, 17, generator=draws).to(device)
        state[:, 3] = 0.0
        state[0, 3, 0, 0] = 1.0  # the other grid is dead
        state[:, 4, 2, 7:11] = torch.tensor([-0.0, 1e-42, 1 / 3, 2049.125], device=device)
        grad = torch.randn(state.shape, generator=draws).to(device)
        for form in (*forms(device), STEP | {"steps": 2}):
            options = {"rule": rule, "steps": 1} | form
            result, grad_state, *_ = differentiate((state, w1, b1, w2, b2), grad, **options)
            where = f"{padding} {alive} {inputs} inputs {options['steps']} steps"
            before, after = (each[:, 4:].contiguous().view(torch.int32) for each in (state, result))
            if not torch.equal(before, after):
                errors.append(f"{where}: an input has changed")
            if torch.equal(result[0, :3, :2, :2], state[0, :3, :2, :2]):
                errors.append(f"{where}: no cell has changed")
            if alive == "both":
                far = grad_state[0, 4:, :, 5:13], grad[0, 4:, :, 5:13]
                dead = grad_state[1, 4:], grad[1, 4:]
                if not torch.equal(*far) or not torch.equal(*dead):
                    errors.append(f"{where}: an input that nothing sees has another gradient")
                if grad_state[1, :4].any():
                    errors.append(f"{where}: a dead cell has a gradient")
    return errors


def input_gradient_errors(device: torch.device) -> list[str]:
    """An input's gradient is its own and what the cells that see it and survive hand back.

    One cell lives, so that its neighbourhood survives. They add up what they see of the inputs,
    one channel for each; the cells that they see are dead, or in other tiles.
    """
    errors = []
    kinds = product(("circular", "zeros"), ("both", "none"))
    for number, (padding, alive) in enumerate(kinds):
        height, width, place = (5, 17, (0, 0)) if number in (0, 3) else (17, 6, (16, 4))
        inputs = 1 if number < 2 else 3
        rule = Rule(WHOLE[:1], padding=padding, alive=alive, hidden=(HIDDEN,), inputs=inputs)
        w1, b1, w2, b2 = zero_network(rule, 4 + inputs, device)
        b1 += 512.0
        for number in range(inputs):
            w1[number, 4 + number] = 1.0
            w2[number, number] = 1.0
            b2[number] = -512.0
        draws = torch.Generator().manual_seed(2)
        shape = 1, 4 + inputs, height, width
        state = torch.randint(-2, 3, shape, generator=draws).float()
        state[:, 3] = -1.0
        state[0, 3, place[0], place[1]] = 1.0
        grad = torch.randint(-2, 3, shape, generator=draws).float()
        lives = distances(height, width, place, padding) <= 1
        if alive == "none":
            lives = torch.ones_like(lives)
        seen = add_up(grad[0, :inputs] * lives, rule.taps[0], padding, -1)
        leaves = [leaf.to(device) for leaf in (state, w1, b1, w2, b2)]
        for form in (*forms(device), STEP | {"steps": 2}):
            options = {"rule": rule, "steps": 1} | form
            _, grad_state, *_ = differentiate(leaves, grad.to(device), **options)
            right = grad.clone()
            right[:, :4] *= lives
            right[0, 4:] += options["steps"] * seen
            where = f"{padding} {alive} {inputs} inputs {height}x{width} {place}"
            if not torch.equal(grad_state.cpu(), right):
                errors.append(f"{where} {options['steps']} steps: another gradient")
    return errors


def not_finite_errors(device: torch.device) -> list[str]:
    """What is not finite reaches all neighbours in every step and is not cleared; no other cell.

    The network is zero, and everything is dead where there is an alive test. A single step with
    such a test looks at alpha alone.
    """
    errors = []
    values = [float(value) for value in ("nan", "inf", "-inf")]
    kinds = product(("circular", "zeros"), ("both", "none"))
    for number, (padding, alive) in enumerate(kinds):
        inputs = number % 2
        place = (2, 8) if number == 2 else (0, 0)
        filters = WHOLE[:1]  # no tap is zero
        rule = Rule(filters, padding=padding, alive=alive, hidden=(HIDDEN,), inputs=inputs)
        network = zero_network(rule, 6, device)
        ways = (1, STEP), (1, forms(device)[1]), (2, STEP)
        for channel, (steps, form) in product((0, 3, 5), ways):
            if channel != 3 and form is STEP and (steps == 2 or alive == "both"):
                continue
            value = values[(number + channel + steps) % 3]
            state = torch.zeros(2, 6, 5, 19, device=device)
            state[0, channel, place[0], place[1]] = value
            result = fused_rollout(state, network, rule=rule, steps=steps, **form)
            near = (distances(5, 19, place, padding) <= steps).to(device)
            where = f"{padding} {alive} {value} in channel {channel} at {place}, {steps} steps"
            spoilt = ~result[0, : 6 - inputs].isfinite()
            if not torch.equal(spoilt.any(0), near):
                errors.append(f"{where}: {int(spoilt.any(0).sum())} cells of {int(near.sum())}")
            if not result[1].isfinite().all():
                errors.append(f"{where}: it reaches another grid")
    return errors


def input_overflow_errors(device: torch.device) -> list[str]:
    """What the network makes of the cells never reaches an input, nor does it see its gradient.

    The update is infinite in a cell, in the other grid an input's own gradient is.
    """
    errors = []
    for padding, alive in (("circular", "none"), ("zeros", "both"), ("circular", "both")):
        rule = Rule(WHOLE[:2], padding=padding, alive=alive, hidden=(HIDDEN,), inputs=2)
        network = zero_network(rule, 6, device)
        network[0][0, 0], network[2][0, 0] = 1.0, 1.0
        state = torch.ones(2, 6, 3, 3, device=device)
        state[0, 0, 1, 1] = float("inf")
        grad = torch.ones_like(state)
        grad[1, 4, 1, 1] = float("inf")
        options = forms(device)[1] | {"rule": rule, "steps": 1, "precision": "ieee"}
        result, *_ = differentiate((state, *network), **options)
        where = f"{padding} {alive}"
        if result[0, :4].isfinite().all():
            errors.append(f"{where}: an update is not infinite")
        if not torch.equal(result[:, 4:], state[:, 4:]):
            errors.append(f"{where}: an input has changed")
        state[0, 0, 1, 1] = 1.0
        _, grad_state, *grads = differentiate((state, *network), grad, **options)
        spoilt = (~grad_state.isfinite()).nonzero().tolist()
        if spoilt != [[1, 4, 1, 1]] or not all(each.isfinite().all() for each in grads):
            errors.append(f"{where}: an input's gradient has reached the network")
    return errors


def reach_errors(device: torch.device) -> list[str]:
    """A cell sees its neighbour beyond a border that only the second cell beyond it keeps alive.

    Two cells of a line live, two cells apart; those between them see each other in the second step.
    Rolled to where no border is, the result is the same.
    """
    taps = ((0, 1, 0), (1, 0, 1), (0, 1, 0))
    rule = Rule((taps,), padding="circular", hidden=(HIDDEN,))
    network = zero_network(rule, 5, device)
    network[0][0, 4], network[2][0, 0] = 1.0, 1.0
    state = torch.ones(2, 5, 9, 9)
    state[:, 3] = 0.0
    state[0, 3, 4, [1, 7]] = 1.0
    state[1] = state[0].transpose(1, 2)
    found = {}
    for shift in (0, 4, 5):
        rolled = state.roll((shift, shift), (2, 3)).to(device)
        result = fused_rollout(rolled, network, rule=rule, steps=2, **STEP)
        found[shift] = result.roll((-shift, -shift), (2, 3))
    if not (found[4][:, 0] > 1).any():
        return ["no cell sees another"]
    return [
        f"rolled by {shift}: others see"
        for shift in found
        if not torch.equal(found[shift], found[4])
    ]
