"""What each option of a recipe does to a training run."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastnca import NeuralCA, create_seed, create_target_circle
from fastnca.training import PRESETS, PoolTrainer, TrainConfig
from fastnca.training.optimizer import learning_rate
from fastnca.training.sampling import adapt
from tests.helpers import excite
from tests.runs import SMALL, advance, make_trainer


def rates(iterations, **options):
    config = TrainConfig(iterations=iterations, learning_rate=1.0, **options)
    return [learning_rate(config, iteration) for iteration in range(iterations + 2)]


def test_cosine_falls_from_the_learning_rate_to_its_last_value_and_stays_there():
    found = rates(100, schedule="cosine", decay=0.2)
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(101)]
    assert found == pytest.approx([*expected, 0.2])


def test_milestones_multiply_the_learning_rate():
    assert rates(4, milestones=(1, 3), decay=0.5) == [1.0, 0.5, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_is_held_before_it_falls(schedule):
    held, alone = rates(10, schedule=schedule, hold=0.4), rates(6, schedule=schedule)
    assert held == pytest.approx([1.0] * 4 + alone)


def test_a_linear_fall_is_a_straight_line_to_its_last_value():
    found = rates(4, schedule="linear", decay=0.2)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


@pytest.mark.parametrize("schedule", ["milestones", "linear", "cosine"])
def test_warm_up_rises_to_the_schedule(schedule):
    warm, cold = rates(8, schedule=schedule, warm_up=4), rates(8, schedule=schedule)
    factors = [a / b for a, b in zip(warm, cold, strict=True)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_the_trainer_takes_the_schedule_and_adam_the_betas():
    each = make_trainer(schedule="cosine", warm_up=2, iterations=4, betas=(0.5, 0.25))
    found = [each.step().learning_rate for _ in range(4)]
    assert found == [learning_rate(each.config, iteration) for iteration in range(4)]
    assert each.optimizer.adam.param_groups[0]["betas"] == (0.5, 0.25)


def test_overflow_adds_the_gradient_of_its_penalty():
    torch.manual_seed(0)
    config = TrainConfig(**{**SMALL, "overflow": 0.3, "gradient": "none", "clamp_loss": False})
    model = NeuralCA(6, 8, backend="torch")
    excite(model, 2.0)
    each = PoolTrainer(model, create_target_circle(8), config)
    draw = each.sampler.peek()
    copy = NeuralCA(6, 8, backend="reference")
    copy.load_state_dict(model.state_dict())
    each.step()
    end = copy.run_steps(each.seed_state.repeat(3, 1, 1, 1), draw.steps, 0.5, seed=draw.seed)
    low = torch.tensor([0.0] * 4 + [-1.0] * 2)[None, :, None, None]
    excess = torch.where(end > 1, end - 1, torch.where(end < low, low - end, 0.0))
    assert excess.max() > 0.1
    loss = F.mse_loss(end[:, :4], each.target.expand(3, -1, -1, -1))
    (loss + 0.3 * excess.mean()).backward()
    assert each.losses[0] == pytest.approx(loss.item(), rel=1e-4)  # the penalty is not in it
    for ours, theirs in zip(model.parameters(), copy.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_overflow_is_the_same_with_micro_batches():
    def gradients(micro_batches):
        torch.manual_seed(0)
        options = {"overflow": 0.3, "gradient": "none", "update_rate": 1.0}
        config = TrainConfig(**{**SMALL, **options, "micro_batches": micro_batches})
        model = NeuralCA(6, 8, backend="torch")
        excite(model, 2.0)
        PoolTrainer(model, create_target_circle(8), config).step()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for whole, cut in zip(gradients(1), gradients(2), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_a_ramp_shortens_rollouts_and_changes_no_other_draw():
    each = make_trainer("regenerating", damage=2, ramp=100, ramp_from=0.25, damage_start=50)
    draw = each.sampler.next()
    drawn = replace(draw, steps=80)
    found = [adapt(drawn, each.config, i) for i in (0, 50, 99, 100)]
    assert [late.steps for late in found] == [20, 50, 79, 80]
    assert [bool(late.radii.all()) for late in found] == [False, True, True, True]
    for late in found:
        assert late.slots is draw.slots
        assert late.centers is draw.centers
        assert late.seed == draw.seed


def test_a_ramp_ends_where_a_run_without_it_goes_on():
    each, plain = (make_trainer(ramp=ramp, min_steps=20, max_steps=40) for ramp in (4, 0))
    steps = [(each.step().steps, plain.step().steps) for _ in range(6)]
    assert all(short < long for short, long in steps[:4])
    assert steps[0][0] == round(0.4 * steps[0][1])
    assert all(short == long for short, long in steps[4:])


def test_outside_adds_the_gradient_of_its_penalty():
    """At a quarter of the learning rate, half of it near the target and thrice of it elsewhere."""

    def gradients(backend, weight):
        torch.manual_seed(0)
        options = {"outside": weight, "gradient": "none", "update_rate": 1.0, "seed": 5}
        options |= {"milestones": (0,), "decay": 0.25, "min_steps": 10, "max_steps": 11}
        config = TrainConfig(**{**SMALL, **options})
        model = excite(NeuralCA(6, 8, backend=backend), 2.0)
        each = PoolTrainer(model, create_target_circle(20), config)
        draw = each.sampler.peek()
        each.step()
        return each, draw, [p.grad for p in model.parameters() if p.grad is not None]

    _, _, plain = gradients("torch", 0.0)
    each, draw, found = gradients("torch", 0.7)
    torch.manual_seed(0)
    model = excite(NeuralCA(6, 8, backend="reference"), 2.0)
    end = model.run_steps(each.seed_state.repeat(3, 1, 1, 1), draw.steps, 1.0, seed=draw.seed)
    covered = (each.target[0, 3] > 0).nonzero()
    weight = torch.zeros(20, 20)
    for cell in (each.target[0, 3] == 0).nonzero():
        distance = (covered - cell).abs().amax(1).min()
        weight[tuple(cell)] = 0.35 if distance <= 2 else 2.1
    outside = end[:, 3].relu() * weight
    assert (outside * (weight == 0.35)).sum() > 0.1
    assert (outside * (weight == 2.1)).sum() > 0.1
    outside.mean().backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    for ours, without, parameter in zip(found, plain, parameters, strict=True):
        torch.testing.assert_close(ours - without, parameter.grad, rtol=1e-3, atol=1e-5)


BALANCED = {
    "pool_size": 6,
    "use_pool": True,
    "replacement": False,
    "batch_size": 3,
    "reseed": "before",
    "update_rate": 1.0,
    "clamp_loss": False,
}


def balanced(count, **options):
    """A trainer and, by the reference, the gradients of seeds and others of its next batch."""
    torch.manual_seed(0)
    options = {**SMALL, **BALANCED, "reseed_count": count, **options}
    model = excite(NeuralCA(6, 8, backend="torch"), 2.0)
    each = PoolTrainer(model, create_target_circle(8), TrainConfig(**options))
    each.pool.states[:] = each.seed_state + 0.3 * torch.rand(each.pool.states.shape)
    draw = each.sampler.peek()
    states = each.iterate.prepare(draw).states
    copy = NeuralCA(6, 8, backend="reference")
    copy.load_state_dict(model.state_dict())
    found = []
    for part in (states[:count], states[count:]):
        copy.zero_grad()
        end = copy.run_steps(part, draw.steps, 1.0, seed=draw.seed)
        F.mse_loss(end[:, :4], each.target.expand(len(part), -1, -1, -1)).backward()
        found.append([p.grad for p in copy.parameters() if p.grad is not None])
    return each, found


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_balanced_gradients_give_seeds_and_others_the_same_weight(count, micro_batches):
    each, (seeds, others) = balanced(count, gradient="balance", micro_batches=micro_batches)
    result = each.step()
    total = 0.0
    parameters = [p for p in each.model.parameters() if p.grad is not None]
    for parameter, seed, other in zip(parameters, seeds, others, strict=True):
        both = seed / seed.norm() + other / other.norm()
        torch.testing.assert_close(parameter.grad, both / both.norm(), rtol=1e-3, atol=1e-4)
        total += ((count * seed + (3 - count) * other) / 3).square().sum()
    assert result.gradient_norm == pytest.approx(float(total) ** 0.5, rel=1e-3)


def test_the_worst_of_the_drawn_states_become_seeds():
    each, _ = balanced(2, damage=1)
    draw = each.sampler.peek()
    batch = each.iterate.prepare(draw)
    losses = each.task.losses([batch.drawn], None)
    assert losses.tolist() == sorted(losses.tolist(), reverse=True)
    assert torch.equal(batch.states[:2], each.seed_state.repeat(2, 1, 1, 1))
    assert not torch.equal(batch.states[2], each.seed_state[0])


@pytest.mark.parametrize("half_pool", [False, True])
def test_spared_states_stay_in_the_pool_once_damage_begins(half_pool):
    each, _ = balanced(2, reseed_spare=1, damage=1, damage_start=1, half_pool=half_pool)
    for spares in (False, True, True):
        before, draw = each.pool.states.clone(), each.sampler.peek()
        batch = each.iterate.prepare(draw)
        assert torch.equal(batch.states[:2], each.seed_state.repeat(2, 1, 1, 1))
        each.step()
        after = each.pool.states
        worst, second, best = batch.slots.tolist()
        assert torch.equal(after[second], before[second]) is spares
        assert not torch.equal(after[worst], before[worst])
        assert not torch.equal(after[best], before[best])
        if spares:
            assert not torch.equal(after[second], each.seed_state[0].to(after.dtype))


def test_spared_states_change_no_gradient():
    each, (seeds, others) = balanced(2, gradient="balance", reseed_spare=1)
    each.step()
    parameters = [p for p in each.model.parameters() if p.grad is not None]
    for parameter, seed, other in zip(parameters, seeds, others, strict=True):
        both = seed / seed.norm() + other / other.norm()
        torch.testing.assert_close(parameter.grad, both / both.norm(), rtol=1e-3, atol=1e-4)


def test_a_spared_state_outlives_a_seed_whose_values_explode():
    each, _ = balanced(2, reseed_spare=1)
    with torch.no_grad():
        each.model.update_net[2].bias[4:] = 1e5
    before, batch = each.pool.states.clone(), each.iterate.prepare(each.sampler.peek())
    assert each.step().exploded == 2  # the seeds; the third state dies
    worst, second, _ = batch.slots.tolist()
    assert torch.equal(each.pool.states[worst], each.seed_state[0])
    assert torch.equal(each.pool.states[second], before[second])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reseed_count": 0}, ValueError, "reseed_count must be at least 1"),
        ({"reseed_count": 2}, ValueError, "reseed_count=2 needs reseed='before'"),
        ({"reseed": "before", "reseed_count": 3, "damage": 2}, ValueError, "no room for damage=2"),
        ({"reseed_spare": -1}, ValueError, "reseed_spare must be at least 0"),
        ({"reseed_spare": 1}, ValueError, "reseed_spare=1 needs reseed='before'"),
        ({"reseed": "before", "reseed_spare": 2}, ValueError, "a reseed_count of at least as many"),
        ({"gradient": "balance"}, ValueError, "gradient='balance' needs seeds and others"),
        (
            {"gradient": "balance", "reseed": "before", "reseed_count": 4},
            ValueError,
            "reseed_count below batch_size",
        ),
        ({"betas": (0.9,)}, TypeError, "betas must be two numbers"),
        ({"betas": (0.9, "x")}, TypeError, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, ValueError, "at least 0 and below 1"),
        ({"betas": (-0.1, 0.9)}, ValueError, "at least 0 and below 1"),
        ({"overflow": -1.0}, ValueError, "overflow must be at least 0 and finite"),
        ({"overflow": math.inf}, ValueError, "overflow must be at least 0 and finite"),
        ({"overflow": "x"}, TypeError, "overflow must be a number"),
        ({"outside": math.nan}, ValueError, "outside must be at least 0 and finite"),
        ({"ramp": -1}, ValueError, "ramp must be at least 0"),
        ({"ramp_from": 0.0}, ValueError, "ramp_from must be positive"),
        ({"ramp_from": 1.5}, ValueError, "ramp_from must be at most 1"),
        ({"schedule": "step"}, ValueError, "schedule must be one of milestones, linear, cosine"),
        ({"warm_up": -1}, ValueError, "warm_up must be at least 0"),
        ({"hold": 1.0}, ValueError, "hold must be below 1"),
        ({"hold": -0.1}, ValueError, "hold must be at least 0 and finite"),
        ({"damage_rate": 0.0}, ValueError, "damage_rate must be positive"),
        ({"damage_rate": 1.5}, ValueError, "damage_rate must be at most 1"),
        ({"damage_radius": (0.1,)}, TypeError, "damage_radius must be two numbers"),
        ({"damage_radius": (0.1, True)}, TypeError, "damage_radius must be two numbers"),
        ({"damage_radius": (0.4, 0.1)}, ValueError, "a smallest and a largest radius"),
        ({"damage_radius": (0.0, 0.1)}, ValueError, "a smallest and a largest radius"),
        ({"damage_radius": (0.1, math.inf)}, ValueError, "a smallest and a largest radius"),
        ({"damage_offset": -0.1}, ValueError, "damage_offset must be at least 0 and finite"),
        ({"damage_offset": 1.1}, ValueError, "damage_offset must be at most 1"),
        ({"damage_offset": (0.1,)}, TypeError, "damage_offset must be a number"),
        ({"damage_start": -1}, ValueError, "damage_start must be at least 0"),
        ({"repairs": -1}, ValueError, "repairs must be at least 0"),
    ],
)
def test_wrong_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        TrainConfig(**options)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_fall_that_is_resumed_with_another_length_says_so(tmp_path, caplog, schedule):
    each = make_trainer(schedule=schedule, iterations=10)
    advance(each, 2)
    each.save(tmp_path)
    make_trainer(schedule=schedule, iterations=10).resume(tmp_path)
    assert not caplog.records
    longer = make_trainer(schedule=schedule, iterations=12)
    longer.resume(tmp_path)
    (record,) = caplog.records
    assert "saved with 10 iterations and goes on with 12: the learning rate" in record.getMessage()
    assert longer.step().learning_rate == learning_rate(longer.config, 2)


def test_checkpoints_without_the_newer_options_resume(tmp_path, monkeypatch):
    newer = {"betas", "warm_up", "schedule", "damage_start", "overflow", "outside", "repairs"}
    newer |= {"ramp", "ramp_from", "reseed_count", "reseed_spare", "hold"}
    newer |= {"damage_rate", "damage_radius", "damage_offset"}
    whole = TrainConfig.to_dict
    each = make_trainer()
    advance(each, 2)
    with monkeypatch.context() as patch:
        older = {k: v for k, v in whole(each.config).items() if k not in newer}
        patch.setattr(TrainConfig, "to_dict", lambda _: older)
        each.save(tmp_path)
    other = make_trainer()
    other.resume(tmp_path)
    assert other.iteration == 2
    with pytest.raises(ValueError, match=r"overflow=0\.0, this one 0\.5"):
        make_trainer(overflow=0.5).resume(tmp_path)


def test_the_tutorial_warns_only_and_the_other_presets_repair():
    assert {name: TrainConfig.preset(name).repairs > 0 for name in PRESETS} == {
        name: name != "tutorial" for name in PRESETS
    }


def test_the_default_preset_seeds_what_its_pictures_grow_from():
    each = make_trainer("quick", iterations=4, batch_size=4)
    filled = create_seed(8, 8, fill_hidden=each.config.fill_hidden)
    assert torch.equal(each.seed_state, filled)
