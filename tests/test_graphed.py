"""A whole training iteration replayed as one graph; on a CPU, `tests/stand_in.py` captures it."""

import logging
import math
from dataclasses import replace as replace_field

import pytest
import torch

from fastnca import NeuralCA, create_seed, create_target_circle, reference
from fastnca.backends import dispatch, triton_fused
from fastnca.backends.base import BACKENDS
from fastnca.losses import OverflowLoss, RGBALoss, TextureLoss, WeightedSum
from fastnca.training import PoolTrainer, TrainConfig, graphs, iteration
from fastnca.training.graphs import GraphedIteration, GraphInputs
from fastnca.training.optimizer import copy_weights
from fastnca.training.sampling import IterationSampler
from tests.helpers import excite
from tests.runs import assert_same
from tests.stand_in import FIRST, SMALL, Recorder, compare, make_trainer, plain_rollout


@pytest.fixture(autouse=True)
def _plain_kernels(monkeypatch):
    """Let the `triton` backend be chosen on a CPU, and compute it with torch's operators."""
    monkeypatch.setattr(triton_fused, "fused_rollout", plain_rollout)
    monkeypatch.setattr(dispatch, "choose", lambda *_: BACKENDS["triton"])
    monkeypatch.setattr(graphs, "choose_backend", lambda *_: "triton")
    monkeypatch.setattr(iteration, "choose_backend", lambda *_: "triton")  # no reserved threads


RECIPES = {
    "tutorial": {},
    "growing": {"preset": "growing"},
    "regenerating": {"preset": "regenerating", "damage": 1, "milestones": (8,)},
    "quick": {
        **{"preset": "quick", "iterations": 14, "ramp": 9, "damage_start": 6, "warm_up": 3},
        **{"schedule": "cosine", "hold": 0.2, "overflow": 0.1, "batch_size": 4, "reseed_spare": 1},
    },
    "half": {"gradient": "normalize", "half_pool": True},
    "parts": {"micro_batches": 2, "reseed": "before"},
    "unseeded": {"seed": None, "gradient": "none"},
}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", RECIPES)
def test_replays_give_the_bits_of_iterations(name):
    record = Recorder()
    graph, plain = make_trainer(record, **RECIPES[name]), make_trainer(**RECIPES[name])
    if name == "unseeded":
        with torch.random.fork_rng():
            torch.manual_seed(5)
            losses = [graph.step().loss for _ in range(14)]
        torch.manual_seed(5)
        assert losses == [plain.step().loss for _ in range(14)]
        assert torch.equal(graph.pool.states, plain.pool.states)
    else:
        compare(graph, plain, 14)
    assert (record.recorded, record.replayed) == (1, 14 - FIRST)
    assert len(set(graph.losses)) == 14


@pytest.mark.long
def test_one_capture_serves_every_number_of_steps_with_masks_of_its_own():
    record = Recorder()
    graph, plain = make_trainer(record, preset="growing"), make_trainer(preset="growing")
    for each in (graph, plain):
        each.config.__dict__["learning_rate"] = 1e-12  # only steps and masks change a loss
    replayed = compare(graph, plain, FIRST + 20)[FIRST:]
    assert {result.steps for result in replayed} == set(range(3, 7))
    assert len({result.loss for result in replayed}) == len(replayed)
    assert record.recorded == 1


def test_an_iteration_that_is_not_finite_changes_nothing_and_is_counted():
    record = Recorder()
    graph, plain = make_trainer(record), make_trainer()
    compare(graph, plain, FIRST + 2)
    for value in (math.nan, 0.0):
        for each in (graph, plain):
            each.pool.states[:] = each.seed_state + value
        before = {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}
        results = compare(graph, plain, 2)
        assert [result.skipped for result in results] == [value != 0.0] * 2
        for name, tensor in graph.model.named_parameters():
            moved = tensor.requires_grad and value == 0.0
            assert torch.equal(tensor, before[name]) != moved
    assert (graph.skipped, graph.skipped_in_a_row) == (2, 0)
    assert record.recorded == 1


@pytest.mark.long
def test_a_repair_goes_on_with_the_same_capture():
    record = Recorder()
    options = {"preset": "persistent", "update_rate": 1.0}
    graph, plain = make_trainer(record, **options), make_trainer(**options)
    compare(graph, plain, FIRST + 2)
    for each in (graph, plain):
        with torch.no_grad():
            each.model.update_net[2].bias.fill_(-2.0)  # kills every cell
    compare(graph, plain, 14)
    assert (graph.recovery.repairs, plain.recovery.repairs) == (1, 1)
    assert record.recorded == 1


def test_a_wish_to_stop_is_handed_on():
    graph = make_trainer(Recorder())
    for number in range(FIRST + 4):
        graph.start(stop=number % 2 == 1)
    assert [result.stop for result in graph.collect()] == [n % 2 == 1 for n in range(FIRST + 4)]


def test_many_iterations_are_started_before_one_is_read():
    graph, plain = make_trainer(Recorder()), make_trainer()
    for each in (graph, plain):
        for _ in range(FIRST + 5):
            each.start()
    assert [r.loss for r in graph.collect()] == [r.loss for r in plain.collect()]
    assert_same(graph, plain)


def test_a_resumed_run_is_captured_again_and_goes_on_bit_for_bit(tmp_path):
    record = Recorder()
    graph, plain = make_trainer(record), make_trainer()
    compare(graph, plain, FIRST + 3)
    graph.save(tmp_path)
    compare(graph, plain, FIRST + 3)
    assert record.recorded == 1
    other, fresh = make_trainer(Recorder()), make_trainer()
    for each in (graph, other, fresh):  # in place, in a new trainer, without graphs
        each.resume(tmp_path)
        losses = [each.step().loss for _ in range(FIRST + 3)]
        assert losses == plain.losses[FIRST + 3 :]
        assert_same(each, plain)
    assert record.recorded == 2


def replace_weight(each):
    layer = each.model.update_net[0]
    layer.bias.data = layer.bias.data.clone()


def replace_moments(each):
    each.optimizer.load_state_dict(each.optimizer.state_dict())


def replace_rate(each):
    group = each.optimizer.adam.param_groups[0]
    group["lr"] = group["lr"].clone()


def replace_good_weights(each):
    each.optimizer.good_weights = {n: v.clone() for n, v in each.optimizer.good_weights.items()}


def replace_pool(each):
    each.pool._states = each.pool._states.clone()


def replace_target(each):
    each.task._prepared = each.task._prepared.clone()


def change_option(each):
    each.optimizer.adam.param_groups[0]["weight_decay"] = 0.1


def freeze(each):
    each.model.update_net[2].bias.requires_grad_(False)


def change_precision(each):
    each.model.precision = "ieee"  # "auto" was fp16


@pytest.mark.one_in(9)
@pytest.mark.parametrize(
    "replace",
    [
        replace_weight,
        replace_moments,
        replace_rate,
        replace_good_weights,
        replace_pool,
        replace_target,
        change_option,
        freeze,
        change_precision,
    ],
)
def test_what_a_graph_has_frozen_and_is_replaced_is_captured_anew(replace):
    record = Recorder()
    graph, plain = make_trainer(record), make_trainer()
    compare(graph, plain, FIRST + 1)
    for each in (graph, plain):
        replace(each)
    compare(graph, plain, FIRST + 2)
    assert record.recorded == 2


def test_what_python_must_see_is_not_replayed(monkeypatch):
    """Hooks and patched rollouts run in every iteration, and the graph goes on after them."""
    record = Recorder()
    graph, plain = make_trainer(record), make_trainer()
    compare(graph, plain, FIRST + 1)
    calls = []
    for add in (
        lambda each: each.model.update_net[2].weight.register_hook(lambda g: calls.append(g)),
        lambda each: each.model.update_net[0].bias.register_post_accumulate_grad_hook(calls.append),
        lambda each: each.optimizer.adam.register_step_pre_hook(lambda *_: calls.append(1)),
        lambda each: each.optimizer.adam.register_step_post_hook(lambda *_: calls.append(1)),
    ):
        hooks = [add(graph), add(plain)]
        compare(graph, plain, 2)
        assert len(calls) == 4
        calls.clear()
        for hook in hooks:
            hook.remove()
        compare(graph, plain, 1)
    seen = []
    roll_out = graph.model.run_steps
    graph.model.run_steps = lambda *a, **o: seen.append(1) or roll_out(*a, **o)
    compare(graph, plain, 1)
    del graph.model.run_steps
    assert seen == [1]
    monkeypatch.setenv("FASTNCA_GRAPHS", "0")
    compare(graph, plain, 1)
    monkeypatch.setenv("FASTNCA_GRAPHS", "1")
    with torch.autocast("cpu"):
        compare(graph, plain, 1)
    compare(graph, plain, 1)
    assert (record.recorded, record.replayed) == (1, 6)


@pytest.mark.parametrize(
    "options", [{"pool_memory": "host"}, {"checkpoint_every": 2}, {"backend": "torch"}]
)
def test_what_cannot_be_captured_is_not_tried(options, monkeypatch):
    record, backend = Recorder(), options.pop("backend", "triton")
    monkeypatch.setattr(graphs, "choose_backend", lambda *_: backend)
    compare(make_trainer(record, **options), make_trainer(**options), FIRST + 2)
    assert record.recorded == 0


@pytest.mark.parametrize(
    "loss",
    [TextureLoss(features=4), WeightedSum((1.0, RGBALoss()), (0.1, OverflowLoss(colors=4)))],
    ids=["texture", "sum"],
)
def test_a_loss_that_says_so_is_captured(loss):
    record = Recorder()
    graph, plain = (make_trainer(each, task={"loss": loss}) for each in (record, None))
    compare(graph, plain, FIRST + 4)
    assert (record.recorded, record.replayed) == (1, 4)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", [{}, {"use_pool": False}, {"reseed": "before", "damage": 1}])
def test_several_goals_are_captured(options):
    record, seeds = Recorder(), create_seed(16, 8, batch=3)
    seeds[:, 5] = torch.linspace(0, 1, 3)[:, None, None]
    options = {"reseed": "none", **options, "task": {"seed_state": seeds}}
    options["task"]["target"] = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    graph, plain = (make_trainer(each, **options) for each in (record, None))
    compare(graph, plain, FIRST + 6)
    assert (record.recorded, record.replayed) == (1, 6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss_steps": 2}, "loss_steps is above 1"),
        ({"task": {"loss": lambda s, t: s[-1].mean(dim=(1, 2, 3))}}, "no attribute `capturable`"),
    ],
    ids=["loss_steps", "loss"],
)
def test_what_python_decides_in_a_loss_is_not_captured_and_said(options, reason, caplog):
    record = Recorder()
    with caplog.at_level(logging.WARNING, "fastnca"):
        graph = make_trainer(record, **options)
    assert reason in caplog.text
    compare(graph, make_trainer(**options), FIRST + 2)
    assert record.recorded == 0


class Watched(NeuralCA):
    """Has Python code in its rollout."""

    def run_steps(self, *arguments, **options):
        self.rollouts = getattr(self, "rollouts", 0) + 1
        return super().run_steps(*arguments, **options)


@pytest.mark.parametrize("kind", [Watched, reference.NeuralCA])
def test_models_with_rollouts_of_their_own_are_not_captured(kind):
    record = Recorder()
    graph, plain = (make_trainer(each, model=excite(kind(8, 16))) for each in (record, None))
    graph.model.load_state_dict(plain.model.state_dict())
    graph.optimizer.good_weights.update(copy_weights(plain.model))
    compare(graph, plain, FIRST + 2)
    assert record.recorded == 0
    assert getattr(graph.model, "rollouts", FIRST + 2) == FIRST + 2


def test_a_trainer_on_a_cpu_is_never_captured():
    each = PoolTrainer(NeuralCA(8, 16), create_target_circle(16), TrainConfig(**SMALL))
    assert isinstance(each.iterate, GraphedIteration)
    for _ in range(FIRST + 2):
        each.step()
    assert each.iterate._graph is None
    record = Recorder()
    graph = make_trainer(record, device_type="cuda")
    compare(graph, make_trainer(), FIRST + 2)
    assert record.recorded == 0


class Failing(Recorder):
    """Fails in the middle of a capture, when Adam has already been captured."""

    def __call__(self, launches, device):
        def fail() -> None:
            launches()
            raise torch.OutOfMemoryError("out of memory")

        return super().__call__(fail, device)


def test_a_capture_that_fails_is_told_once_and_harms_nothing(caplog):
    graph, plain = make_trainer(Failing()), make_trainer()
    with caplog.at_level(logging.WARNING, "fastnca"):
        compare(graph, plain, FIRST + 4)
    assert [record.message for record in caplog.records] == [
        "training goes on without a CUDA graph, its capture failed: out of memory"
    ]


def test_an_operation_that_waits_for_the_device_is_not_captured(caplog, monkeypatch):
    monkeypatch.setattr(
        triton_fused,
        "fused_rollout",
        lambda *a, device_steps=None, steps, **o: plain_rollout(
            *a, steps=steps if device_steps is None else int(device_steps), **o
        ),
    )
    graph, plain = make_trainer(Recorder()), make_trainer()
    compare(graph, plain, FIRST + 2)
    assert "_local_scalar_dense is not permitted" in caplog.text


@pytest.mark.parametrize("options", [{}, {"use_pool": False}, {"damage": 2}, {"batch_size": 6}])
def test_inputs_hold_a_draw_at_aligned_addresses_that_stay(options):
    config = TrainConfig(**{**SMALL, **options})
    drawn = config.batch_size if config.use_pool else 0
    inputs = GraphInputs(config, drawn, torch.device("cpu"))
    source = IterationSampler(config, 7 if config.use_pool else 1)
    there = inputs.draw
    parts = [there.seed, there.count, inputs.rate, there.slots, there.centers, there.radii]
    addresses = [part.data_ptr() for part in parts]
    assert not any(address % 16 for address in addresses)
    for rate in (2e-3, 1 / 3):
        draw = source.next()
        inputs.fill(draw, rate)
        assert (int(there.seed), int(there.count)) == (draw.seed, draw.steps)
        assert torch.equal(inputs.rate, torch.tensor(rate))
        for name in ("slots", "centers", "radii"):
            assert torch.equal(getattr(there, name), getattr(draw, name)), name
    assert [part.data_ptr() for part in parts] == addresses
    assert there.steps == config.max_steps - 1


def test_parts_of_a_batch_have_seeds_of_their_own_in_both_forms():
    """The last seed there is wraps to the first one."""
    plain = make_trainer(micro_batches=2)
    draw = replace_field(plain.sampler.next(), seed=2**63 - 1)
    inputs = GraphInputs(plain.config, 3, torch.device("cpu"))
    inputs.fill(draw, 1e-3)
    seeds, roll_out = [], plain.model.run_steps

    def watch(*arguments, seed, **options):
        seeds.append(int(seed))
        return roll_out(*arguments, seed=seed, **options)

    plain.model.run_steps = watch
    plain.iterate.run(draw, 1e-3)
    plain.iterate._compute(inputs.draw, inputs.rate)
    assert seeds == [2**63 - 1, 0] * 2
