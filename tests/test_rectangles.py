"""Grids that are no square: the height comes first, everywhere."""

import io
import json
import tomllib
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastnca import (
    NeuralCA,
    create_seed,
    create_target,
    create_target_circle,
    load_target,
    visualize_growth,
    visualize_regeneration,
)
from fastnca.commands.config_file import expand_config, write_config
from fastnca.commands.parser import _build_parser, main
from fastnca.commands.show import _damage, _pattern
from fastnca.commands.target import make_target
from fastnca.pictures import encode_mosaic
from fastnca.pictures.render import seed_of
from fastnca.report import measure_recovery, measure_stability
from fastnca.states import disc, height_and_width, middle_square, rectangle, size_of
from fastnca.storage.bundle import read_size
from fastnca.targets import TARGETS
from tests.helpers import excite

LYING, STANDING = (5, 9), (9, 5)
BOTH = pytest.mark.parametrize("size", [LYING, STANDING])


@pytest.fixture
def model_dir(tmp_path):
    """A model that says that it was trained on 5 rows of 9 cells."""
    return save_model(tmp_path / "model", [5, 9])


def save_model(directory, size):
    """Save a model that does something, with a size in its config.json."""
    model = excite(NeuralCA(8, 6))
    model.metadata = {"size": size}
    model.save(directory)
    return directory


@pytest.mark.parametrize(
    ("size", "sides"), [(7, (7, 7)), (LYING, LYING), ([9, 5], STANDING), (np.int64(3), (3, 3))]
)
def test_a_size_is_one_number_or_a_pair(size, sides):
    assert height_and_width(size) == sides
    assert height_and_width(torch.zeros(2, 4, *sides).shape[2:]) == sides


@pytest.mark.parametrize("make", [height_and_width, create_seed, create_target_circle])
@pytest.mark.parametrize("size", [5.5, "5x9", None, (5,), (5, 9, 3), (5, 9.5), ("5", "9")])
def test_what_is_no_size_is_refused(make, size):
    with pytest.raises(TypeError, match=r"size must be an int or a pair \(height, width\), got"):
        make(size)


@pytest.mark.parametrize("make", [create_seed, create_target_circle, middle_square])
@pytest.mark.parametrize("size", [0, -1, (0, 5), (5, 0), (5, -9)])
def test_a_side_without_a_cell_is_refused(make, size):
    with pytest.raises(ValueError, match="size >= 1, in height and in width, got"):
        make(size)


def test_the_size_of_a_grid_is_one_number_where_it_is_square():
    assert size_of(torch.zeros(1, 4, 5, 5)) == 5
    assert size_of(torch.zeros(1, 4, 5, 9)) == LYING


@BOTH
def test_the_seed_is_in_the_middle(size):
    seed = create_seed(size, 6, batch=2, fill_hidden=True)
    assert seed.shape == (2, 6, *size)
    assert seed.sum() == 6
    assert (seed[:, 3:, size[0] // 2, size[1] // 2] == 1).all()
    model = NeuralCA(6, 4).double()
    model.metadata = {"fill_hidden": True}
    assert torch.equal(seed_of(model, size), seed[:1].double())


@pytest.mark.parametrize("name", TARGETS)
def test_drawn_targets_keep_their_shape(name):
    square = create_target(name, 24)
    for size, inside in (((24, 40), np.s_[:, 8:32]), ((40, 24), np.s_[8:32, :])):
        target = create_target(name, size)
        assert target.shape == (1, 4, *size)
        torch.testing.assert_close(target[(..., *inside)], square)
        torch.testing.assert_close(target.sum(), square.sum())


@BOTH
def test_the_circle_fits_the_shorter_side(size):
    alpha = create_target_circle(size)[0, 3]
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    distance = (y - size[0] // 2) ** 2 + (x - size[1] // 2) ** 2
    assert torch.equal(alpha == 1, distance < (0.35 * 5) ** 2)


def test_a_shape_is_centred_where_a_cell_is_not():
    alpha = create_target("ring", (24, 31))[0, 3]
    assert torch.equal(alpha, alpha.flip(1))
    assert torch.equal(alpha, alpha.flip(0))


@pytest.mark.parametrize(
    ("picture", "box"),
    [
        ((60, 20), (9, 5, 30, 67)),  # 62 columns fit, and a third as many rows
        ((20, 60), (5, 31, 35, 41)),  # 30 rows fit
        ((30, 30), (5, 21, 35, 51)),
        ((400, 1), (19, 5, 20, 67)),
    ],
)
def test_a_picture_is_fitted_with_its_aspect_kept(tmp_path, picture, box):
    Image.new("RGB", picture, "red").save(tmp_path / "p.png")
    target = load_target(tmp_path / "p.png", (40, 72))
    assert target.shape == (1, 4, 40, 72)
    assert torch.equal(target[0, 3] == 1, rectangle(40, 72, box))


def test_a_picture_of_40x72_fills_a_grid_of_40x72(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)
    Image.fromarray(colors).save(tmp_path / "p.png")
    target = make_target(str(tmp_path / "p.png"), (40, 72), 0, "cpu")
    expected = torch.from_numpy(colors).permute(2, 0, 1).float() / 255
    assert torch.equal(target[0, :3], expected)


def test_padding_that_leaves_no_cell_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    load_target(tmp_path / "p.png", LYING, 2)
    with pytest.raises(ValueError, match="leaves no cell of a 5x9 grid"):
        load_target(tmp_path / "p.png", LYING, 3)


def test_the_damage_in_the_middle_has_the_same_share_of_each_side():
    assert middle_square(64) == (20, 20, 44, 44)
    assert middle_square((64, 128)) == (20, 40, 44, 88)
    assert middle_square((128, 1)) == (40, 0, 88, 1)


def test_a_disc_is_round_and_as_large_as_on_the_shorter_side():
    inside = disc(21, 41, torch.tensor([[0.0, 0.5]]), torch.tensor([0.55]))[0]
    y, x = torch.meshgrid(torch.arange(21), torch.arange(41), indexing="ij")
    assert torch.equal(inside, (y - 10) ** 2 + (x - 30) ** 2 < 5.5**2)


@BOTH
def test_figures_show_rectangles(size):
    model = excite(NeuralCA(8, 8))
    figures = (
        visualize_growth(model, size, steps=3),
        visualize_regeneration(model, size, grow_steps=3, regen_steps=2),
    )
    for figure in figures:
        shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]
        assert len(shown) >= 6
        assert {picture.shape for picture in shown} == {(*size, 3)}
    damaged = np.asarray(figures[1].axes[1].images[0].get_array())
    assert (damaged[rectangle(*size, middle_square(size)).numpy()] == 255).all()


@BOTH
def test_a_mosaic_of_rectangles(size):
    states = torch.zeros(3, 4, *size)
    with Image.open(io.BytesIO(encode_mosaic(states, columns=3, scale=2))) as picture:
        assert picture.size == (3 * (2 * size[1] + 1) + 1, 2 * size[0] + 2)


@BOTH
def test_a_report_measures_rectangles(size):
    model = excite(NeuralCA(8, 6))
    seed, target = create_seed(size, 8), create_target_circle(size)
    (end,) = measure_stability(model, seed, target, (4,), runs=2)
    assert end.steps == 4
    damaged = {each.name: each.states[1] for each in measure_recovery(model, seed, target, steps=3)}
    assert list(damaged) == [
        *("rectangle in the middle", "left half", "lower half", "disc at the upper right")
    ]
    height, width = size
    assert not damaged["left half"][..., : width // 2].any()
    assert not damaged["lower half"][..., height // 2 :, :].any()
    assert damaged["left half"].shape == damaged["lower half"].shape == (8, *size)
    assert damaged["left half"][..., width // 2 :].any()
    assert damaged["lower half"][..., : height // 2, :].any()


@pytest.mark.parametrize(
    ("words", "size"), [("64", 64), ("40x72", (40, 72)), ("40x40", 40), ("1x65536", (1, 65536))]
)
@pytest.mark.parametrize("command", [["train"], ["grow", "m"], ["regenerate", "m"], ["life"]])
def test_the_command_line_takes_height_and_width(command, words, size):
    assert _build_parser().parse_args([*command, "--size", words]).size == size


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("40x", "must be cells: 64, or HEIGHTxWIDTH such as 40x72, got '40x'"),
        ("x72", "must be cells: 64, or HEIGHTxWIDTH such as 40x72, got 'x72'"),
        ("4x5x6", "must be cells: 64, or HEIGHTxWIDTH such as 40x72, got '4x5x6'"),
        ("", "must be cells: 64, or HEIGHTxWIDTH such as 40x72, got ''"),
        ("40xbig", "must be a whole number, got 'big'"),
        ("40,72", "must be a whole number, got '40,72'"),
        ("0x5", "must be at least 1, got 0"),
        ("5x65537", "must be at most 65536, got 65537"),
    ],
)
def test_a_wrong_size_is_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["life", f"--size={words}"])
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"fastnca life: error: argument --size: {sentence}"


@pytest.mark.parametrize(("words", "kept"), [("64", 64), ("40x72", [40, 72]), ("9x5", [9, 5])])
def test_a_size_survives_run_toml(tmp_path, words, kept):
    path = tmp_path / "run.toml"
    wanted = _build_parser().parse_args(["train", "--size", words]).size
    path.write_text(write_config({"size": wanted}))
    assert tomllib.loads(path.read_text()) == {"size": kept}
    train = _build_parser()._subparsers._group_actions[0].choices["train"]
    words = expand_config(train, ["--config", str(path)])
    assert train.parse_args(words).size == wanted


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[5]", "size must be one value; a rectangle is [height, width]"),
        ("[5, 9, 3]", "size must be one value; a rectangle is [height, width]"),
        ('"40x72"', "size must be a number, got '40x72'; a rectangle is [height, width]"),
    ],
)
def test_a_wrong_size_in_run_toml_is_named(tmp_path, content, sentence, capsys):
    path = tmp_path / "run.toml"
    path.write_text(f"size = {content}\n")
    assert main(["train", "--config", str(path)]) == 1
    assert capsys.readouterr().err == f"fastnca: {path}: {sentence}\n"


@pytest.mark.parametrize("sides", ["[5.5, 9]", "[0, 9]", "[true, 9]", "[5, 65537]", "[[5], 9]"])
def test_a_wrong_side_in_run_toml_is_refused(tmp_path, sides, capsys):
    path = tmp_path / "run.toml"
    path.write_text(f"size = {sides}\n")
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(path)])
    assert caught.value.code == 2
    assert "argument --size: must be " in capsys.readouterr().err


@pytest.mark.parametrize(("size", "sides"), [(5, (5, 5)), ([5, 9], LYING), ((9, 5), STANDING)])
def test_a_size_in_a_file_is_one_number_or_two(size, sides):
    assert read_size({"size": size}) == sides


WRONG = [None, "5x9", 5.5, 0, True, 65537, [], [5], [5, 9, 3], [5, 0], [True, 9], ["5", "9"], [[5]]]


@pytest.mark.parametrize("size", WRONG, ids=map(str, WRONG))
def test_anything_else_in_a_file_is_no_size(size):
    with pytest.raises(ValueError, match="field 'size' must be an integer from 1 to 65536, or two"):
        read_size({"size": size})


def test_config_json_keeps_a_rectangle(tmp_path):
    for name, size in (("list", [5, 9]), ("pair", LYING)):
        save_model(tmp_path / name, size)
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert written["metadata"]["size"] == [5, 9]
        assert NeuralCA.load(tmp_path / name).metadata["size"] == [5, 9]


@pytest.mark.parametrize(("flags", "pixels"), [([], (36, 20)), (["--size", "9x5"], (20, 36))])
@pytest.mark.parametrize("command", ["grow", "regenerate"])
def test_a_model_is_drawn_as_it_was_trained_or_as_asked_for(
    model_dir, tmp_path, command, flags, pixels
):
    files = [tmp_path / "a.png", tmp_path / "b.gif"]
    out = ["--out", *map(str, files)]
    assert main([command, str(model_dir), "--steps", "3", *flags, *out]) == 0
    with Image.open(files[1]) as gif:
        assert gif.size == pixels
    with Image.open(files[0]) as picture:
        assert picture.width > 400


def test_damage_on_a_rectangle():
    none = {"box": None, "center": None, "radius": None}
    middle = _damage(Namespace(**none, damage="rectangle"), (64, 128))
    assert torch.equal(middle, rectangle(64, 128, (20, 40, 44, 88)))
    options = none | {"center": (4.0, 30.0), "radius": 3.5}
    inside = _damage(Namespace(**options, damage="disc"), (16, 40))
    y, x = torch.meshgrid(torch.arange(16), torch.arange(40), indexing="ij")
    assert torch.equal(inside, (y - 4) ** 2 + (x - 30) ** 2 < 3.5**2)
    usual = _damage(Namespace(**none, damage="disc"), (40, 16))
    assert torch.equal(usual, ((y - 8) ** 2 + (x - 20) ** 2 < 3.2**2).T)
    for options in ({"box": (0, 12, 5, 14)}, {"center": (99.0, 3.0)}):
        damage = "rectangle" if "box" in options else "disc"
        with pytest.raises(ValueError, match="covers no cell of a 5x9 grid"):
            _damage(Namespace(**none | options, damage=damage), LYING)


def test_life_on_a_rectangle(tmp_path):
    file = tmp_path / "life.gif"
    flags = ["--pattern", "acorn", "--size", "3x9", "--steps", "2", "--out", str(file)]
    assert main(["life", *flags]) == 0
    with Image.open(file) as gif:
        assert gif.size == (36, 12)
    assert _pattern("acorn", (3, 9))[:, 1:8].sum() == 7
    assert _pattern("glider", (4, 20))[1:4, 5:8].sum() == 5
    with pytest.raises(ValueError, match="the acorn needs a grid of at least 3x7, got 9x3"):
        _pattern("acorn", (9, 3))


def test_info_says_the_size(model_dir, tmp_path, capsys):
    assert main(["info", str(model_dir)]) == 0
    said = capsys.readouterr().out
    assert "  size             [5, 9]\n" in said
    assert "a grid of 5x9 cells" in said
    assert main(["info", str(save_model(tmp_path / "huge", [5, 9999]))]) == 0
    assert "a grid of 64x64 cells" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["5x9", [5], [5, 0], 0])
def test_a_model_of_no_size_is_named(tmp_path, size, capsys):
    model = save_model(tmp_path / "model", size)
    fault = "field 'size' must be an integer from 1 to 65536, or two of them as [height, width]"
    for command in ("grow", "regenerate"):
        assert main([command, str(model)]) == 1
        said = capsys.readouterr().err
        assert said == f"fastnca: {model}: {fault}, got {size!r}; say how large with --size\n"
    out = ["--out", str(tmp_path / "a.gif")]
    assert main(["grow", str(model), "--size", "5x9", "--steps", "1", *out]) == 0
    assert main(["info", str(model)]) == 0
    said = capsys.readouterr().out
    assert f"  {fault}, got {size!r}\n" in said
    assert "a grid of 64x64 cells" in said


def test_a_report_on_a_rectangle(model_dir, monkeypatch, capsys):
    options = {"target": "circle", "size": LYING, "update_rate": 0.5}
    (model_dir / "run.toml").write_text(write_config(options))
    checkpoint = model_dir / "ckpt-00000001"
    checkpoint.mkdir()
    save_file({"pool": torch.rand(4, 8, *LYING)}, checkpoint / "pool-00000-of-00001.safetensors")
    config = {"pool_size": 4, "use_pool": True, "half_pool": False}
    header = {"config": config, "iteration": 1, "processes": 1, "dtype": "float32"}
    header |= {"num_channels": 8, "size": [5, 9]}
    monkeypatch.setattr(
        "fastnca.commands.report.newest_intact", lambda run: (checkpoint, header, {})
    )
    assert main(["report", str(model_dir), "--steps", "3", "--runs", "1"]) == 0
    page = (model_dir / "report.html").read_text()
    for words in ("circle, 5x9 cells", "rectangle in the middle", "4 of 4 states after 1"):
        assert words in page
    (model_dir / "run.toml").write_text(write_config(options | {"size": [5, 9, 3]}))
    assert main(["report", str(model_dir)]) == 1
    assert "run.toml: field 'size' must be an integer from 1" in capsys.readouterr().err
