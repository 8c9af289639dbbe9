"""Training that has come to a standstill says so once."""

import logging
import sys

import pytest
import torch

from fastnca import NeuralCA, create_target_circle
from fastnca.commands.parser import main
from fastnca.training import PRESETS, PoolTrainer, Processes, TrainConfig
from fastnca.training.standstill import PATIENCE
from tests.runs import SMALL, advance

WORDS = "the gradient was exactly 0 in 10 iterations in a row"


def make(bias=0.0, preset="tutorial", **options):
    torch.manual_seed(0)
    model = NeuralCA(16, 8, backend="torch")
    with torch.no_grad():
        model.update_net[2].bias.fill_(bias)
    config = TrainConfig.preset(preset, **{**SMALL, **options})
    return PoolTrainer(model, create_target_circle(12), config)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_rule_that_kills_the_seed_warns_once(caplog):
    each = make(bias=-2.0, update_rate=1.0)
    advance(each, PATIENCE - 1)
    assert warnings(caplog) == []
    advance(each, 2 * PATIENCE)
    (said,) = warnings(caplog)
    assert said.startswith(f"{WORDS}, up to iteration {PATIENCE}")
    assert "lower learning_rate" in said


def test_states_out_of_range_warn_once(caplog):
    each = make(learning_rate=0.3, min_steps=30, max_steps=40)
    advance(each, 3 * PATIENCE)
    assert each.reseeded > PATIENCE
    (said,) = warnings(caplog)
    assert said.startswith(WORDS)


def test_numbers_that_are_read_late_warn_as_well(caplog):
    each = make(bias=-2.0, update_rate=1.0)
    for _ in range(PATIENCE + 2):
        each.start()
    each.read()
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_fresh_model_warns_of_nothing(caplog, preset):
    advance(make(preset=preset, damage=int(preset == "regenerating")), 2 * PATIENCE)
    assert warnings(caplog) == []


def test_a_standstill_that_ends_warns_of_nothing(caplog):
    each = make(update_rate=1.0)
    layer = each.model.update_net[2]
    for _ in range(3):
        weights = each.copy_weights()
        with torch.no_grad():
            layer.bias.fill_(-2.0)
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


def test_the_command_line_prints_the_warning_above_the_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("fastnca.commands.train._draw", lambda *_: None)  # pictures take longest
    flags = [
        *("--size", "12", "--hidden", "6", "--iterations", "20", "--learning-rate", "0.3"),
        *("--pool-size", "4", "--batch-size", "2", "--min-steps", "30", "--max-steps", "40"),
    ]
    assert main(["train", *flags, "--out", str(tmp_path / "r")]) in (0, 3)
    said = capsys.readouterr().err
    assert "training:" in said
    assert said.count(WORDS) == 1
    (line,) = [line for line in said.split("\n") if WORDS in line]
    assert line.split("\r")[-1].startswith(f"fastnca: {WORDS}")  # the bar was erased before it
    assert not logging.getLogger("fastnca").handlers
