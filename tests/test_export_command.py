"""`fastnca export`: the files it writes, what it says, what it refuses."""

import json

import pytest
import torch

from fastnca import NeuralCA, import_model
from fastnca.commands.parser import main
from fastnca.rule import RULES, Rule
from tests.browser import read_facts
from tests.helpers import excite, load_grown


@pytest.fixture
def run(tmp_path):
    """A saved model whose grid is no square."""
    model = excite(NeuralCA(6, 5))
    model.metadata = {"size": [12, 9]}
    model.save(tmp_path / "newt")
    return tmp_path / "newt"


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A directory with the package's own grown model."""
    folder = tmp_path_factory.mktemp("models") / "grown"
    model = NeuralCA(16, 48)
    model.load_state_dict(load_grown().weights)
    model.metadata = {"size": 32}
    model.save(folder)
    return folder


def test_all_outputs_in_one_call(grown, tmp_path, capsys):
    pytest.importorskip("onnx", reason="ONNX files need onnx")
    files = [tmp_path / name for name in ("page.html", "model.json", "step.onnx")]
    options = ["--html", str(files[0]), "--distill", str(files[1]), "--onnx", str(files[2])]
    assert main(["export", str(grown), *options]) == 0
    said = capsys.readouterr().out
    assert "after 96 steps from the seed the model in 8 bits has" in said
    for file in files:
        assert f"{file}: {file.stat().st_size:,} bytes" in said
    assert "<title>grown</title>" in files[0].read_text()
    assert [layer["in_ch"] for layer in json.loads(files[1].read_text())] == [48, 48]


def test_what_is_exported_is_imported(grown, tmp_path):
    """The 8-bit JSON lives under the article's layout, and is off by its rounding only."""
    file = tmp_path / "model.json"
    assert main(["export", str(grown), "--distill", str(file)]) == 0
    model, read = NeuralCA.load(grown), import_model(file)
    assert read.metadata["layout"] == "blocks:identity,sobel_x,sobel_y"
    scale = json.loads(file.read_text())[0]["weight_scale"]
    error = (model.update_net[0].weight - read.update_net[0].weight).abs().max()
    assert 0 < error <= scale / 500


def test_export_writes_the_page(run, tmp_path, capsys):
    out = tmp_path / "newt.html"
    assert main(["export", str(run), "--html", str(out), "--size", "16x20"]) == 0
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size:,} bytes\n"
    html = out.read_text()
    assert read_facts(html)["size"] == [16, 20]
    assert "<title>newt</title>" in html
    assert main(["export", str(run), "--html", str(out), "--title", "A & B"]) == 0
    assert "<title>A &amp; B</title>" in out.read_text()
    assert read_facts(out.read_text())["size"] == [12, 9]


def test_export_says_what_is_missing(run, tmp_path, capsys):
    assert main(["export", str(run)]) == 1
    assert capsys.readouterr().err == (
        "fastnca: nothing to write: give --html FILE or --distill FILE or --onnx FILE\n"
    )
    assert main(["export", str(run), "--html", str(tmp_path / "no" / "a.html")]) == 1
    assert "no file can be written there" in capsys.readouterr().err
    NeuralCA(rule=Rule(activation="tanh")).save(tmp_path / "tanh")
    assert main(["export", str(tmp_path / "tanh"), "--html", str(tmp_path / "a.html")]) == 1
    assert "activation='tanh': the page computes relu" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_an_untrained_model_is_written_with_a_sentence(tmp_path, capsys):
    NeuralCA().save(tmp_path / "new")
    assert main(["export", str(tmp_path / "new"), "--html", str(tmp_path / "a.html")]) == 0
    assert "nothing can grow" in capsys.readouterr().err
    assert (tmp_path / "a.html").exists()


def test_a_rule_that_the_format_cannot_say_is_refused_by_name(tmp_path, capsys):
    torch.manual_seed(0)
    NeuralCA(12, rule=RULES["texture"]).save(tmp_path / "model")
    file = tmp_path / "model.json"
    assert main(["export", str(tmp_path / "model"), "--distill", str(file)]) == 1
    assert "filters=" in capsys.readouterr().err
    assert not file.exists()
