"""The command line: files it leaves, sentences it says, exit codes."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastnca import NeuralCA, __version__
from fastnca.commands.parser import main
from fastnca.testing import tutorial
from tests.helpers import CPU_DEFAULT, excite

DEFAULT = [
    *("--size", "12", "--hidden", "6", "--iterations", "3"),
    *("--pool-size", "4", "--batch-size", "4", "--min-steps", "3", "--max-steps", "5"),
]
QUICK = [*DEFAULT, "--preset", "tutorial"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "circle"
    assert main(["train", *DEFAULT, "--out", str(out)]) == 0
    return out


@pytest.fixture
def model_dir(tmp_path):
    model = excite(NeuralCA(8, 6))
    model.metadata = {"size": 16}
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_train_leaves_model_metrics_and_pictures(run):
    assert sorted(os.listdir(run)) == [
        ".lock",
        "best",
        "ckpt-00000003",
        "config.json",
        "growth.gif",
        "growth.png",
        "latest",
        "loss.png",
        "metrics.csv",
        "metrics.jsonl",
        "model.safetensors",
        "pool.png",
        "regeneration.png",
        "run.toml",
    ]
    assert (run / "latest").read_text() == "ckpt-00000003\n"
    assert sorted(os.listdir(run / "ckpt-00000003")) == [
        "companion-best-weights.safetensors",
        "companion-recovery.safetensors",
        "config.json",
        "manifest.json",
        "model.safetensors",
        "pool-00000-of-00001.safetensors",
        "train.safetensors",
    ]
    assert NeuralCA.load(run / "ckpt-00000003").metadata["size"] == 12
    model = NeuralCA.load(run)
    assert (model.num_channels, model.hidden_dim) == (16, 6)
    assert model.metadata["size"] == 12
    assert model.metadata["target"] == "circle"
    assert len(list(csv.reader((run / "metrics.csv").read_text().splitlines()))) == 4
    for name in ("growth.png", "loss.png", "regeneration.png"):
        with Image.open(run / name) as picture:
            assert picture.width > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5
    with Image.open(run / "growth.gif") as gif:
        assert gif.n_frames > 1


@pytest.mark.long
def test_train_says_what_it_does(tmp_path, capsys):
    assert main(["train", *QUICK, "--target", "ring", "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert "ring on 12x12 cells, 16 channels, hidden 6, preset tutorial, 3 iterations" in said.out
    assert f"backend {CPU_DEFAULT} on cpu" in said.out
    assert "3 iterations in" in said.out
    assert "note:" not in said.out
    assert said.err == ""


def test_train_is_reproducible(run, tmp_path, capsys):
    assert main(["train", *DEFAULT, "--out", str(tmp_path)]) == 0
    note = "note: a run of 3 iterations does not reach ramp 950 and damage_start 570 of quick"
    assert note in capsys.readouterr().out
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.long
def test_train_does_not_overwrite_a_run(run, tmp_path, capsys):
    before = (run / "model.safetensors").read_bytes()
    assert main(["train", *QUICK, "--out", str(run)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before
    assert main(["train", *QUICK, "--out", str(tmp_path), "--force"]) == 0


@pytest.mark.parametrize(
    "flags", [["--hidden", "9000"], ["--tensorboard"], ["--backend", "triton"], ["--keep", "0"]]
)
def test_what_is_refused_overwrites_nothing(run, tmp_path, monkeypatch, flags):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["train", *QUICK, *flags, "--force", "--out", str(copy)]) == 1
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_train_resumes(tmp_path, capsys):
    out = str(tmp_path / "run")
    longer = [*QUICK[:-8], "--iterations", "5", *QUICK[-8:]]
    assert main(["train", *QUICK, "--out", out]) == 0
    assert main(["train", *longer, "--out", out, "--resume"]) == 0
    assert main(["train", *longer, "--out", str(tmp_path / "straight")]) == 0
    resumed, straight = (NeuralCA.load(tmp_path / name) for name in ("run", "straight"))
    assert straight.metadata == resumed.metadata
    finals = [
        load_file(tmp_path / name / "ckpt-00000005" / "model.safetensors")["update_net.2.weight"]
        for name in ("run", "straight")
    ]
    assert torch.equal(*finals)
    losses = [
        [
            row["loss"]
            for row in csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())
        ]
        for name in ("run", "straight")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
    capsys.readouterr()
    assert main(["train", *longer, "--out", out, "--resume", "--learning-rate", "0.1"]) == 1
    assert "learning_rate=0.002, this one 0.1" in capsys.readouterr().err
    assert main(["train", *longer, "--out", str(tmp_path / "new"), "--resume"]) == 1
    assert "no saved run" in capsys.readouterr().err


@pytest.mark.long
def test_train_on_a_picture(tmp_path):
    Image.new("RGBA", (30, 20), (0, 90, 200, 255)).save(tmp_path / "p.png")
    out = tmp_path / "run"
    assert main(["train", *QUICK, "--target", str(tmp_path / "p.png"), "--out", str(out)]) == 0
    assert (out / "growth.png").is_file()


@pytest.mark.long
def test_presets_and_flags_reach_the_trainer(tmp_path):
    flags = ["--preset", "persistent", "--no-clamp-loss", "--milestones", "1", "2"]
    assert main(["train", *QUICK, *flags, "--out", str(tmp_path / "r")]) == 0
    manifest = json.loads((tmp_path / "r" / "ckpt-00000003" / "manifest.json").read_text())
    config = manifest["config"]
    assert config["reseed"] == "before"
    assert config["milestones"] == [1, 2]
    assert config["gradient"] == "normalize"
    assert NeuralCA.load(tmp_path / "r").metadata["fill_hidden"] is True


def test_divergence_saves_the_model_and_exits_3(tmp_path, capsys):
    flags = ["--learning-rate", "1e30", "--iterations", "40", "--out", str(tmp_path / "r")]
    assert main(["train", *QUICK[:4], *QUICK[6:], *flags]) == 3
    assert "not finite in 10 iterations in a row" in capsys.readouterr().err
    for parameter in NeuralCA.load(tmp_path / "r").parameters():
        assert torch.isfinite(parameter).all()


@pytest.mark.long
def test_a_model_that_does_not_grow_is_saved_and_exits_3(tmp_path, capsys):
    out = tmp_path / "r"
    assert main(["train", *QUICK, "--learning-rate", "30", "--out", str(out)]) == 3
    said = capsys.readouterr()
    assert "fastnca: the model does not grow: within 480 steps from the seed" in said.err
    assert "grown from the seed" not in said.out
    last = load_file(out / "ckpt-00000003" / "model.safetensors")
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in last.items())
    assert NeuralCA.load(out).metadata["iterations"] == 3
    assert (out / "growth.png").is_file()


@pytest.mark.long
def test_no_iterations_leave_the_untrained_model(tmp_path, capsys):
    out = tmp_path / "r"
    assert main(["train", *QUICK, "--iterations", "0", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert (said.err, "nan" in said.out, "inf" in said.out) == ("", False, False)
    assert "the average of the weights up to iteration 0" in said.out
    assert not NeuralCA.load(out).update_net[2].weight.any()


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_saves_and_tells_the_way_on(tmp_path, number, code):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastnca", "train", *QUICK, "--iterations", "100000"]
    with subprocess.Popen(
        [*command, "--log-interval", "1", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        metrics = out / "metrics.csv"
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said, complained = process.communicate(timeout=120)
    assert process.returncode == code
    assert complained == ""
    (words,) = [line for line in said.splitlines() if "continue with: " in line]
    again = shlex.split(words.partition("continue with: fastnca ")[2])
    assert main([*again, "--iterations", "1"]) == 0  # done already
    checkpoint = out / (out / "latest").read_text().strip()
    assert json.loads((checkpoint / "manifest.json").read_text())["iteration"] >= 3
    assert NeuralCA.load(out).metadata["size"] == 12


def test_grow(model_dir, capsys):
    assert main(["grow", str(model_dir), "--steps", "5"]) == 0
    said = capsys.readouterr().out.split()
    assert said == [str(model_dir / "growth.png"), str(model_dir / "growth.gif")]
    with Image.open(model_dir / "growth.gif") as gif:
        assert gif.size == (64, 64)
        assert gif.n_frames <= 4


def test_grow_with_names_and_size(model_dir, tmp_path):
    files = [str(tmp_path / "a.PNG"), str(tmp_path / "b.gif")]
    assert main(["grow", str(model_dir), "--size", "9", "--steps", "2", "--out", *files]) == 0
    with Image.open(files[1]) as gif:
        assert gif.size == (36, 36)
    with Image.open(files[0]) as picture:
        assert picture.width > 500


@pytest.mark.parametrize("command", ["grow", "regenerate"])
def test_an_untrained_model_is_drawn_and_named(tmp_path, capsys, command):
    for model, count in ((NeuralCA(8, 6), 1), (excite(NeuralCA(8, 6)), 0)):
        model.save(tmp_path)
        files = [str(tmp_path / "a.png"), str(tmp_path / "b.gif")]
        flags = ["--size", "8", "--steps", "2", "--out", *files]
        assert main([command, str(tmp_path), *flags]) == 0
        said = capsys.readouterr()
        assert said.out.split() == files
        assert said.err.count("nothing can grow, because the last layer is zero") == count
        assert said.err.count("\n") == count


def test_grow_from_a_tutorial_file(tmp_path):
    torch.save(excite(tutorial.NeuralCA(8, 6)).state_dict(), tmp_path / "nca.pt")
    assert main(["grow", str(tmp_path / "nca.pt"), "--size", "8", "--steps", "2"]) == 0
    assert (tmp_path / "growth.png").is_file()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("command", ["grow", "regenerate"])
def test_synchronous_pictures_are_others(model_dir, tmp_path, command):
    files = [tmp_path / name for name in ("random.png", "again.png", "all.png")]
    for path in files:
        flags = ["--synchronous"] if path.name == "all.png" else []
        assert main([command, str(model_dir), "--steps", "6", *flags, "--out", str(path)]) == 0
    shown = [path.read_bytes() for path in files]
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize(
    "damage",
    [[], ["--box", "0", "0", "4", "16"], ["--damage", "disc", "--center", "3", "8"]],
    ids=["default", "rectangle", "disc"],
)
def test_regenerate(model_dir, damage):
    steps = ["--grow-steps", "6", "--steps", "4"]
    assert main(["regenerate", str(model_dir), *steps, *damage]) == 0
    assert (model_dir / "regeneration.png").is_file()
    with Image.open(model_dir / "regeneration.gif") as gif:
        assert gif.n_frames >= 2


def test_the_damaged_disc_is_where_it_was_asked_for():
    from argparse import Namespace

    from fastnca.commands.show import _damage

    inside = _damage(Namespace(damage="disc", box=None, center=(4.0, 10.0), radius=2.5), 16)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    assert torch.equal(inside, (y - 4) ** 2 + (x - 10) ** 2 < 2.5**2)


@pytest.mark.parametrize("pattern", ["glider", "acorn"])
def test_life(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    assert main(["life", "--pattern", pattern, "--steps", "4", "--size", "12"]) == 0
    with Image.open(tmp_path / f"life-{pattern}.gif") as gif:
        assert gif.n_frames == 5
    assert (tmp_path / f"life-{pattern}.png").is_file()


def test_info(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"fastnca {__version__}" in said
    assert torch.__version__ in said
    assert "reference    yes" in said
    assert "triton       no: " in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "--target", "cube"],
            "there is no picture file 'cube', and no target of that name: there are circle, ring, "
            "heart, star, flower, leaf, cheetah, zebra, coral",
        ),
        (["train", "--channels", "3", "--out", "x"], "num_channels must be at least 4"),
        (
            ["train", "--batch-size", "9", "--pool-size", "4", "--no-replacement"],
            "from a pool of 4",
        ),
        (["train", "--update-rate", "2"], "in [0, 1]"),
        (["train", "--backend", "triton", "--out", "x"], "backend 'triton' was asked for"),
        (
            ["train", "--target", "."],
            "there is no picture file '.', and no target of that name: there are c",
        ),
        (["train", "--target-padding", "3"], "circle is drawn without one"),
        (["train", "--hidden", "9000", "--size", "8", "--out", "x"], "from 1 to 8192, got 9000"),
        (["train", "--resume", "--out", "x"], "x: no saved run"),
        (["train", "--out", "MODEL/config.json"], "is a file; a run needs a directory"),
        (["train", "--config", "none.toml"], "none.toml: No such file or directory"),
        (["grow", "nowhere"], "no such model directory or file"),
        (["grow", "MODEL", "--out", "a.jpg"], "written as .png (panels) or .gif"),
        (["grow", "MODEL", "--out", "no/where.png"], "there is no directory no"),
        (["regenerate", "MODEL", "--box", "20", "20", "30", "30"], "covers no cell"),
        (["regenerate", "MODEL", "--damage", "disc", "--center", "99", "99"], "covers no cell"),
        (["regenerate", "MODEL", "--radius", "3"], "--radius belongs to --damage disc"),
        (
            ["regenerate", "MODEL", "--damage", "disc", "--box", "1", "1", "2", "2"],
            "--box belongs to --damage rectangle",
        ),
        (["life", "--pattern", "acorn", "--size", "3"], "needs a grid of at least 3x7, got 3x3"),
    ],
)
def test_refusals_are_one_sentence(arguments, words, model_dir, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    arguments = [word.replace("MODEL", str(model_dir)) for word in arguments]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.startswith("fastnca: ")
    assert "Traceback" not in said.err
    assert not list(tmp_path.glob("x/[!.]*"))


def test_a_model_larger_than_any_memory_exits_4(tmp_path, capsys):
    sizes = ["--hidden", "2000000000", "--channels", "2000000000"]
    assert main(["train", *sizes, "--out", str(tmp_path / "x")]) == 4
    said = capsys.readouterr().err
    assert said.startswith("fastnca: memory ran out (")
    assert said.count("\n") == 1


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def reasons(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("fastnca.commands.info.fused_reasons", reasons)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train", "--size", "0"],
        ["train", "--iterations", "many"],
        ["train", "--colour", "red"],
        ["train", "--size", "big"],
        ["train", "--size", "65537"],
        ["life", "--size", "65537"],
        ["grow", "m", "--steps", "99999999999999999999"],
        ["train", "--timeout", "soon"],
        ["train", "--config"],
        ["train", "--conf", "run.toml"],  # no abbreviations: expand_config would not see it
        ["train", "--device", "meta"],
        ["train", "--device", "cuda:77"],
        ["train", "--preset", "distill"],
        ["grow"],
        ["regenerate", "m", "--radius", "-1"],
    ],
)
def test_wrong_arguments_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "usage: fastnca" in said
    assert "_positive" not in said


def test_a_damaged_model_is_named(model_dir, capsys):
    (model_dir / "model.safetensors").write_bytes(b"x")
    assert main(["grow", str(model_dir)]) == 1
    assert "model.safetensors: its SHA-256 is not the one" in capsys.readouterr().err


@pytest.mark.long
def test_version_and_module_entry():
    said = subprocess.run(
        [sys.executable, "-m", "fastnca", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"fastnca {__version__}\n"
