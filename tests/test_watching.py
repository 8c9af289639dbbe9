"""Options in files, metrics files, pictures of the pool, TensorBoard, out of memory."""

import csv
import io
import json
import os
import shutil
import sys
import tomllib
import types

import numpy as np
import pytest
import torch
from PIL import Image

from fastnca import NeuralCA, create_target_circle
from fastnca.commands.parser import main
from fastnca.pictures import encode_mosaic
from fastnca.storage.checkpoints import list_checkpoints
from fastnca.training import DEFAULT_PRESET, PRESETS, MemoryLimitError, RunDirectory
from tests.helpers import excite
from tests.runs import assert_same, make_trainer

QUICK = [
    *("--size", "12", "--hidden", "6", "--iterations", "4"),
    *("--pool-size", "5", "--batch-size", "4", "--min-steps", "3", "--max-steps", "5"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with pictures of its pool."""
    out = tmp_path_factory.mktemp("runs") / "a <b> & c"
    assert main(["train", *QUICK, "--mosaic-interval", "2", "--out", str(out)]) == 0
    return out


@pytest.mark.long
def test_the_options_of_a_run_train_the_same_again(finished, tmp_path):
    options = finished / "run.toml"
    saved = tomllib.loads(options.read_text())
    assert saved["size"] == 12
    assert saved["learning_rate"] == PRESETS[DEFAULT_PRESET]["learning_rate"] != 2e-3
    assert "out" not in saved
    out = tmp_path / "again"
    assert main(["train", "--config", str(options), "--out", str(out)]) == 0
    assert (out / "run.toml").read_text() == options.read_text()
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.long
def test_the_command_line_counts_more_than_the_file(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'target = "ring"\nsize = 12\nhidden = 6\niterations = 9\npool_size = 4\nbatch_size = 3\n'
        'min_steps = 3\nmax_steps = 5\npreset = "persistent"\nmilestones = [1, 2]\n'
        f'clamp_loss = true\nlearning_rate = 1\nout = "{tmp_path / "r"}"\n'
    )
    flags = ["--iterations", "2", "--no-clamp-loss"]
    assert main(["train", "--config", str(config), *flags]) == 0
    saved = tomllib.loads((tmp_path / "r" / "run.toml").read_text())
    assert saved["iterations"] == 2
    assert saved["clamp_loss"] is False
    assert saved["milestones"] == [1, 2]
    assert saved["learning_rate"] == 1.0
    assert saved["gradient"] == "normalize"


BAD_CONFIGS = {
    "unknown": ("colour = 1\npool = 2", "unknown options: colour, pool; known are activation"),
    "config": ('config = "x"', "unknown options: config"),
    "table": ("[train]\nsize = 3", "unknown options: train"),
    "text for a number": ('size = "64"', "size must be a number, got '64'"),
    "number for text": ("target = 3", "target must be text, got 3"),
    "number for a flag": ("clamp_loss = 1", "clamp_loss must be true or false, got 1"),
    "number for force": ("force = 1", "force must be true or false"),
    "list": ("size = [1]", "size must be one value"),
    "no list": ("milestones = 3", "milestones must be a list"),
    "date": ("size = 2020-01-01", "must hold numbers or text"),
    "not toml": ("size = = 3", "not a TOML file"),
    "not utf-8": (b"size = \xff", "not a TOML file"),
    "deep": ("size = " + "[" * 100_000, "not a TOML file"),
    "huge": ("#" * (1 << 21), "too large"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configs_are_refused_in_a_sentence(tmp_path, capsys, name):
    content, words = BAD_CONFIGS[name]
    path = tmp_path / "run.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "r")]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "r").exists()


def test_values_out_of_range_in_a_file_are_refused_as_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text("size = 0")
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(path)])
    assert caught.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_json_lines_say_what_the_table_says(finished):
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == 4
    for row, line in zip(rows, lines, strict=True):
        assert row.keys() == line.keys()
        assert float(row["loss"]) == pytest.approx(line["loss"], rel=1e-6)
        assert line["skipped"] is False


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    each = make_trainer(iterations=1)
    each.pool.states[:] = float("nan")
    each.fit(metrics=tmp_path / "m.csv", progress=False)
    line = json.loads((tmp_path / "m.jsonl").read_text())
    assert line["loss"] is None
    assert line["skipped"] is True


def test_a_killed_run_logs_no_iteration_twice(tmp_path):
    straight, killed = make_trainer(iterations=9), make_trainer(iterations=6)
    straight.fit(metrics=tmp_path / "straight.csv", progress=False)
    run = RunDirectory(tmp_path / "run")

    def save(result):
        if result.iteration == 4:
            run.save(killed)

    killed.fit(metrics=tmp_path / "m.csv", progress=False, callbacks=[save])
    for suffix in ("csv", "jsonl"):
        with (tmp_path / f"m.{suffix}").open("a") as file:
            file.write('7,{"itera')  # half a line
    again = make_trainer(iterations=9)
    again.resume(tmp_path / "run")
    again.fit(metrics=tmp_path / "m.csv", progress=False)
    assert_same(again, straight)
    tables = [
        [(row["iteration"], row["loss"]) for row in csv.DictReader(path.read_text().splitlines())]
        for path in (tmp_path / "m.csv", tmp_path / "straight.csv")
    ]
    assert tables[0] == tables[1]
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 10))


def test_pictures_of_the_pool(finished):
    assert sorted(os.listdir(finished / "pools")) == ["00000002.png", "00000004.png"]
    with Image.open(finished / "pool.png") as picture:
        assert picture.size == (3 * 25 + 1, 2 * 25 + 1)  # 5 states in rows of 3


@pytest.mark.long
def test_an_overwritten_run_leaves_no_pictures(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "pools" / "mine.png").write_text("x")
    flags = ["--mosaic-interval", "4", "--force", "--out", str(run)]
    assert main(["train", *QUICK, *flags]) == 0
    assert sorted(os.listdir(run / "pools")) == ["00000004.png", "mine.png"]


def test_a_mosaic_shows_every_state_in_its_place():
    states = torch.zeros(3, 4, 2, 2)
    for number in range(3):
        states[number, 3] = states[number, number] = 1.0
    with Image.open(io.BytesIO(encode_mosaic(states, columns=3, scale=1))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (4, 10, 3)
    assert [tuple(pixels[1, 1 + 3 * n]) for n in range(3)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    with pytest.raises(ValueError, match="at least one state"):
        encode_mosaic(states[:0])


def test_tensorboard_is_asked_for_in_vain(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *QUICK, "--tensorboard", "--out", str(tmp_path / "r")]) == 1
    assert "pip install tensorboard" in capsys.readouterr().err


@pytest.mark.long
def test_tensorboard_gets_every_iteration(tmp_path, monkeypatch):
    said = []

    class SummaryWriter:
        def __init__(self, path):
            said.append(path)

        def add_scalar(self, name, value, iteration):
            said.append((name, value, iteration))

        def close(self):
            said.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    assert main(["train", *QUICK, "--tensorboard", "--out", str(tmp_path / "r")]) == 0
    assert said[0] == str(tmp_path / "r" / "tensorboard")
    assert said[-1] == "closed"
    rows = csv.DictReader((tmp_path / "r" / "metrics.csv").read_text().splitlines())
    losses = [value for name, value, _ in said[1:-1] if name == "loss"]
    assert losses == pytest.approx([float(row["loss"]) for row in rows], rel=1e-6)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_names_the_last_checkpoint_and_exits_4(tmp_path, monkeypatch, capsys, error):
    real, calls = NeuralCA.run_steps, [0]

    def run_steps(self, *arguments, **options):
        calls[0] += 1
        if calls[0] == 7:  # seeds and others are rolled out apart
            raise error
        return real(self, *arguments, **options)

    monkeypatch.setattr(NeuralCA, "run_steps", run_steps)
    out = tmp_path / "r"
    flags = ["--iterations", "9", "--save-interval", "1", "--out", str(out)]
    assert main(["train", *QUICK[:4], *QUICK[6:], *flags]) == 4
    said = capsys.readouterr().err
    assert "memory ran out in iteration 4" in said
    assert "micro_batches" in said
    assert f"The last checkpoint is {out / 'ckpt-00000003'}" in said
    assert list_checkpoints(out)[0].name == "ckpt-00000003"
    monkeypatch.undo()
    assert main(["train", *QUICK[:4], *QUICK[6:], *flags, "--resume"]) == 0


def test_other_errors_are_not_taken_for_want_of_memory(monkeypatch):
    each = make_trainer(iterations=2)

    def run_steps(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(each.model, "run_steps", run_steps)
    with pytest.raises(RuntimeError, match="something else"):
        each.fit(progress=False)


def test_a_run_that_cannot_fit_exits_4(tmp_path, capsys):
    flags = ["--pool-size", "2000000000", "--out", str(tmp_path / "r")]
    assert main(["train", *flags]) == 4
    said = capsys.readouterr().err
    assert "training needs" in said
    assert "are free" in said
    with pytest.raises(MemoryLimitError):
        make_trainer(pool_size=2**40)


def test_micro_batches_add_up_to_the_gradient_of_the_batch():
    results = [make_double(count).step() for count in (1, 2, 5)]
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-12)
        assert result.gradient_norm == pytest.approx(results[0].gradient_norm, rel=1e-9)


def make_double(micro_batches):
    """Make a trainer in double precision that updates every cell: masks of no account."""
    from fastnca.training import PoolTrainer, TrainConfig

    torch.manual_seed(0)
    config = TrainConfig(
        pool_size=6,
        batch_size=5,
        min_steps=4,
        max_steps=6,
        seed=1,
        update_rate=1.0,
        gradient="none",
        micro_batches=micro_batches,
    )
    model = excite(NeuralCA(8, 6, backend="torch").double())
    return PoolTrainer(model, create_target_circle(8, dtype=torch.float64), config)


def test_checkpoint_every_reaches_the_rollout(monkeypatch):
    each, asked = make_trainer(checkpoint_every=3), []
    real = each.model.run_steps

    def run_steps(*arguments, checkpoint_every=1, **options):
        asked.append(checkpoint_every)
        return real(*arguments, **options)

    monkeypatch.setattr(each.model, "run_steps", run_steps)
    each.step()
    assert asked == [3]
