"""What users of training meet: callbacks that raise, numbers that are not finite, compilation."""

import math

import pytest
import torch
from torch._dynamo.utils import counters

from fastnca import NeuralCA, create_seed
from fastnca.training import (
    Callback,
    CheckpointError,
    EmaTracker,
    PoolTrainer,
    RunDirectory,
    TrainConfig,
    TrainingLog,
)
from fastnca.training.iteration import LIMIT
from tests.helpers import COMPILED
from tests.runs import SMALL, advance, assert_same, make_trainer


class Failing(Callback):
    """Raises at one hook, in one iteration."""

    def __init__(self, hook, iteration):
        self._iteration = iteration
        setattr(self, hook, self._fail)

    def _fail(self, trainer, *_):
        if trainer.iteration == self._iteration:
            raise LookupError("no such metric")


class Counting(Callback):
    """Counts calls of every hook, and keeps that count in checkpoints."""

    name = "counting"

    def __init__(self):
        self.calls = []
        self.steps = torch.zeros((), dtype=torch.int64)

    def on_attach(self, trainer):
        self.calls.append("attach")
        self.steps.zero_()

    def on_fit_start(self, trainer):
        self.calls.append("start")

    def on_update(self, trainer, numbers):
        self.calls.append("update")

    def on_step_end(self, trainer, result):
        self.calls.append("step")
        self.steps += 1

    def on_fit_end(self, trainer):
        self.calls.append("end")

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps.copy_(state["steps"])


def test_callbacks_are_called_in_order():
    counting, seen = Counting(), []
    each = make_trainer(iterations=3)
    each.add_callback(counting)
    each.fit(progress=False, callbacks=[lambda result: seen.append(result.iteration)])
    assert counting.calls == ["attach", "start", *["update", "step"] * 3, "end"]
    assert seen == [1, 2, 3]
    assert each.callbacks == [counting]  # those of one call are gone
    each.step()
    assert counting.calls[-2:] == ["update", "step"]


@pytest.mark.parametrize("hook", ["on_update", "on_step_end"])
def test_a_callback_that_raises_loses_no_iteration(memory_path, hook):
    straight = make_trainer(iterations=9, preset="persistent")
    straight.fit(progress=False)
    each, counting = make_trainer(iterations=9, preset="persistent"), Counting()
    each.add_callback(counting)
    with pytest.raises(LookupError, match="no such metric") as caught:
        each.fit(
            progress=False,
            run=RunDirectory(memory_path),
            metrics=memory_path / "m.csv",
            callbacks=[Failing(hook, 5)],
        )
    (note,) = caught.value.__notes__
    assert note == f"raised by {hook} of Failing, after iteration 5"
    assert counting.calls[-1] == "end"
    assert each.iteration == 5
    rows = (memory_path / "m.csv").read_text().splitlines()
    assert len(rows) == (6 if hook == "on_step_end" else 5)  # a header, and what was collected
    resumed = make_trainer(iterations=9, preset="persistent")
    resumed.resume(memory_path)
    assert resumed.iteration == 5
    resumed.fit(progress=False)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert torch.equal(resumed.pool.states, straight.pool.states)


def test_a_callback_that_raises_at_the_end_hides_no_error():
    each = make_trainer(iterations=3)
    with pytest.raises(LookupError) as caught:
        each.fit(progress=False, callbacks=[Failing("on_step_end", 2), Failing("on_fit_end", 2)])
    assert isinstance(caught.value, LookupError)
    assert each.callbacks == []


@pytest.mark.long
@pytest.mark.parametrize("preset", ["tutorial", "regenerating", "quick", "texture"])
def test_forty_iterations_are_twenty_and_twenty_with_every_callback(tmp_path, preset):
    options = {"preset": preset, "pool_size": 8, "batch_size": 4, "iterations": 40}
    options |= {"damage": 1} if preset == "regenerating" else {}
    options |= {"ramp": 15, "damage_start": 5} if preset == "quick" else {}
    options |= {"learning_rate": 1e-4} if preset == "texture" else {}

    def run(iterations, resume=None):
        each = make_trainer(size=12, **{**options, "iterations": 40})
        best, counting = EmaTracker(every=5), Counting()
        for callback in (best, counting):
            each.add_callback(callback)
        if resume is not None:
            each.resume(resume)
        advance(each, iterations)
        return each, best, counting

    straight, expected, _ = run(40)
    first, _, _ = run(20)
    first.save(tmp_path)
    second, best, counting = run(20, resume=tmp_path)
    assert_same(straight, second)
    assert best.loss == expected.loss
    assert math.isfinite(best.loss)
    for name, value in expected.state_dict().items():
        assert torch.equal(best.state_dict()[name], value), name
    assert counting.steps == 40


def test_a_state_dict_in_memory_is_as_good_as_a_checkpoint():
    straight, first = make_trainer(preset="persistent"), make_trainer(preset="persistent")
    advance(straight, 8)
    advance(first, 4)
    saved = {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in first.state_dict().items()
    }
    second = make_trainer(preset="persistent")
    second.load_state_dict(saved)
    advance(second, 4)
    assert_same(straight, second)
    with pytest.raises(ValueError, match=r"learning_rate=0\.002, this one 0\.1"):
        make_trainer(preset="persistent", learning_rate=0.1).load_state_dict(saved)


PLACES = {"alpha": 3, "colour": 0, "hidden": 6}


@pytest.mark.one_in(9)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("backend", ["reference", "torch", "cpp"])
def test_states_that_are_not_finite_spoil_nothing(backend, place, value):
    """Also where a backend clears them with the dead cells they lie in."""
    torch.manual_seed(0)
    model = NeuralCA(8, 6, backend=backend)
    with torch.no_grad():
        model.update_net[2].weight.normal_(0, 0.05)
    target = torch.zeros(1, 4, 8, 8)
    target[:, :, 2:6, 2:6] = 1.0
    options = {**SMALL, "max_skips": 99, "reseed": "none"}
    for cell in ((0, 0), (4, 4)):  # a dead one, and the living one
        each = PoolTrainer(model, target, TrainConfig(**options))
        each.pool.states[::2, PLACES[place], cell[0], cell[1]] = value
        poisoned = each.pool.states.clone()
        for _ in range(8):
            before = each.pool.states.clone()
            result = each.step()
            assert all(p.isfinite().all() for p in model.parameters())
            if result.skipped:
                assert torch.equal(each.pool.states.nan_to_num(1.5), before.nan_to_num(1.5))
                continue
            fine = each.pool.states.abs().amax(dim=(1, 2, 3)) <= LIMIT
            drawn = (each.pool.states.nan_to_num(1.5) != poisoned.nan_to_num(1.5)).any()
            assert fine[1::2].all()
            assert drawn


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("backend", ["reference", "torch", "cpp"])
def test_weights_that_are_not_finite_are_noticed_at_once(backend, number, value):
    """A ReLU or a dead cell may hide them from loss and gradient."""
    each = make_trainer()
    each.model.backend = backend
    advance(each, 1)
    good = {name: weight.clone() for name, weight in each.model.state_dict().items()}
    with torch.no_grad():
        list(each.model.update_net.parameters())[number].flatten()[0] = value
    pool = each.pool.states.clone()
    assert each.step().skipped
    assert torch.equal(each.pool.states, pool)
    for name, weight in each.optimizer.good_weights.items():
        assert weight.isfinite().all(), name
        assert weight.shape == good[name].shape


@pytest.mark.long
@COMPILED
def test_steps_and_seeds_do_not_compile_anew():
    """A compiled rollout serves every number of steps and every seed with two graphs."""
    torch._dynamo.reset()
    counters.clear()
    model = NeuralCA(8, 6)
    with torch.no_grad():
        model.update_net[2].weight.normal_(0, 0.05)
    compiled = torch.compile(model.run_steps)
    state = create_seed(8, 8)
    for steps in range(3, 15):
        seed = 2**63 - 20 + steps if steps % 2 else steps
        assert torch.equal(
            compiled(state, steps, seed=seed), model.run_steps(state, steps, seed=seed)
        )
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_log_can_be_a_callback_of_the_trainer(tmp_path):
    each = make_trainer(iterations=4)
    each.add_callback(TrainingLog(tmp_path / "mine.csv", progress=False))
    each.fit(progress=False)
    assert len((tmp_path / "mine.csv").read_text().splitlines()) == 5


def test_a_run_that_cannot_save_still_says_what_the_callback_raised(memory_path, monkeypatch):
    each = make_trainer(iterations=9)

    def refuse(self, trainer):
        raise CheckpointError("no space")

    monkeypatch.setattr(RunDirectory, "save", refuse)
    with pytest.raises(LookupError, match="no such metric"):
        each.fit(
            progress=False,
            run=RunDirectory(memory_path),
            callbacks=[Failing("on_step_end", 3)],
        )


def test_help_fits_a_page():
    import pydoc

    text = pydoc.plain(pydoc.render_doc(PoolTrainer))
    assert len(text.splitlines()) <= 130
