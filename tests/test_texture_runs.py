"""Textures from the command line: what a run leaves, its report, pictures as targets, refusals."""

import json
import math
import re
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

from fastnca import RULES, NeuralCA, create_target
from fastnca.commands.parser import main
from fastnca.commands.target import make_target
from fastnca.images import load_texture
from fastnca.pictures.render import seed_of, visible
from fastnca.report import measure_texture, untrained_loss
from fastnca.textures import create_texture

SMALL = [
    *("--iterations", "6", "--pool-size", "6", "--min-steps", "3", "--max-steps", "6"),
    *("--size", "16", "--target-size", "24", "--hidden", "8", "--learning-rate", "1e-4"),
]


def train(out, *words):
    return main(["train", *SMALL, *words, "--out", str(out)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("texture") / "run"
    assert train(out, "--target", "zebra", "--save-interval", "3", "--keep", "9") == 0
    return out


@pytest.mark.long
def test_a_run_leaves_a_model_that_is_a_texture(run):
    model = NeuralCA.load(run)
    assert model.rule.alive == "none"
    assert model.rule.padding == "circular"
    assert model.num_channels == 12
    facts = {"size": 16, "start": "zeros", "visible": "texture", "target": "zebra"}
    assert facts.items() <= model.metadata.items()
    options = tomllib.loads((run / "run.toml").read_text())
    assert (options["size"], options["target_size"]) == (16, 24)
    assert (options["preset"], options["loss"], options["start"]) == ("texture", "texture", "zeros")
    assert not seed_of(model, 9).any()


def read(path):
    """Read a picture as `[H, W, 3]` uint8."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_its_pictures_show_sample_larger_grid_and_tiles(run):
    names = ("sample.png", "larger.png", "tiles.png")
    assert {name: read(run / name).shape[:2] for name in names} == {
        "sample.png": (24 * 2 + 2, 2 * (24 * 2 + 1) + 1),
        "larger.png": (48 * 2 + 2, 48 * 2 + 2),
        "tiles.png": (48 * 3 + 2, 48 * 3 + 2),
    }
    target = read(run / "sample.png")[1:49:2, 1:49:2]
    expected = create_texture("zebra", 24)[0, :3].permute(1, 2, 0) * 255
    assert np.abs(target.astype(float) - expected.numpy()).max() <= 0.51
    tiles = read(run / "tiles.png")[1:145, 1:145]
    assert np.array_equal(tiles[:48], tiles[48:96])
    assert np.array_equal(tiles[:, :48], tiles[:, 96:])
    with Image.open(run / "growth.gif") as animation:
        assert animation.size == (32, 32)
        assert animation.n_frames > 1


@pytest.mark.long
def test_the_last_lines_say_how_near_it_is(tmp_path, capsys):
    assert train(tmp_path / "run", "--rule", "texture", "--target", "heart") == 0
    said = capsys.readouterr().out
    assert re.search(r"texture loss after 480 steps \(an untrained model has \d\.\d{3}\):", said)
    assert re.search(r"^    (\d+\.\d{4}|not finite: states exploded) on 12x12 cells$", said, re.M)
    assert "on 24x24 cells" in said
    assert "sample.png, larger.png, tiles.png" in said


@pytest.mark.long
def test_a_run_goes_on_bit_for_bit(run, tmp_path):
    flags = ["--target", "zebra", "--save-interval", "3", "--keep", "9"]
    short = [*flags, "--iterations", "6"]
    assert train(tmp_path / "copy", *short) == 0
    for name in ("ckpt-00000006", "latest", "model.safetensors"):
        path = tmp_path / "copy" / name
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
    again = ["--config", str(tmp_path / "copy" / "run.toml"), "--out", str(tmp_path / "copy")]
    assert main(["train", *again, "--resume"]) == 0
    for name in ("model.safetensors", "sample.png", "growth.gif"):
        assert (tmp_path / "copy" / name).read_bytes() == (run / name).read_bytes(), name


def test_its_report_has_sections_that_fit(run, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--steps", "5", "10", "--runs", "1", "--out", str(page)]) == 0
    text = page.read_text()
    titles = ["Loss", "Texture", "Growth", "Healing", "Pool", "Stability"]
    assert re.findall(r"<h2>(.*?)</h2>", text) == titles
    assert "loss, 12x12" in text
    assert "loss, 24x24" in text
    assert "3x3 seamless tiles" in text


def test_a_grown_model_is_drawn_in_its_colours(run, tmp_path):
    words = ["--steps", "6", "--out", str(tmp_path / "a.gif"), str(tmp_path / "b.png")]
    assert main(["grow", str(run), "--size", "10x20", *words]) == 0
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.size == (80, 40)
        first = np.asarray(animation.convert("RGB"))
    assert np.abs(first.astype(int) - 128).max() <= 1  # a state of zeros is grey
    model = NeuralCA.load(run)
    rgba = visible(model, torch.full((1, 12, 2, 2), 0.25))
    assert (
        rgba.tolist()
        == torch.tensor([0.75] * 3 + [1.0]).expand(1, 2, 2, 4).permute(0, 3, 1, 2).tolist()
    )


@pytest.mark.long
def test_a_picture_becomes_a_texture(tmp_path):
    picture = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    picture.paste((0, 0, 255, 0), (20, 0, 40, 20))
    picture.save(tmp_path / "half.png")
    target = load_texture(tmp_path / "half.png", (10, 20))
    assert target.shape == (1, 4, 10, 20)
    assert target[0, :, 5, 2].tolist() == [1, 0, 0, 1]
    assert target[0, :, 5, 17].tolist() == [1, 1, 1, 1]  # white where it was transparent
    square = load_texture(tmp_path / "half.png", 10)  # cut to its middle
    assert square[0, 1, 5, :4].max() < 0.1
    assert square[0, 1, 5, 6:].min() > 0.9
    words = ["--rule", "texture", "--target", str(tmp_path / "half.png")]
    assert train(tmp_path / "run", *words) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["metadata"]["visible"]
    assert read(tmp_path / "run" / "sample.png").shape == (50, 99, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "heart", "--target-size", "24"], "--target-size is for textures"),
        (["--target", "zebra", "--target-padding", "2"], "zebra is drawn without one"),
        (["--rule", "texture", "--target", "no.png"], "of that name: there are circle, ring"),
        (
            ["--target", "zebra", "--target-size", "6", "--size", "16"],
            "at least 8x8 cells, got 6x6",
        ),
        (["--target", "zebra", "--outside", "0.1"], "outside=0.1 is a penalty on alpha"),
        (["--target", "zebra", "--alive", "both"], "nothing lives in the seed"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, capsys, words, said):
    assert main(["train", "--size", "16", *words, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.long
def test_a_texture_can_be_trained_with_another_loss(tmp_path):
    """The rule is one thing, the loss another."""
    words = ["--rule", "texture", "--preset", "tutorial", "--target", "heart", "--size", "16"]
    words += ["--iterations", "2", "--pool-size", "4", "--min-steps", "3", "--max-steps", "6"]
    assert main(["train", *words, "--hidden", "8", "--out", str(tmp_path / "run")]) == 0
    facts = NeuralCA.load(tmp_path / "run").metadata
    assert "visible" not in facts
    assert facts["size"] == 16
    assert (tmp_path / "run" / "regeneration.png").exists()


def test_quality_is_measured_on_both_grids():
    torch.manual_seed(0)
    target = create_texture("zebra", 16)
    model = NeuralCA(12, rule=RULES["texture"])
    seeds = [seed_of(model, 8) * 0, seed_of(model, (16, 24)) * 0]
    first, second = measure_texture(model, seeds, target, (4, 2), runs=1)
    assert (first.steps, second.steps) == (2, 4)
    assert first.losses == tuple(untrained_loss(seed, target) for seed in seeds)  # nothing learned
    assert [tuple(each.shape) for each in first.states] == [(1, 12, 8, 8), (1, 12, 16, 24)]
    with torch.no_grad():
        model.update_net[2].weight.fill_(math.inf)
    (wild,) = measure_texture(model, [seeds[0] + 0.1], target, (3,), runs=1)
    assert wild.exploded == 1
    assert math.isnan(wild.losses[0])


def test_a_target_that_grows_becomes_opaque_for_a_texture():
    target = make_target("heart", 16, None, "cpu", texture=True)
    plain = create_target("heart", 16)
    assert torch.equal(target[:, 3], torch.ones(1, 16, 16))
    assert torch.equal(target[:, :3], plain[:, :3] + 1 - plain[:, 3:])
