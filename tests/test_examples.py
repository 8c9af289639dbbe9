"""The scripts of docs/examples: they run, print what they promise and write their pictures."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from tests.published import find

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def run(name, folder, capsys, *arguments):
    """Run a script and return its lines of numbers by their first word."""
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    main([*arguments, "--out", str(folder)])
    rows = (re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines())
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows}


def test_four_digits(tmp_path, capsys):
    errors = run("four_digits", tmp_path / "new", capsys, "--iterations", "2")
    assert errors.pop("digit") == [1, 2, 3, 4]
    assert errors.keys() == {"64 steps", "200 steps", "1000 steps"}
    assert all(len(row) == 4 and min(row) > 0.03 for row in errors.values())
    with Image.open(tmp_path / "new" / "digits.png") as picture:
        assert picture.size == (4 * (28 * 4 + 1) + 1, 4 * (28 * 4 + 1) + 1)


def test_denoise(tmp_path, capsys):
    errors = run("denoise", tmp_path / "new", capsys, "--iterations", "2")
    assert errors.keys() == {"noisy", "box blur", "Neural CA"}
    assert errors["noisy"] == pytest.approx([0.09], rel=0.02)  # the variance of the noise
    assert errors["box blur"][0] < 0.02
    with Image.open(tmp_path / "new" / "denoise.png") as picture:
        assert picture.size == (8 * (32 * 2 + 1) + 1, 4 * (32 * 2 + 1) + 1)


def test_recolour(tmp_path, capsys):
    model = str(find("distill-growing/ex3_lizard.json"))
    errors = run("recolour", tmp_path / "new", capsys, model, "--iterations", "2")
    assert errors.keys() == {"before", "96 steps", "200 steps", "1000 steps"}
    assert errors["before"][0] > 0.01
    with Image.open(tmp_path / "new" / "recolour.png") as picture:
        assert picture.size == (5 * (56 * 3 + 1) + 1, 56 * 3 + 2)


def test_strip(tmp_path, capsys):
    model = str(find("distill-growing/ex3_lizard.json"))
    alive = run("strip", tmp_path / "new", capsys, model)
    grown, damaged, healed = (alive[key][0] for key in ("200 steps", "damaged", "200 steps later"))
    assert damaged < 0.9 * grown
    assert healed == pytest.approx(grown, abs=0.01)
    with Image.open(tmp_path / "new" / "strip.png") as picture:
        assert picture.size == (1000, 230)


@pytest.mark.full
def test_four_digits_grow_and_stay(tmp_path, capsys):
    errors = run("four_digits", tmp_path, capsys)
    assert max(errors["64 steps"] + errors["200 steps"]) < 0.004  # an empty grid has 0.06 or more
    assert max(errors["1000 steps"]) < 0.01


@pytest.mark.full
def test_denoise_beats_the_blur(tmp_path, capsys):
    errors = run("denoise", tmp_path, capsys)
    assert errors["Neural CA"][0] < errors["box blur"][0] / 2


@pytest.mark.full
def test_recolour_changes_the_colour_and_nothing_else(tmp_path, capsys):
    model = str(find("distill-growing/ex3_lizard.json"))
    errors = run("recolour", tmp_path, capsys, model)
    assert max(errors["200 steps"] + errors["1000 steps"]) < errors["before"][0] / 10
