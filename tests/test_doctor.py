"""Training that goes wrong is recognised, said in a sentence, and repaired or ended."""

import logging
import math
import sys
from dataclasses import replace

import pytest
import torch

from fastnca import NeuralCA, create_target_circle
from fastnca.commands.parser import main
from fastnca.rule import TUTORIAL
from fastnca.training import (
    PRESETS,
    CollapsedError,
    DivergedError,
    EmaTracker,
    PoolTrainer,
    Processes,
    TrainConfig,
)
from fastnca.training.callbacks import StepResult
from fastnca.training.optimizer import copy_weights
from fastnca.training.recovery import (
    EVERY,
    LEARNING_BY,
    PATIENCE,
    RATE,
    RISE,
    WINDOW,
    Doctor,
    Fault,
)
from tests.runs import SMALL, Hooks, advance, assert_same

DEAD = "the seed or most states were dead after the rollout in 10 iterations in a row"


def make(bias=0.0, preset="tutorial", **options):
    torch.manual_seed(0)
    rule = replace(TUTORIAL, alive="none") if preset == "texture" else TUTORIAL
    model = NeuralCA(16, rule=replace(rule, hidden=(8,)), backend="torch")
    kill(model, bias)
    config = TrainConfig.preset(preset, **{**SMALL, **options})
    return PoolTrainer(model, create_target_circle(12), config)


def kill(model, bias=-2.0):
    """Let the rule push every cell's channels down."""
    with torch.no_grad():
        model.update_net[2].bias.fill_(bias)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def result(iteration=1, **changes):
    """Return what a healthy iteration with loss 0.1 tells."""
    facts = {
        "loss": 0.1,
        "gradient_norm": 1.0,
        "steps": 64,
        "learning_rate": 1e-3,
        "seconds": 0.1,
        "skipped": False,
        "states": 4,
        "seeds": 1,
    }
    return StepResult(iteration, **{**facts, **changes})


SIGNS = {
    Fault.DEAD: {"dead": 3},
    Fault.EXPLODED: {"exploded": 2},
    Fault.STANDSTILL: {"gradient_norm": 0.0},
    Fault.NOT_FINITE: {"skipped": True, "loss": math.nan},
    Fault.EMPTY: {"loss": 0.2},
}


def limit(fault):
    return LEARNING_BY if fault is Fault.EMPTY else PATIENCE


@pytest.mark.parametrize("fault", SIGNS)
def test_a_fault_is_recognised_after_so_many_iterations_in_a_row(fault):
    doctor = Doctor(0.2, PATIENCE)
    for iteration in range(1, limit(fault)):
        doctor.examine(result(iteration, **SIGNS[fault]))
        assert doctor.fault is None
    doctor.examine(result(limit(fault), **SIGNS[fault]))
    assert doctor.fault is fault
    count = limit(fault)
    assert doctor.diagnosis == (
        f"{fault.value} in {count} iterations in a row, up to iteration {count}"
    )
    doctor.recover()
    assert (doctor.fault, doctor.diagnosis) == (None, "")


@pytest.mark.parametrize("fault", SIGNS)
def test_a_single_good_iteration_in_between_is_enough(fault):
    doctor = Doctor(0.2, PATIENCE)
    for _ in range(3):
        for _ in range(limit(fault) - 1):
            doctor.examine(result(**SIGNS[fault]))
        doctor.examine(result())
    assert doctor.fault is None


def test_a_seed_that_dies_among_living_states_is_recognised():
    doctor = Doctor(0.2, PATIENCE)
    for iteration in range(PATIENCE):
        doctor.examine(result(iteration + 1, dead=1, dead_seeds=1))
        doctor.examine(result(iteration + 1, seeds=0))  # tells nothing of the seed
    assert doctor.fault is Fault.DEAD


def test_a_loss_far_above_its_lowest_is_recognised():
    doctor = Doctor(0.2, PATIENCE)
    for iteration in range(WINDOW):
        doctor.examine(result(iteration + 1, loss=0.01))
    for iteration in range(WINDOW, 3 * WINDOW):
        doctor.examine(result(iteration + 1, loss=0.01 * RISE * 1.1))
    assert doctor.fault is Fault.RISEN
    assert "the loss rose to 0.05" in doctor.diagnosis


@pytest.mark.parametrize(("lowest", "later"), [(0.01, 0.045), (0.001, 0.049)])
def test_a_loss_that_is_still_small_or_near_its_lowest_is_not(lowest, later):
    doctor = Doctor(0.2, PATIENCE)
    for loss in [lowest] * WINDOW + [later] * 3 * WINDOW:
        doctor.examine(result(loss=loss))
    assert doctor.fault is None


def test_weights_are_good_to_go_back_to_while_nothing_looks_wrong():
    doctor = Doctor(0.2, PATIENCE)
    assert not doctor.healthy  # nothing has been seen
    for _ in range(WINDOW):
        doctor.examine(result())
    assert doctor.healthy
    doctor.examine(result(dead=1, dead_seeds=1))
    assert not doctor.healthy


def test_a_doctor_goes_on_where_a_checkpoint_left_it():
    first, second = Doctor(0.2, PATIENCE), Doctor(0.2, PATIENCE)
    for number in range(WINDOW + 7):
        first.examine(result(loss=0.1 / (number + 1), dead=3 * (number > WINDOW)))
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert all(value.isfinite().all() for value in state.values())
    second.load_state_dict(state)
    for iteration in range(5):
        first.examine(result(iteration, dead=3))
        second.examine(result(iteration, dead=3))
        assert (first.fault, first.diagnosis) == (second.fault, second.diagnosis)
    assert first.fault is Fault.DEAD


def test_a_rule_that_kills_the_seed_warns_once(caplog):
    each = make(bias=-2.0, update_rate=1.0)
    advance(each, PATIENCE - 1)
    assert warnings(caplog) == []
    advance(each, 2 * PATIENCE)
    (said,) = warnings(caplog)
    assert said.startswith(f"{DEAD}, up to iteration {PATIENCE}: the model no longer learns")
    assert "lower learning_rate" in said


@pytest.mark.long
def test_states_out_of_range_warn_once(caplog):
    each = make(learning_rate=0.3, min_steps=30, max_steps=40)
    advance(each, 3 * PATIENCE)
    assert each.reseeded > PATIENCE
    (said,) = warnings(caplog)
    assert "the model no longer learns" in said


def test_numbers_that_are_read_late_warn_as_well(caplog):
    each = make(bias=-2.0, update_rate=1.0)
    for _ in range(PATIENCE + 2):
        each.start()
    each.collect()
    each.check()
    assert len(warnings(caplog)) == 1


@pytest.mark.long
def test_a_model_that_learns_nothing_is_told_so_once(caplog):
    each = make(learning_rate=1e-9, min_steps=1, max_steps=2)
    advance(each, 2 * LEARNING_BY + 1)
    (said,) = warnings(caplog)
    assert said == (
        "the loss was no lower than that of an empty grid in 300 iterations in a row, up to "
        "iteration 300: nothing has been learned yet; a higher learning_rate may help"
    )


@pytest.mark.one_in(6)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_fresh_model_warns_of_nothing(caplog, preset):
    advance(make(preset=preset, damage=int(preset == "regenerating")), 2 * PATIENCE)
    assert warnings(caplog) == []


def test_a_standstill_that_ends_warns_of_nothing(caplog):
    each = make(update_rate=1.0)
    for _ in range(3):
        weights = copy_weights(each.model)
        kill(each.model)
        advance(each, PATIENCE - 1)
        each.model.load_state_dict(weights)
        each.pool.states[:] = each.seed_state
        advance(each, 1)
    assert warnings(caplog) == []


def test_a_resumed_run_at_a_standstill_warns_again(caplog, tmp_path):
    each = make(bias=-2.0, update_rate=1.0)
    advance(each, PATIENCE)
    each.save(tmp_path)
    assert len(warnings(caplog)) == 1
    each.resume(tmp_path)
    advance(each, PATIENCE)
    assert len(warnings(caplog)) == 2


def test_of_several_processes_the_first_one_warns(caplog):
    each = make(bias=-2.0, update_rate=1.0)
    each.processes = Processes(rank=1)
    advance(each, PATIENCE)
    assert warnings(caplog) == []


@pytest.mark.long
@pytest.mark.parametrize("preset", ["persistent", "growing", "regenerating"])
def test_a_seed_made_to_die_is_repaired_within_20_iterations(caplog, preset):
    each = make(preset=preset, update_rate=1.0, damage=int(preset == "regenerating"))
    advance(each, EVERY)
    good = copy_weights(each.model)
    seen = []
    each.add_callback(Hooks(on_rollback=lambda: seen.append(each.iteration)))
    kill(each.model)
    advance(each, 20)
    (said,) = warnings(caplog)
    assert seen == [EVERY + PATIENCE]
    assert said == (
        f"{DEAD}, up to iteration {EVERY + PATIENCE}; the model goes back to iteration {EVERY}, "
        "with 0.5 times the learning rate (repair 1 of 3)"
    )
    rate = TrainConfig.preset(preset).learning_rate
    assert each.step().learning_rate == pytest.approx(RATE * rate)
    for name, value in good.items():  # a few small steps away from them
        assert torch.allclose(each.model.state_dict()[name], value, atol=0.1), name
    assert each.recovery.repairs == 1


def test_a_repair_puts_weights_optimiser_and_pool_right():
    each = make(preset="persistent", update_rate=1.0)
    best = each.add_callback(EmaTracker())
    advance(each, EVERY)
    good = copy_weights(each.model)
    kill(each.model)
    each.pool.states[0] = 0.0
    each.pool.states[1] = 1e6
    kept = each.pool.states[2].clone()
    for _ in range(PATIENCE):  # what `step` does, but for the repair
        each.start()
    each.collect()
    states = each.pool.states
    states[0], states[1], states[2] = 0.0, 1e6, kept
    each.check()
    for state in each.optimizer.adam.state.values():
        assert all(not value.any() for value in state.values())
    for weights in (each.model.state_dict(), best.ema_model.state_dict()):
        for name, value in good.items():
            assert torch.equal(weights[name], value), name
    assert torch.equal(each.pool.states[:2], each.seed_state.repeat(2, 1, 1, 1))
    assert torch.equal(each.pool.states[2], kept)


def test_the_fault_after_the_last_repair_ends_training(caplog):
    each = make(preset="persistent", update_rate=1.0, repairs=2)
    initial = copy_weights(each.model)
    kill(each.model)
    again = {"on_rollback": lambda: kill(each.model), "on_update": lambda: kill(each.model)}
    each.add_callback(Hooks(**again))
    with pytest.raises(CollapsedError, match="after 2 repairs; the model is back at the weights"):
        advance(each, 10 * PATIENCE)
    assert each.iteration == 3 * PATIENCE
    assert [said.split("(")[-1] for said in warnings(caplog)] == [
        "repair 1 of 2)",
        "repair 2 of 2)",
    ]
    for name, value in initial.items():
        assert torch.equal(each.model.state_dict()[name], value), name


def test_skipped_iterations_are_repaired_too_and_end_as_diverged(caplog):
    each = make(preset="persistent", repairs=1, max_skips=3)

    def spoil():
        with torch.no_grad():
            each.model.update_net[0].weight.fill_(math.nan)

    advance(each, 2)
    spoil()
    each.add_callback(Hooks(on_update=spoil, on_rollback=spoil))
    with pytest.raises(DivergedError, match="not finite in 3 iterations in a row, up to iter"):
        advance(each, 20)
    assert each.iteration == 2 + 2 * 3
    assert len(warnings(caplog)) == 1
    assert all(value.isfinite().all() for value in copy_weights(each.model).values())


@pytest.mark.long
def test_a_repaired_run_resumes_bit_for_bit(tmp_path):
    def run(upto, resume=False):
        each = make(preset="persistent", update_rate=1.0, iterations=100)
        if resume:
            each.resume(tmp_path)
        while each.iteration < upto:
            if each.iteration == EVERY:
                kill(each.model)
            each.step()
        return each

    whole = run(EVERY + 30)
    assert whole.recovery.repairs == 1
    for moment in (EVERY + 5, EVERY + 15):
        run(moment).save(tmp_path)
        again = run(EVERY + 30, resume=True)
        assert_same(again, whole)
        assert (again.recovery.repairs, again.recovery.rate) == (1, RATE)
        for path in tmp_path.glob("ckpt-*/*"):
            path.unlink()
        for path in tmp_path.glob("*"):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.long
def test_the_command_line_prints_the_warning_above_the_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        "fastnca.commands.train.draw_result", lambda *_: []
    )  # pictures take longest
    words = "10 iterations in a row"
    flags = [
        *("--preset", "tutorial", "--size", "12", "--hidden", "6", "--iterations", "20"),
        *("--learning-rate", "0.3", "--min-steps", "30", "--max-steps", "40"),
        *("--pool-size", "4", "--batch-size", "2", "--seed", "15"),
    ]
    assert main(["train", *flags, "--out", str(tmp_path / "r")]) in (0, 3)
    said = capsys.readouterr().err
    assert "training:" in said
    assert said.count(words) == 1
    (line,) = [line for line in said.split("\n") if words in line]
    assert line.split("\r")[-1].startswith("fastnca: ")  # the bar was erased before it
    assert not logging.getLogger("fastnca").handlers


@pytest.mark.long
def test_a_collapsed_run_has_an_exit_code_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastnca.commands.train._model", lambda *_: make(bias=-2.0).model)
    flags = ["--size", "12", "--iterations", "80", "--pool-size", "4", "--update-rate", "1"]
    assert main(["train", *flags, "--repairs", "2", "--out", str(tmp_path)]) == 5
    said = capsys.readouterr().err
    assert said.count("the model goes back to iteration 0") == 2
    assert "after 2 repairs; the model is back at the weights of iteration 0. Start again" in said
    assert NeuralCA.load(tmp_path).hidden_dim == 8
