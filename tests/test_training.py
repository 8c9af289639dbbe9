"""Configuration, pool, trainer: the tutorial's recipe exactly, Distill's options, bad numbers."""

import csv
import math
import os
import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from fastnca import NeuralCA, create_seed, create_target_circle, get_visible_state, train_nca
from fastnca.training import (
    DivergedError,
    EmaTracker,
    PoolTrainer,
    SamplePool,
    TrainConfig,
    growth_loss,
    healing_loss,
)
from fastnca.training.optimizer import copy_weights
from tests.helpers import excite

SMALL = {"pool_size": 6, "batch_size": 3, "min_steps": 3, "max_steps": 6, "seed": 1}


def trainer(size=12, hidden=8, preset="tutorial", dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = NeuralCA(16, hidden, backend="torch").to(dtype)
    config = TrainConfig.preset(preset, **{**SMALL, **options})
    return PoolTrainer(model, create_target_circle(size, dtype=dtype), config)


def weights(each):
    return [p.detach().clone() for p in each.model.parameters()]


def test_defaults_are_the_tutorials():
    config = TrainConfig()
    assert (config.iterations, config.pool_size, config.batch_size) == (500, 256, 4)
    assert (config.learning_rate, config.min_steps, config.max_steps) == (2e-3, 64, 96)
    assert (config.gradient, config.clip_norm, config.reseed) == ("clip", 1.0, "after")
    assert config.replacement
    assert config.clamp_loss
    assert not config.fill_hidden
    assert TrainConfig.preset("tutorial") == config


def test_an_iteration_is_the_tutorials_to_the_letter():
    """Replay the tutorial's lines with the same draws, in plain PyTorch and float64."""
    ours = trainer(dtype=torch.float64, iterations=5, batch_size=4, pool_size=40)
    torch.manual_seed(0)
    model = NeuralCA(16, 8, backend="reference").double()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    target = ours.target
    pool = create_seed(12).double().repeat(40, 1, 1, 1)
    for _ in range(5):
        batch_indices = torch.randint(0, 40, (4,), generator=generator)
        assert len(batch_indices.unique()) == 4  # which of two writes to a slot stays is undefined
        batch = pool[batch_indices].clone()
        steps = int(torch.randint(3, 6, (1,), generator=generator))
        seed = int(torch.randint(0, 2**63 - 1, (), generator=generator))
        batch = model.run_steps(batch, steps, seed=seed)
        visible = get_visible_state(batch)
        loss = F.mse_loss(visible, target.expand(4, -1, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            pool[batch_indices] = batch.detach()
            losses = F.mse_loss(visible, target.expand(4, -1, -1, -1), reduction="none")
            worst = batch_indices[losses.mean(dim=(1, 2, 3)).argmax()]
            pool[worst] = create_seed(12).double().squeeze(0)
        result = ours.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-10)
        assert result.steps == steps
    torch.testing.assert_close(ours.pool.states, pool, rtol=1e-9, atol=1e-9)
    for a, b in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_train_nca_prints_and_returns_the_losses(capsys):
    torch.manual_seed(3)
    model = NeuralCA(16, 4).eval()
    losses = train_nca(model, create_target_circle(8), num_epochs=2, pool_size=3, batch_size=2)
    assert len(losses) == 2
    assert capsys.readouterr().out == f"Epoch 0, Loss: {losses[0]:.6f}\n"
    assert model.training


@pytest.mark.parametrize("preset", ["growing", "persistent", "regenerating"])
def test_presets_are_distills(preset):
    config = TrainConfig.preset(preset)
    assert (config.iterations, config.batch_size) == (8000, 8)
    assert (config.learning_rate, config.milestones, config.decay) == (2e-3, (2000,), 0.1)
    assert (config.gradient, config.clamp_loss, config.fill_hidden) == ("normalize", False, True)
    assert config.use_pool == (preset != "growing")
    assert config.reseed == ("none" if preset == "growing" else "before")
    assert config.damage == (3 if preset == "regenerating" else 0)
    assert not config.replacement


@pytest.mark.parametrize("preset", ["growing", "persistent", "regenerating"])
def test_presets_train(preset):
    each = trainer(preset=preset, iterations=4, damage=1 if preset == "regenerating" else 0)
    assert len(each.fit(progress=False)) == 4
    assert all(math.isfinite(loss) for loss in each.losses)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in each.model.parameters())


def test_worst_is_reseeded_before_and_best_are_damaged(monkeypatch):
    each = trainer(preset="persistent", pool_size=4, batch_size=4, damage=2)
    quality = torch.tensor([0.1, 0.9, 0.5, 0.3])
    target = torch.cat([each.target, torch.zeros(1, 12, 12, 12)], dim=1)
    each.pool.states[:] = target * (1 - quality)[:, None, None, None] + 0.01
    damaged = []
    monkeypatch.setattr(
        "fastnca.training.iteration.cut_discs",
        lambda states, centers, radii: damaged.append(states.clone()) or states * 0,
    )
    draw = each.sampler.next()
    batch = each.iterate.prepare(draw)
    assert sorted(draw.slots.tolist()) == [0, 1, 2, 3]
    assert batch.slots.tolist() == [1, 2, 3, 0]  # from the highest loss to the lowest
    assert torch.equal(draw.slots[batch.order], batch.slots)
    assert torch.equal(batch.drawn, each.pool.states[batch.slots])
    assert torch.equal(batch.states[:1], each.seed_state)
    assert torch.equal(batch.states[1], each.pool.states[2])
    assert batch.states[2:].abs().max() == 0
    assert torch.equal(damaged[0], each.pool.states[[3, 0]])


def test_normalised_gradients_have_norm_one():
    each = trainer(gradient="normalize")
    for _ in range(3):
        result = each.step()
    norms = [float(p.grad.norm()) for p in each.model.parameters() if p.grad is not None]
    assert norms == pytest.approx([1.0] * 4, rel=1e-3)
    assert math.isfinite(result.gradient_norm)


def test_learning_rate_falls_at_milestones():
    each = trainer(iterations=6, milestones=(2, 4), decay=0.5)
    rates = []
    each.fit(progress=False, callbacks=[lambda r: rates.append(r.learning_rate)])
    assert rates == [2e-3, 2e-3, 1e-3, 1e-3, 5e-4, 5e-4]


def test_same_seed_same_run():
    first, second, third = trainer(iterations=4), trainer(iterations=4), trainer(seed=2)
    assert first.fit(progress=False) == second.fit(progress=False)
    for a, b in zip(weights(first), weights(second), strict=True):
        assert torch.equal(a, b)
    third.step()
    assert not torch.equal(third.pool.states, first.pool.states)


def test_a_seeded_run_leaves_torchs_random_state_alone():
    each = trainer(preset="regenerating", damage=1, iterations=2)
    before = torch.get_rng_state()
    each.fit(progress=False)
    assert torch.equal(before, torch.get_rng_state())


def spoil_weights(each):
    with torch.no_grad():
        each.model.update_net[2].bias.fill_(float("inf"))


def spoil_pool(each):
    each.pool.states[:, 5] = float("nan")


def spoil_gradient(each):
    each.model.update_net[2].weight.register_hook(lambda g: g * float("nan"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("spoil", [spoil_weights, spoil_pool, spoil_gradient])
@pytest.mark.parametrize("preset", ["tutorial", "persistent", "quick"])
def test_numbers_that_are_not_finite_are_skipped_then_stop_training(spoil, preset):
    each = trainer(preset=preset, iterations=30, repairs=0, batch_size=4)
    for _ in range(3):
        assert not each.step().skipped
    good = {name: value.clone() for name, value in each.optimizer.good_weights.items()}
    spoil(each)
    before, pool = weights(each), each.pool.states.clone()
    moments = {
        k: v.clone() for k, v in each.optimizer.adam.state[each.model.update_net[0].bias].items()
    }
    for count in range(1, 10):
        result = each.step()
        assert result.skipped
        assert each.skipped == each.skipped_in_a_row == count
    for a, b in zip(weights(each), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(each.pool.states, pool, rtol=0, atol=0, equal_nan=True)
    for name, value in each.optimizer.adam.state[each.model.update_net[0].bias].items():
        assert torch.equal(value, moments[name])
    with pytest.raises(DivergedError, match=r"10 iterations in a row, up to iteration 13"):
        each.step()
    for name, value in each.model.state_dict().items():
        assert torch.equal(value, good[name]), name
        assert torch.isfinite(value).all()


def test_one_bad_iteration_is_forgiven():
    each = trainer(iterations=20)
    healthy = each.pool.states.clone()
    spoil_pool(each)
    each.step()
    each.pool.states.copy_(healthy)
    each.step()
    assert (each.skipped, each.skipped_in_a_row) == (1, 0)


def test_metrics_file(tmp_path):
    path = tmp_path / "metrics.csv"
    each = trainer(iterations=7, log_interval=3)
    sizes = []
    each.fit(metrics=path, progress=False, callbacks=[lambda r: sizes.append(path.stat().st_size)])
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] < sizes[5]  # flushed every third time
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row["iteration"]) for row in rows] == list(range(1, 8))
    for row, loss in zip(rows, each.losses, strict=True):
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-6)
        assert row["skipped"] == "0"
        assert 3 <= int(row["steps"]) <= 5
        assert float(row["seconds"]) > 0


def test_the_bar_is_quiet_without_a_terminal(capfd):
    trainer(iterations=2).fit()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_lets_the_iteration_finish(number, error):
    each = trainer(iterations=1000)
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(error) as caught:
        each.fit(progress=False)
    timer.join()
    assert 0 < each.iteration < 1000
    assert len(each.losses) == each.iteration
    assert signal.getsignal(number) is before
    if error is SystemExit:
        assert caught.value.code == 143


@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize("preset", ["tutorial", "regenerating"])
def test_resume_is_exact(tmp_path, preset, seed):
    options = {"preset": preset, "seed": seed, "damage": int(preset == "regenerating")}
    straight = trainer(iterations=8, **options)
    torch.manual_seed(4)
    straight.fit(progress=False)

    first = trainer(iterations=4, **options)
    torch.manual_seed(4)
    first.fit(progress=False)
    first.save(tmp_path)
    torch.rand(5)
    second = trainer(iterations=8, **options)
    second.resume(tmp_path)
    assert second.iteration == 4
    second.fit(progress=False)
    assert second.losses == straight.losses
    assert torch.equal(second.pool.states, straight.pool.states)
    for a, b in zip(weights(second), weights(straight), strict=True):
        assert torch.equal(a, b)


def test_resume_refuses_another_run(tmp_path):
    each = trainer(iterations=2)
    each.fit(progress=False)
    each.save(tmp_path)
    for other, words in [
        (trainer(learning_rate=1e-3), "learning_rate=0.002, this one 0.001"),
        (trainer(hidden=9), r"hidden \[8\], this one \[9\]"),
        (trainer(size=13), "size 12, this one 13"),
        (trainer(pool_size=7), "pool_size=6, this one 7"),
    ]:
        with pytest.raises(ValueError, match=words):
            other.resume(tmp_path)
    turned = PoolTrainer(each.model, each.target * 0.5, each.config)
    with pytest.raises(ValueError, match="has another target"):
        turned.resume(tmp_path)
    with pytest.raises(FileNotFoundError, match="no saved run"):
        trainer().resume(tmp_path / "none")


def test_losses_that_are_not_finite_survive_a_resume(tmp_path):
    each = trainer(iterations=3)
    spoil_pool(each)
    each.step()
    each.pool.states[:] = each.seed_state
    each.step()
    each.save(tmp_path)
    other = trainer(iterations=3)
    other.resume(tmp_path)
    assert math.isnan(other.losses[0])
    assert other.losses[1] == each.losses[1]
    assert (other.skipped, other.iteration) == (1, 2)


@pytest.mark.long
def test_best_weights_are_averages_with_the_lowest_growth_loss():
    each = trainer(iterations=8)
    best, seen = EmaTracker(every=2, decay=0.5), {}
    average: dict[str, torch.Tensor] = {}

    def watch(result):
        done = result.iteration - 1
        weight = 1.0 if done == 0 else max(0.5, 9 / (10 + done))
        for name, value in copy_weights(each.model).items():
            average[name] = average.get(name, value) * (1 - weight) + value * weight
        if result.iteration in (4, 6, 8):  # the second half, every second iteration
            seen[result.iteration] = growth_loss(best.ema_model, each.task), dict(average)

    each.fit(progress=False, callbacks=[best, watch])
    assert each.model.training
    number = min(seen, key=lambda iteration: seen[iteration][0])
    assert (best.loss, best.iteration) == (seen[number][0], number)
    for name, value in best.weights.items():
        torch.testing.assert_close(value, seen[number][1][name])


def test_growth_and_healing_loss_compare_rollouts_from_the_seed():
    each = trainer()
    excite(each.model, 0.02)
    seeds = create_seed(12, batch=4)
    square = torch.zeros(12, 12, dtype=torch.bool)
    square[3:8, 3:8] = True  # 20 to 43 of 64 cells

    def loss(state):
        target = each.target.expand(4, -1, -1, -1)
        return float(F.mse_loss(get_visible_state(state), target))

    with torch.no_grad():
        grown = [each.model.run_steps(seeds, steps, seed=0) for steps in (96, 192, 288, 480)]
        damaged = grown[1].masked_fill(square, 0.0)
        healed = each.model.run_steps(damaged, 200, seed=0, first_step=192)
    before = torch.get_rng_state()
    expected = sum(map(loss, grown)) / 4
    assert growth_loss(each.model, each.task) == pytest.approx(expected, rel=1e-5)
    assert healing_loss(each.model, each.task) == pytest.approx(loss(healed), rel=1e-5)
    assert growth_loss(each.model, each.task, 5) != growth_loss(each.model, each.task)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("damage", [0, 1])
def test_best_weights_heal_where_the_recipe_trains_for_it(damage):
    each = trainer(preset="persistent", damage=damage, iterations=4)
    best = EmaTracker(every=2)
    each.fit(progress=False, callbacks=[best])
    model = NeuralCA(each.model.num_channels, each.model.hidden_dim).train()
    model.load_state_dict(best.weights)
    growth, healing = growth_loss(model, each.task), healing_loss(model, each.task)
    assert growth != healing
    expected = (growth + healing) / 2 if damage else growth
    assert best.loss == pytest.approx(expected, rel=1e-5)


def test_pool_samples_and_commits():
    pool = SamplePool(create_seed(4, 6), 5)
    assert len(pool) == 5
    slots, states = pool.sample(5, replacement=False)
    assert sorted(slots.tolist()) == [0, 1, 2, 3, 4]
    states += 1
    assert torch.equal(pool.states, create_seed(4, 6).repeat(5, 1, 1, 1))
    pool.commit(
        torch.tensor([2, 2, 4]), states[:3] * torch.tensor([1.0, 2, 3])[:, None, None, None]
    )
    assert torch.equal(pool.states[2], states[1] * 2)  # the later one stays
    assert torch.equal(pool.states[4], states[2] * 3)
    assert torch.equal(pool.states[0], create_seed(4, 6)[0])
    drawn = torch.cat([pool.sample(4)[0] for _ in range(50)])
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="cannot draw 6 of 5"):
        pool.sample(6, replacement=False)
    with pytest.raises(ValueError, match="at least one slot"):
        SamplePool(create_seed(4), 0)
    with pytest.raises(ValueError, match=r"must be \[N, C, H, W\], got \[4, 4\]"):
        SamplePool(torch.zeros(4, 4), 3)
    three = torch.arange(3.0)[:, None, None, None].expand(3, 4, 2, 2)
    shard = SamplePool(three, 5, first=4)  # slots 4 to 8 of a larger pool
    assert shard.states[:, 0, 0, 0].tolist() == [1, 2, 0, 1, 2]


OPTIONS = {
    "iterations": (-1, "iterations must be at least 0"),
    "pool_size": (0, "pool_size must be at least 1"),
    "batch_size": (2.5, "batch_size must be an int"),
    "learning_rate": (0, "learning_rate must be positive"),
    "clip_norm": (float("nan"), "clip_norm must be positive"),
    "decay": ("x", "decay must be a number"),
    "max_steps": (64, "max_steps is exclusive"),
    "update_rate": (1.2, r"in \[0, 1\]"),
    "replacement": (1, "replacement must be true or false"),
    "reseed": ("later", "reseed must be one of after, before, none"),
    "gradient": ("l2", "gradient must be one of clip, normalize, balance, none"),
    "damage": (5, "has no room for damage="),
    "milestones": ((1.5,), "milestones must be an int"),
    "seed": (2**64, "64 bits"),
    "colour": (1, "unknown training options: colour"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(name):
    value, words = OPTIONS[name]
    with pytest.raises((ValueError, TypeError), match=words):
        TrainConfig.preset("tutorial", **{name: value})


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match="without replacement from a pool of 3"):
        TrainConfig(pool_size=3, batch_size=4, replacement=False)
    with pytest.raises(ValueError, match="need use_pool=True"):
        TrainConfig.preset("growing", damage=1)
    with pytest.raises(ValueError, match="preset must be one of tutorial"):
        TrainConfig.preset("distill")


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (torch.zeros(1, 3, 8, 8), ValueError, r"RGBA \[N, 4, height, width\]"),
        (torch.zeros(8, 8), ValueError, r"RGBA \[N, 4, height, width\]"),
        (torch.zeros(0, 4, 8, 8), ValueError, r"RGBA \[N, 4, height, width\]"),
        (torch.zeros(257, 4, 8, 8), ValueError, "257 targets from one seed cannot be told apart"),
        (torch.zeros(1, 4, 8, 8).double(), TypeError, "float64 and the model torch.float32"),
        (torch.zeros(1, 4, 8, 8, device="meta"), ValueError, "on meta and the model on cpu"),
        (torch.full((4, 8, 8), float("nan")), ValueError, "NaN or infinite"),
        ([1], TypeError, "must be a torch.Tensor"),
    ],
)
def test_bad_targets(target, error, words):
    with pytest.raises(error, match=words):
        PoolTrainer(NeuralCA(), target)


def frozen():
    return NeuralCA(8, 6).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: torch.nn.DataParallel(NeuralCA(8, 6)), TypeError, r"pass model\.module; to train"),
        (
            lambda: AveragedModel(NeuralCA(8, 6)),
            TypeError,
            r"got AveragedModel; pass model\.module",
        ),
        (lambda: torch.compile(NeuralCA(8, 6)), TypeError, r"pass model\._orig_mod"),
        (lambda: torch.nn.Linear(2, 2), TypeError, "got Linear; make one with fastnca.NeuralCA"),
        (lambda: None, TypeError, "must be a NeuralCA, got NoneType"),
        (lambda: NeuralCA(8, 6).to("meta"), ValueError, "parameters on the meta device"),
        (frozen, ValueError, r"requires a gradient, got none; call model\.update_net"),
    ],
)
def test_bad_models(make, error, words):
    with pytest.raises(error, match=words):
        PoolTrainer(make(), create_target_circle(8))


def test_part_of_a_model_may_be_frozen():
    model = NeuralCA(8, 6)
    model.update_net[0].requires_grad_(False)
    each = PoolTrainer(model, create_target_circle(8), TrainConfig(**SMALL))
    assert each.step().gradient_norm > 0
