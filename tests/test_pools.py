"""Pools: where they lie and in which precision, draws, wild states, memory; nothing waits."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastnca import NeuralCA, create_seed, create_target_circle, memory
from fastnca.distributed import Processes
from fastnca.memory import Estimate
from fastnca.training import (
    EmaTracker,
    MemoryLimitError,
    PoolTrainer,
    SamplePool,
    TrainConfig,
)
from fastnca.training.iteration import Iteration
from fastnca.training.optimizer import ModelOptimizer
from fastnca.training.pool import HostPool
from fastnca.training.sampling import IterationSampler, draw_slots
from tests.helpers import excite

SMALL = {"pool_size": 6, "batch_size": 3, "min_steps": 3, "max_steps": 6, "seed": 1}


def trainer(preset="tutorial", backend="torch", size=12, **options):
    torch.manual_seed(0)
    config = TrainConfig.preset(preset, **{**SMALL, **options})
    return PoolTrainer(NeuralCA(16, 8, backend=backend), create_target_circle(size), config)


def put_on_device(each):
    """Let the trainer decide by tensors, as it does on a GPU."""
    each.optimizer = ModelOptimizer(each.model, each.config, on_device=True)
    each.iterate = Iteration(
        each.model,
        each.task,
        each.config,
        each.pool,
        each.optimizer,
        Processes(),
    )
    return each


def weights(each):
    return [p.detach().clone() for p in each.model.parameters()]


@pytest.mark.parametrize("kind", [SamplePool, HostPool])
def test_the_last_of_several_writes_to_a_slot_stays(kind):
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        pool = kind(create_seed(3, 5), 4)
        expected = pool.states.clone()
        slots = torch.randint(0, 4, (7,), generator=generator)
        states = torch.rand(7, 5, 3, 3, generator=generator)
        for slot, state in zip(slots.tolist(), states, strict=True):
            expected[slot] = state
        pool.commit(slots, states)
        assert torch.equal(pool.states, expected)


def test_a_pool_in_host_memory_hands_out_what_was_just_written():
    plain, host = SamplePool(create_seed(3, 5), 8), HostPool(create_seed(3, 5), 8)
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(0, 8, (5,), generator=generator)
    for _ in range(40):
        rows = [pool.gather(slots) for pool in (plain, host)]
        assert torch.equal(*rows)
        states = rows[0] + torch.rand(5, 5, 3, 3, generator=generator)
        for pool in (plain, host):
            pool.commit(slots, states)
        slots = torch.randint(0, 8, (5,), generator=generator)
        host.prefetch(slots)
        assert host._ahead is not None  # before the states have arrived
    assert torch.equal(plain.states, host.states)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("preset", ["tutorial", "quick", "regenerating"])
@pytest.mark.parametrize("seed", [5, None])
def test_a_pool_in_host_memory_trains_the_same(preset, half, seed):
    options = {
        "damage": int(preset != "tutorial"),
        "damage_start": 0,
        "half_pool": half,
        "seed": seed,
    }
    runs = [trainer(preset, pool_memory=where, **options) for where in ("device", "host")]
    after = []
    for each in runs:
        torch.manual_seed(9)
        each.config.__dict__["iterations"] = 8
        each.fit(progress=False)
        after.append(torch.rand(3))
    assert isinstance(runs[1].pool, HostPool)
    assert runs[0].losses == runs[1].losses
    assert torch.equal(runs[0].pool.states, runs[1].pool.states)
    assert torch.equal(*after)  # the draw ahead of the last iteration was taken back


def test_a_half_precision_pool_rounds_what_it_keeps():
    each = trainer(half_pool=True, iterations=5)
    excite(each.model)
    each.fit(progress=False)
    assert each.pool.states.dtype == torch.float16
    slots, states = each.pool.sample(3, replacement=False)
    assert states.dtype == torch.float32
    each.pool.commit(slots, states + 1 / 3)
    assert torch.equal(each.pool.states[slots], (states + 1 / 3).half())


class Reading(TorchDispatchMode):
    """Refuse what would make the host wait for a GPU."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name().split("::")[1].split(".")[0]
        assert name not in self.WAITS, f"{function.name()} reads a value back"
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("preset", ["tutorial", "quick", "growing", "persistent", "regenerating"])
def test_an_iteration_reads_nothing_back(preset):
    each = put_on_device(
        trainer(preset, "reference", damage=int(preset == "regenerating"), micro_batches=2)
    )
    draw = each.sampler.next()
    with Reading():
        numbers = each.iterate.run(draw, 1e-3)
    assert torch.isfinite(numbers).all()
    with Reading(), pytest.raises(AssertionError, match="reads a value back"):
        numbers[0].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averaged_weights_take_in_every_iteration_that_counts_and_read_nothing_back(dtype):
    torch.manual_seed(0)
    model = excite(NeuralCA(16, 8, backend="reference").to(dtype))
    target = create_target_circle(12, dtype=dtype)
    each = put_on_device(PoolTrainer(model, target, TrainConfig(**SMALL)))
    healthy, seen = each.pool.states.clone(), []

    class Watched(EmaTracker):
        def on_update(self, trainer, numbers):
            with Reading():
                super().on_update(trainer, numbers)
            seen.append(weights(trainer))

    best = each.add_callback(Watched(decay=0.5))
    for number in range(16):
        each.pool.states.copy_(healthy * (math.nan if number in (0, 5) else 1))
        each.start()
    average, count = seen[0], 0
    for values, result in zip(seen, each.collect(), strict=True):
        assert result.skipped == (result.iteration in (1, 6))
        if not result.skipped:
            weight = max(0.5, 9 / (10 + count)) if count else 1.0
            average = [torch.lerp(*pair, weight) for pair in zip(average, values, strict=True)]
            count += 1
    assert all(map(torch.equal, best.ema_model.parameters(), average))
    assert not torch.equal(average[-1], seen[-1][-1])


def test_deciding_on_the_device_gives_the_same_run():
    host, device = trainer(iterations=6), put_on_device(trainer(iterations=6))
    assert host.fit(progress=False) == pytest.approx(device.fit(progress=False), rel=1e-4)
    for a, b in zip(weights(host), weights(device), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_iteration_that_does_not_count_changes_nothing_on_the_device_either():
    each = put_on_device(trainer(iterations=20))
    for _ in range(3):
        each.step()
    hook = each.model.update_net[2].weight.register_hook(lambda g: g * math.nan)
    before, pool = weights(each), each.pool.states.clone()
    state = each.optimizer.adam.state[each.model.update_net[0].bias]
    moments = {name: value.clone() for name, value in state.items()}
    good = {name: value.clone() for name, value in each.optimizer.good_weights.items()}
    assert each.step().skipped
    for a, b in zip(weights(each), before, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(each.pool.states, pool)
    assert all(torch.equal(state[name], value) for name, value in moments.items())
    assert all(
        torch.equal(each.optimizer.good_weights[name], value) for name, value in good.items()
    )
    hook.remove()
    assert not each.step().skipped
    assert not torch.equal(before[-1], weights(each)[-1])


def test_many_iterations_are_started_before_one_is_read():
    one, many = trainer(), trainer()
    expected = [one.step() for _ in range(6)]
    for _ in range(6):
        many.start()
    results = many.collect()
    assert [r.loss for r in results] == [r.loss for r in expected]
    assert [r.iteration for r in results] == [1, 2, 3, 4, 5, 6]
    assert many.collect() == []


def test_divergence_within_a_batch_of_iterations_is_noticed():
    each = trainer(max_skips=3)
    healthy = each.pool.states.clone()
    each.pool.states[:] = math.nan
    for _ in range(3):
        each.start()
    each.pool.states.copy_(healthy)
    each.start()
    assert [r.skipped for r in each.collect()] == [True, True, True, False]
    with pytest.raises(RuntimeError, match="3 iterations in a row"):
        each.check()


@pytest.mark.parametrize("value", [math.nan, math.inf, -2e4])
def test_wild_states_go_back_to_the_pool_as_seeds(value, monkeypatch):
    each = trainer("persistent", iterations=3)
    roll_out = each.model.run_steps

    def spoil(states, *arguments, **options):
        end = roll_out(states, *arguments, **options).clone()
        with torch.no_grad():
            end[1, 7, 2, 2] = value  # a hidden channel: the loss does not see it
        return end

    monkeypatch.setattr(each.model, "run_steps", spoil)
    result = each.step()
    assert not result.skipped
    assert each.reseeded == 1
    assert each.pool.states.abs().max() < 1e4
    assert torch.isfinite(each.pool.states).all()


@pytest.mark.parametrize("size", [5, 6, 1000])
def test_slots_without_replacement_are_uniform(size):
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_slots(size, 5, False, generator) for _ in range(2000)]
    assert all(len(slots.unique()) == 5 for slots in drawn)
    counts = torch.bincount(torch.cat(drawn), minlength=size).double()
    assert len(counts) == size
    mean = 10_000 / size
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    assert chi_square < size + 5 * math.sqrt(2 * size)


def test_a_draw_ahead_can_be_taken_back():
    config = TrainConfig(**SMALL, replacement=False)
    source, other = IterationSampler(config, 6), IterationSampler(config, 6)
    expected = [other.next() for _ in range(4)]
    assert source.peek().seed == expected[0].seed
    saved = source.state()
    assert source.next().seed == expected[0].seed
    source.peek()
    source.rewind()
    assert [source.next().seed for _ in range(2)] == [e.seed for e in expected[1:3]]
    source.load_state(saved)
    assert source.next().seed == expected[0].seed


def test_ranks_draw_other_slots_and_the_same_steps():
    config = TrainConfig(seed=3)
    draws = [IterationSampler(config, 100, rank, 3).next() for rank in range(3)]
    assert len({draw.steps for draw in draws}) == 1
    assert len({draw.seed for draw in draws}) == 3
    assert not torch.equal(draws[0].slots, draws[1].slots)


def estimate(model=None, **options):
    config = TrainConfig(**options)
    names = ("batch_size", "micro_batches", "checkpoint_every", "half_pool", "pool_memory")
    return Estimate.of(
        model or NeuralCA(backend="torch"),
        create_seed(16),
        config.pool_size,
        steps=config.max_steps - 1,
        **{name: getattr(config, name) for name in names},
    )


def test_a_pool_that_cannot_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
    assert estimate(pool_size=50_000).pool == 50_000 * 16 * 16 * 16 * 4
    with pytest.raises(MemoryLimitError, match=r"needs 1\.5\d GiB on cpu .* and 1 GiB are free"):
        estimate(pool_size=100_000)
    assert estimate(pool_size=100_000, half_pool=True).pool == 100_000 * 16 * 16 * 16 * 2
    with pytest.raises(MemoryLimitError, match=r"the pool needs 1\.53 GiB and the host has 1 GiB"):
        estimate(pool_size=100_000, pool_memory="host")
    with pytest.raises(MemoryLimitError):
        PoolTrainer(
            NeuralCA(backend="torch"), create_target_circle(16), TrainConfig(pool_size=100_000)
        )


@pytest.mark.parametrize("backend", ["torch", "reference", "triton"])
def test_the_estimate_covers_what_a_rollout_keeps(backend, monkeypatch):
    monkeypatch.setattr(memory, "choose_backend", lambda *_: backend)
    plain = estimate(batch_size=8)
    assert estimate(batch_size=8, micro_batches=4).rollout == plain.rollout // 4
    fewer = estimate(batch_size=8, checkpoint_every=10).rollout
    if backend == "triton":
        assert fewer < plain.rollout / 3
    else:  # these keep no states that could be left out
        assert fewer == plain.rollout
    kept = [0]

    def count(tensor):
        kept[0] += tensor.numel() * tensor.itemsize
        return tensor

    if backend == "triton":  # 96 states of 16 float32 channels
        assert plain.rollout == 8 * 256 * 64 * (95 + 2)
        return
    model = excite(NeuralCA(backend=backend), 0.2)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.run_steps(torch.rand(8, 16, 16, 16), 95, seed=0)
    assert 0.5 * plain.rollout < kept[0] < 1.1 * plain.rollout


def test_free_memory_is_known_here():
    free = memory.free_memory(torch.device("cpu"))
    assert 0 < free < 2**62
