"""The bench of textures: what it compares, and that the page shows what was measured."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.quality import textures
from fastnca.commands.parser import main
from fastnca.losses import TextureLoss
from fastnca.textures import TEXTURES, create_texture

PAGE = Path(__file__).parents[2] / "docs" / "textures.md"


def test_a_run_is_compared_with_other_samples_of_its_material(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(textures, "SIZES", (16, 24))
    monkeypatch.setattr(textures, "STEPS", (2, 4))
    run = tmp_path / "run"
    words = ["--iterations", "2", "--pool-size", "4", "--min-steps", "3", "--max-steps", "6"]
    words += ["--size", "16", "--target-size", "24", "--hidden", "8", "--out", str(run)]
    assert main(["train", "--target", "zebra", *words]) == 0
    out = ["--csv", str(tmp_path / "found.csv"), "--picture", str(tmp_path / "found.png")]
    textures.main([str(run), *out])
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size == (34, 67)
    assert "zebra: trained in" in capsys.readouterr().out
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["size"]), int(row["steps"])) for row in rows] == [
        (size, steps) for size in (16, 24) for steps in (2, 4)
    ]
    loss = TextureLoss()
    target = loss.prepare(create_texture("zebra", 24))
    others = [create_texture("zebra", 16, seed=number)[:, :3] - 0.5 for number in (1, 2, 3, 4, 5)]
    values = [float(loss([other], target)) for other in others]
    assert float(rows[0]["samples"]) == pytest.approx(sum(values) / 5, rel=1e-4)
    assert float(rows[0]["lowest"]) == pytest.approx(min(values), rel=1e-4)
    untrained = float(loss([torch.zeros(1, 12, 16, 16)], target))
    assert float(rows[0]["untrained"]) == pytest.approx(untrained, rel=1e-4)
    ratio = float(rows[3]["trained"]) / float(rows[3]["samples"])
    assert float(rows[3]["ratio"]) == pytest.approx(ratio, rel=1e-3)


def test_the_page_shows_what_was_measured():
    assert textures.markdown(textures.RESULTS) in PAGE.read_text()


def test_trained_textures_keep_their_bounds():
    rows = textures.read_csv(textures.RESULTS, textures.Row)
    assert {row.texture for row in rows} == set(TEXTURES)
    samples = {row.texture: row.samples for row in rows if row.size == 96}
    for row in rows:
        assert row.trained < row.untrained / 4
        assert row.trained < 2 * samples[row.texture]
        assert not row.commit.endswith("+")
