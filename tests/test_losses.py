"""Losses of the caller's, several states of a rollout, several goals: against plain modules."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from fastnca import NeuralCA, Rule, create_seed, create_target, create_target_circle
from fastnca.losses import OverflowLoss, RGBALoss, TextureLoss, WeightedSum
from fastnca.losses.weighted import prepared
from fastnca.training import EmaTracker, PoolTrainer, TrainConfig
from tests.helpers import excite
from tests.runs import advance, assert_same

SMALL = {"pool_size": 6, "batch_size": 3, "min_steps": 8, "max_steps": 13, "seed": 1}


def make(loss=None, target=None, seed_state=None, model=None, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = model or excite(NeuralCA(8, 6, backend="torch").to(dtype))
    target = create_target_circle(8, dtype=dtype) if target is None else target
    config = TrainConfig(**{**SMALL, **options})
    return PoolTrainer(model, target, config, loss=loss, seed_state=seed_state)


BRIGHT = torch.ones(1, 8, 8, 8)


def last_state(states, target):
    return (states[-1][:, :4] - target).square().mean(dim=(1, 2, 3))


def all_states(states, target):
    """Weigh states by their place, and couple neighbours: no sum over single states."""
    losses = [k * (s[:, :4] - target).square().mean(dim=(1, 2, 3)) for k, s in enumerate(states, 1)]
    pairs = zip(states[1:], states[:-1], strict=True)
    return sum(losses) + sum((a - b).square().mean(dim=(1, 2, 3)) for a, b in pairs)


@pytest.mark.parametrize("loss", [all_states, RGBALoss(clamp=False)])
@pytest.mark.parametrize("backend", ["torch", "cpp", "reference"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_states_on_the_way_are_those_of_one_graph(loss, backend, micro_batches):
    """`loss_steps=4` equals one graph of the plain modules, loss and every gradient."""
    torch.manual_seed(3)
    model = excite(NeuralCA(8, 6, backend=backend).double(), 0.1)
    plain = copy.deepcopy(model)
    plain.backend = "reference"
    options = {"loss_steps": 4, "gradient": "none", "reseed": "none", "use_pool": False}
    options |= {"micro_batches": micro_batches}
    each = make(
        loss, model=model, dtype=torch.float64, target=create_target_circle(8).double(), **options
    )
    draw = each.sampler.peek()
    result = each.step()

    assert draw.steps >= 8
    whole = []
    for number, count in enumerate((3,) if micro_batches == 1 else (2, 1)):
        state, states = create_seed(8, 8, batch=count, dtype=torch.float64), []
        for step in range(draw.steps):
            seed = (draw.seed + number) % (2**63)
            state = plain.run_steps(state, 1, seed=seed, first_step=step)
            if step + 1 in [k * draw.steps // 4 for k in (1, 2, 3, 4)]:
                states.append(state)
        whole.append(loss(states, each.target.expand(count, -1, -1, -1)))
    expected = torch.cat(whole).mean()
    expected.backward()
    assert result.loss == pytest.approx(expected.item(), rel=1e-10)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            continue
        scale = float(theirs.grad.abs().max())
        assert scale > 0, name
        assert float((ours.grad - theirs.grad).abs().max()) <= 1e-10 * scale, name


def test_a_loss_of_the_callers_that_is_the_default_gives_the_same_run():
    ours, theirs = make(RGBALoss()), make()
    advance(ours, 6)
    advance(theirs, 6)
    assert_same(ours, theirs)


def test_the_loss_sees_as_many_states_as_it_asks_for():
    seen = []

    def watch(states, target):
        seen.append((len(states), [tuple(s.shape) for s in states], tuple(target.shape)))
        return last_state(states, target)

    each = make(watch, loss_steps=3, reseed="before")
    each.add_callback(EmaTracker(every=1, steps=(2, 4)))
    each.config.__dict__["iterations"] = 2
    each.fit(progress=False)
    assert (3, [(3, 8, 8, 8)] * 3, (3, 4, 8, 8)) in seen
    assert {count for count, _, _ in seen} == {3}  # also where states are ranked or evaluated


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            lambda states, target: F.mse_loss(states[-1][:, :4], target),
            r"per sample, \[1\], got \[\]",
        ),
        (lambda states, target: 1.0, "got float"),
        (lambda states, target: states[-1].mean(dim=(2, 3)), r"got \[1, 8\]"),
    ],
)
def test_a_loss_that_is_not_one_value_per_sample_is_refused(loss, words):
    with pytest.raises(ValueError, match=words):
        make(loss)


def test_what_is_no_loss_or_no_seed_is_refused():
    for options, error, words in [
        ({"loss": 3}, TypeError, "loss must be callable, got int"),
        ({"seed_state": torch.zeros(1, 7, 8, 8)}, ValueError, r"must be \[N, 8, height, width\]"),
        (
            {"seed_state": torch.zeros(1, 8, 8, 8).double()},
            ValueError,
            "seed_state is torch.float64",
        ),
        ({"seed_state": torch.full((1, 8, 8, 8), math.nan)}, ValueError, "NaN or infinite"),
        ({"seed_state": [1]}, TypeError, "must be a torch.Tensor, got list"),
        (
            {"seed_state": torch.ones(2, 8, 8, 8), "target": torch.zeros(3, 4, 8, 8)},
            ValueError,
            "2 seeds and 3 targets",
        ),
        ({"target": torch.zeros(3, 4, 8, 8)}, ValueError, "from one seed cannot be told apart"),
        ({"seed_state": torch.ones(1, 8, 8, 9)}, ValueError, "8x8 cells and the seed 8x9"),
        (
            {"target": torch.zeros(1, 4, 1, 8), "seed_state": torch.ones(1, 8, 8, 8)},
            ValueError,
            "1x8",
        ),
        (
            {"target": torch.zeros(1, 8, 8), "outside": 0.2, "loss": last_state},
            ValueError,
            r"outside=0\.2 needs targets \[N, 4, H, W\], got \[1, 8, 8\]",
        ),
        ({"loss_steps": 9}, ValueError, "loss_steps=9 states need as many steps"),
        ({"loss_steps": 0}, ValueError, "loss_steps must be at least 1"),
    ]:
        with pytest.raises(error, match=words):
            make(**options)


def test_overflow_is_how_far_values_lie_out_of_range():
    state = torch.zeros(2, 6, 4, 4)
    state[0, 5, 0, 0], state[0, 4, 1, 1], state[1, 2, 3, 3], state[1, 0, 0, 0] = (
        3.0,
        -1.5,
        -0.25,
        0.5,
    )
    assert OverflowLoss()([state]).tolist() == pytest.approx([2.5 / 96, 0.0])
    assert OverflowLoss(colors=4)([state, 0 * state]).tolist() == pytest.approx(
        [1.25 / 96, 0.125 / 96]
    )


def test_a_weighted_sum_is_the_sum_of_its_terms():
    target = torch.cat([create_target("heart", 16), create_target("star", 16)])
    states = [torch.rand(2, 8, 16, 16), torch.rand(2, 8, 16, 16)]
    texture = TextureLoss()
    terms = (2.0, RGBALoss()), (0.5, OverflowLoss(colors=4)), (3.0, texture)
    both = WeightedSum(*terms)
    assert both.capturable
    assert both.colors == 4
    ours = both(states, prepared(both, target))
    expected = 2.0 * RGBALoss()(states, target) + 0.5 * OverflowLoss(colors=4)(states)
    expected = expected + 3.0 * texture(states, texture.prepare(target))
    torch.testing.assert_close(ours, expected)
    assert not WeightedSum((1.0, last_state)).capturable
    with pytest.raises(ValueError, match="at least one pair"):
        WeightedSum()


def goals(count=3, size=8, inputs=2, **options):
    """Make a trainer of one model with several targets, told apart by the inputs of its rule."""
    torch.manual_seed(0)
    model = excite(NeuralCA(8 + inputs, 6, rule=Rule(inputs=inputs, hidden=(6,)), backend="torch"))
    target = torch.rand(count, 4, size, size)
    seeds = create_seed(size, 8 + inputs, batch=count)
    seeds[:, -inputs:] = torch.rand(count, inputs, 1, 1)
    return make(target=target, seed_state=seeds, model=model, **options)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reseed": "before", "damage": 1, "damage_radius": (3.0, 3.0)},
        {"use_pool": False, "reseed": "none"},
        {"gradient": "balance", "reseed": "before", "reseed_spare": 1, "micro_batches": 2},
        {"loss_steps": 2, "pool_size": 7, "replacement": False},
    ],
    ids=["after", "damage", "no pool", "balance", "loss_steps"],
)
def test_every_state_keeps_its_goal(options):
    each = goals(**options)
    inputs = each.seed_state[:, -2:, 0, 0]
    for _ in range(8):
        draw = each.sampler.peek()
        batch = each.iterate.prepare(draw)
        slots = batch.slots % 3
        assert torch.equal(batch.states[:, -2:, 3, 4], inputs[slots])
        assert torch.equal(batch.states[:, -2:, 0, 0], inputs[slots])  # damage cuts no inputs
        ours = each.task.losses([batch.states], batch.goals)
        expected = RGBALoss()([batch.states], each.target[slots])
        assert torch.equal(ours, expected)
        each.step()
    if each.config.use_pool:
        numbers = torch.arange(len(each.pool)) % 3
        assert torch.equal(each.pool.states[:, -2:, 0, 0], inputs[numbers])
    assert len(set(each.losses)) == 8


def test_several_seeds_may_have_one_target():
    seeds = create_seed(8, 8, batch=2)
    seeds[1, 5] = 0.5
    each = make(seed_state=seeds, reseed="before")
    advance(each, 3)
    assert each.task.goals == 2
    assert each.target.shape == (1, 4, 8, 8)
    options = {"seed_state": seeds, "reseed": "before", "outside": 0.5}
    one, two = (
        make(target=create_target("star", 8).expand(n, -1, -1, -1), **options) for n in (1, 2)
    )
    assert [one.step().loss for _ in range(4)] == [two.step().loss for _ in range(4)]
    for ours, theirs in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["goals", "loss", "steps"])
def test_a_run_with_goals_and_a_loss_resumes_bit_for_bit(tmp_path, kind):
    def build():
        if kind == "goals":
            return goals(reseed="before", damage=1)
        return make(all_states, loss_steps=4 if kind == "steps" else 1)

    straight, first, second = build(), build(), build()
    advance(straight, 8)
    advance(first, 4)
    first.save(tmp_path)
    second.resume(tmp_path)
    advance(second, 4)
    assert_same(straight, second)


def test_another_loss_or_other_seeds_are_another_run(tmp_path):
    make(all_states).save(tmp_path)
    with pytest.raises(ValueError, match=r"loss tests\.test_losses\.all_states, this one None"):
        make().resume(tmp_path)
    goals().save(tmp_path / "goals")
    other = goals()
    other.task.custom_seed = other.seed_state + 1
    with pytest.raises(ValueError, match="has another seed state"):
        other.resume(tmp_path / "goals")


def test_labels_can_be_targets():
    """A segmentation loss: class scores in the channels, class numbers as targets."""
    rule = Rule(alive="none", inputs=1, hidden=(6,))
    model = excite(NeuralCA(6, 6, rule=rule))
    labels = torch.randint(0, 3, (4, 5, 7))
    seeds = torch.zeros(4, 6, 5, 7)
    seeds[:, -1] = labels / 2

    def cross_entropy(states, target):
        return F.cross_entropy(states[-1][:, :3], target, reduction="none").mean(dim=(1, 2))

    each = make(cross_entropy, target=labels, seed_state=seeds, model=model, reseed="before")
    assert all(math.isfinite(each.step().loss) for _ in range(5))


def test_a_rectangle_grows_from_its_middle():
    each = make(target=create_target("heart", (5, 9)))
    assert each.seed_state.shape == (1, 8, 5, 9)
    assert each.seed_state[0, 3].nonzero().tolist() == [[2, 4]]
    advance(each, 3)


def test_a_seed_of_zeros():
    with pytest.raises(ValueError, match="nothing lives in the seed"):
        make(start="zeros")
    rule = Rule(alive="none", hidden=(6,))
    model = excite(NeuralCA(8, rule=rule))
    each = make(model=model, start="zeros", reseed="before", fill_hidden=True)
    assert not each.seed_state.any()
    result = each.step()
    assert (result.dead, result.seeds) == (0, 3)  # without a test nothing is dead
