"""The cpp backend on variants of the rule, against plain torch in float64."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.backends.cpp import rule_reasons
from fastnca.checks import OutOfRangeError
from fastnca.masks import Updates, update_masks
from fastnca.rule import RULES, Rule
from tests.helpers import COMPILED, cpp_rollout, relative_error

SKEW = ((0.3, -0.1, 0.7), (0.2, 0.5, -0.6), (-0.9, 0.4, 0.1))
EDGE = ((0.0, 0.0, 1.0), (0.0, -0.5, 0.0), (0.25, 0.0, 0.0))
TEXTURE = RULES["texture"]
SIZES = [(1, 1), (1, 5), (5, 1), (2, 3), (3, 3), (7, 6), (9, 13)]

VARIANTS = {
    "tutorial": Rule(),
    "texture": TEXTURE,
    "texture, growing": replace(TEXTURE, alive="both", alive_threshold=0.2),
    "one filter": Rule(filters=(SKEW,)),
    "two filters": Rule(filters=("laplacian", SKEW), padding="circular"),
    "four skew filters": Rule(filters=(EDGE, SKEW, "sobel_x", "identity"), alive="none"),
    "tutorial and skew": Rule(filters=("identity", "sobel_x", "sobel_y", SKEW), alive="after"),
    "torus": Rule(padding="circular"),
    "torus, before": Rule(padding="circular", alive="before"),
    "torus, after": Rule(padding="circular", alive="after"),
    "before": Rule(alive="before", final_bias=False),
    "after": Rule(alive="after", alive_threshold=0.6),
    "threshold 0": Rule(alive_threshold=0.0),
    "none": Rule(alive="none"),
    "reflect": Rule(padding="reflect"),
    "reflect, dense": Rule(padding="reflect", alive="none", filters=(SKEW, EDGE)),
    "replicate": Rule(padding="replicate"),
    "replicate, dense": Rule(padding="replicate", alive="none", filters=(SKEW, EDGE)),
    "inputs": Rule(inputs=2),
    "inputs, torus": replace(TEXTURE, inputs=3),
    "inputs, before": Rule(inputs=1, alive="before", padding="circular", final_bias=False),
    "inputs, after": Rule(inputs=3, alive="after"),
    "step size": Rule(step_size=0.3),
    "clamp": Rule(clamp=(-0.2, 0.9)),
    "clamp, dense": replace(TEXTURE, clamp=(-0.25, 0.3), step_size=1.5, inputs=1),
}


def alive(state: Tensor, rule: Rule) -> Tensor:
    """Tell which cells have a visible neighbour, as `[B, 1, H, W]` of 0 and 1."""
    visible = (state[:, 3:4] > rule.alive_threshold).to(state.dtype)
    mode = "circular" if rule.padding == "circular" else "constant"
    around = F.pad(visible, (1, 1, 1, 1), mode=mode)
    height, width = state.shape[2:]
    near = [around[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(near).amax(0)


def perceive(state: Tensor, rule: Rule) -> Tensor:
    """See every channel through every filter, tap by tap: `[B, K*C, H, W]`."""
    mode = "constant" if rule.padding == "zeros" else rule.padding
    around = F.pad(state, (1, 1, 1, 1), mode=mode)
    height, width = state.shape[2:]
    seen = [
        sum(
            taps[y][x] * around[:, :, y : y + height, x : x + width]
            for y in range(3)
            for x in range(3)
        )
        for taps in rule.taps
    ]
    return torch.stack(seen, 2).flatten(1, 2)


def expected_rollout(state: Tensor, parameters: list[Tensor], masks: Tensor, rule: Rule) -> Tensor:
    """Advance a state by the steps of `masks`, `[T, B, H, W]`."""
    w1, b1, w2 = parameters[:3]
    bias = parameters[3] if rule.final_bias else None
    own = state.shape[1] - rule.inputs
    for mask in masks[:, :, None]:
        cells, rest = state[:, :own], state[:, own:]
        delta = F.conv2d(F.conv2d(perceive(state, rule), w1, b1).relu(), w2, bias)
        updated = cells + rule.step_size * delta
        if rule.clamp is not None:
            inside = (updated >= rule.clamp[0]) & (updated <= rule.clamp[1])
            updated = torch.where(inside, updated, updated.detach().clamp(*rule.clamp))
        updated = torch.where(mask, updated, cells)
        living = torch.ones_like(updated[:, :1])
        if rule.alive_before:
            living = living * alive(state, rule)
        if rule.alive_after:
            living = living * alive(updated, rule)
        state = torch.cat([updated * living, rest], 1)
    return state


def make(rule: Rule, shape, hidden=9, seed=0, dtype=torch.float64, scale=0.3):
    """Return a state, of which some cells are dead, and the parameters of a rule."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    perceived, own = len(rule.filters) * channels, channels - rule.inputs
    shapes = [(hidden, perceived, 1, 1), (hidden,), (own, hidden, 1, 1), (own,)]
    parameters = [scale * torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    state = torch.rand(shape, generator=generator, dtype=dtype)
    if rule.alive != "none":
        living = torch.rand(batch, 1, height, width, generator=generator, dtype=dtype) < 0.4
        state[:, 3:4] *= living
        state[: batch // 2, :own, : height // 2] = 0
    return state, parameters[: 4 if rule.final_bias else 3]


def differentiate(rollout, state, parameters):
    """Return the last state and the gradients of the first one and of the parameters."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (state, *parameters)]
    end = rollout(leaves[0], tuple(leaves[1:]))
    weights = torch.linspace(-1, 1, end.numel(), dtype=end.dtype).view_as(end)
    grads = torch.autograd.grad((weights * end).sum() + (end**2).sum(), leaves)
    return [end.detach(), *grads]


def compare(rule, shape, steps=3, hidden=9, seed=0, **options):
    """Return the largest relative error of the last state and of every gradient."""
    state, parameters = make(rule, shape, hidden, seed, **options)
    updates = Updates(steps, None, seed + 5, 0, 0.6)
    masks = update_masks(updates.seed, 0, steps, state.shape, updates.update_rate)
    found = differentiate(lambda s, p: cpp_rollout(s, p, updates, rule), state, parameters)
    wanted = differentiate(lambda s, p: expected_rollout(s, p, masks, rule), state, parameters)
    assert [each.shape for each in found] == [each.shape for each in wanted]
    return max(map(relative_error, found, wanted))


def fits(rule, size):
    return rule.padding != "reflect" or min(size) > 1


@COMPILED
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_on_odd_sizes(name):
    rule = VARIANTS[name]
    for size in SIZES:
        if fits(rule, size):
            assert compare(rule, (2, 7, *size), 4, seed=sum(size)) <= 1e-10, size


@COMPILED
@pytest.mark.parametrize("channels", [4, 5, 12, 16, 17, 24, 33])
@pytest.mark.parametrize("filters", [1, 2, 3, 4])
def test_channels_and_filters_around_whole_vectors(channels, filters):
    """Features are stored compactly: whole vectors of them overlap."""
    for every in (("identity", "sobel_x", "sobel_y", "laplacian"), (SKEW, EDGE, "sobel_y", SKEW)):
        rule = Rule(filters=every[:filters], padding="circular", alive="none")
        assert compare(rule, (1, channels, 5, 8), 2, hidden=11) <= 1e-10
        assert compare(rule, (1, channels, 5, 8), 2, 11, dtype=torch.float32) <= 2e-5


@COMPILED
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_fewer_channels_than_an_alpha(channels):
    rule = Rule(alive="none", inputs=channels - 1, padding="circular")
    assert compare(rule, (2, channels, 4, 5)) <= 1e-10


@COMPILED
def test_patterns_that_cross_the_border_of_a_torus():
    """Only some lines are looked at, until the pattern comes to a border."""
    rule = Rule(padding="circular")
    state, parameters = make(rule, (1, 6, 31, 9), scale=0.2)
    masks = torch.ones(12, 1, 31, 9, dtype=torch.bool)
    for y, x in ((15, 4), (4, 0), (2, 8), (0, 0), (30, 8)):
        start = torch.zeros_like(state)
        start[:, :, y, x] = 0.9
        found, wanted = (
            differentiate(rollout, start, parameters)
            for rollout in (
                lambda s, p: cpp_rollout(s, p, Updates(12, masks), rule),
                lambda s, p: expected_rollout(s, p, masks, rule),
            )
        )
        assert max(map(relative_error, found, wanted)) <= 1e-10


@COMPILED
@pytest.mark.parametrize("name", ["torus", "texture", "inputs, torus", "clamp, dense"])
def test_shifts_of_a_torus_shift_the_result(name):
    rule = VARIANTS[name]
    state, parameters = make(rule, (1, 7, 6, 5))
    whole = cpp_rollout(state, tuple(parameters), Updates(5), rule)
    for shift in ((1, 0), (-1, 2), (3, -2)):
        moved = cpp_rollout(state.roll(shift, (2, 3)), tuple(parameters), Updates(5), rule)
        assert torch.equal(moved, whole.roll(shift, (2, 3)))


@COMPILED
@pytest.mark.parametrize("name", VARIANTS)
def test_continued_rollouts_and_given_masks_are_the_same_steps(name):
    rule = VARIANTS[name]
    state, parameters = make(rule, (2, 7, 6, 5))
    whole = cpp_rollout(state, tuple(parameters), Updates(5, None, 3, 0, 0.5), rule)
    part = cpp_rollout(state, tuple(parameters), Updates(2, None, 3, 0, 0.5), rule)
    part = cpp_rollout(part, tuple(parameters), Updates(3, None, 3, 2, 0.5), rule)
    given = Updates(5, update_masks(3, 0, 5, state.shape, 0.5))
    assert torch.equal(part, whole)
    assert torch.equal(cpp_rollout(state, tuple(parameters), given, rule), whole)


@COMPILED
@pytest.mark.parametrize("name", ["inputs", "inputs, torus", "inputs, before", "inputs, after"])
def test_no_step_writes_inputs(name):
    rule = VARIANTS[name]
    state, parameters = make(rule, (2, 7, 6, 5))
    end = cpp_rollout(state, tuple(parameters), Updates(5), rule)
    assert torch.equal(end[:, -rule.inputs :], state[:, -rule.inputs :])
    other = state.clone()
    other[:, -1] += 0.5
    assert not torch.equal(cpp_rollout(other, tuple(parameters), Updates(5), rule), end)


@pytest.mark.one_in(3)
@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["texture", "tutorial", "torus, after", "clamp, dense"])
def test_the_number_of_threads_changes_no_bit(name, batch, dtype):
    """On grids large enough for several sums, which threads share also in the backward pass."""
    rule = VARIANTS[name]
    state, parameters = make(rule, (batch, 6, 91, 97), 10, dtype=dtype)
    updates = Updates(3, None, 7, 0, 0.7)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(
                differentiate(lambda s, p: cpp_rollout(s, p, updates, rule), state, parameters)
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@COMPILED
@pytest.mark.parametrize("name", ["texture", "tutorial", "torus, after", "inputs, torus"])
def test_large_grids(name):
    assert compare(VARIANTS[name], (2, 6, 70, 67)) <= 1e-10


@COMPILED
def test_gradients_that_are_not_wanted_are_not_computed():
    rule = VARIANTS["inputs, torus"]
    state, parameters = make(rule, (2, 7, 6, 5))
    expected = differentiate(lambda s, p: cpp_rollout(s, p, Updates(3), rule), state, parameters)
    for wanted in range(4):
        leaves = [tensor.clone() for tensor in (state, *parameters)]
        leaves[wanted].requires_grad_()
        end = cpp_rollout(leaves[0], tuple(leaves[1:]), Updates(3), rule)
        weights = torch.linspace(-1, 1, end.numel(), dtype=end.dtype).view_as(end)
        ((weights * end).sum() + (end**2).sum()).backward()
        assert torch.equal(leaves[wanted].grad, expected[wanted + 1])
        assert all(leaf.grad is None for i, leaf in enumerate(leaves) if i != wanted)


@COMPILED
def test_values_beyond_the_range_are_refused_also_where_a_clamp_would_hide_them():
    for rule in (TEXTURE, replace(TEXTURE, clamp=(-1, 1))):
        state, parameters = make(rule, (1, 12, 4, 4))
        state[0, 3, 1, 2] = 1e200
        with pytest.raises(OutOfRangeError):
            cpp_rollout(state, tuple(parameters), Updates(1), rule)
    huge = replace(TEXTURE, filters=(((1e9,) * 3,) * 3,))
    state, parameters = make(huge, (1, 12, 4, 4))
    for rule in (huge, replace(huge, filters=(SKEW,), step_size=1e9)):
        with pytest.raises(OutOfRangeError):
            cpp_rollout(state, tuple(parameters), Updates(1), rule)


@COMPILED
def test_random_rules():
    rng = random.Random(1)
    for number in range(60):
        clamp = rng.choice((None, None, (-0.4, 0.8)))
        filters = rng.choices(("identity", "sobel_x", "sobel_y", "laplacian", SKEW, EDGE), k=4)
        rule = Rule(
            filters=tuple(filters[: rng.randrange(1, 5)]),
            padding=rng.choice(("zeros", "circular", "reflect", "replicate")),
            alive=rng.choice(("both", "before", "after", "none")),
            alive_threshold=rng.choice((0.0, 0.1, 0.5)),
            final_bias=rng.random() < 0.5,
            inputs=rng.randrange(4),
            clamp=clamp,
            step_size=rng.choice((1.0, 0.5)),
        )
        shape = (2, 4 + rule.inputs + rng.randrange(9), rng.randrange(2, 9), rng.randrange(2, 9))
        assert compare(rule, shape, seed=number) <= 1e-10, str(rule)


@pytest.mark.parametrize(
    ("rule", "start"),
    [
        (Rule(learn_filters=True), "learn_filters=True: "),
        (Rule(filters=("identity",) * 5), "filters=('identity', "),
        (Rule(hidden=()), "hidden=(): "),
        (Rule(hidden=(8, 8)), "hidden=(8, 8): "),
        (Rule(activation="tanh"), "activation='tanh': "),
    ],
    ids=lambda value: str(value)[:24],
)
def test_rules_that_are_refused(rule, start):
    (reason,) = rule_reasons(rule)
    assert reason.startswith(start)
    state, parameters = make(rule, (1, 5, 3, 3))
    with pytest.raises(ValueError, match="the cpp backend computes"):
        cpp_rollout(state, tuple(parameters), Updates(1), rule)


def test_no_rule_that_is_computed_has_a_reason():
    assert not any(map(rule_reasons, VARIANTS.values()))


def test_states_and_parameters_that_do_not_fit_a_rule_are_refused():
    state, parameters = make(Rule(), (1, 6, 4, 1))
    for rule, match in (
        (Rule(inputs=3), "at least 7 channels"),
        (Rule(inputs=6, alive="none"), "at least 7 channels"),
        (Rule(padding="reflect"), "at least 2 cells a side"),
        (Rule(inputs=1), r"\[5, \d+, 1, 1\]"),
        (Rule(final_bias=False), r"\[6, \d+, 1, 1\], got"),
        (Rule(filters=("identity",)), r"\[\d+, 6, 1, 1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            cpp_rollout(state, tuple(parameters), Updates(1), rule)
