"""`fastnca import`, and what an imported model is good for."""

import hashlib
import json

import numpy as np
import pytest
import torch

from fastnca import NeuralCA, import_model
from fastnca.commands.parser import main
from fastnca.exporting.onnx import export_onnx
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.published import find


@pytest.fixture(scope="module")
def lizard(tmp_path_factory):
    """A directory with an imported model, and what the command printed."""
    out = tmp_path_factory.mktemp("models") / "lizard"
    words = ["import", str(find("distill-growing/ex3_lizard.json")), "--out", str(out)]
    assert main([*words, "--license", "CC-BY 4.0, Mordvintsev et al."]) == 0
    return out


def test_the_command_leaves_a_model_that_says_where_it_is_from(lizard, capsys):
    facts = json.loads((lizard / "config.json").read_text())["metadata"]
    assert facts == {
        "size": 64,
        "imported_from": "ex3_lizard.json",
        "imported_format": "Distill 8-bit JSON",
        "imported_sha256": facts["imported_sha256"],
        "layout": "blocks:identity,sobel_x,sobel_y",
        "license": "CC-BY 4.0, Mordvintsev et al.",
        "fill_hidden": True,
    }
    content = find("distill-growing/ex3_lizard.json").read_bytes()
    assert facts["imported_sha256"] == hashlib.sha256(content).hexdigest()
    assert main(["info", str(lizard)]) == 0
    assert "CC-BY 4.0" in capsys.readouterr().out


def test_the_command_says_how_clearly_the_layout_was_chosen(tmp_path, capsys):
    out = tmp_path / "eye"
    file = str(find("distill-growing/ex2_eye.json"))
    assert main(["import", file, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: layout blocks:identity,sobel_x,sobel_y (growing): " in printed
    assert "living cells, values within" in printed
    assert "the next best of 5 others" in printed
    assert f"fastnca grow {out}" in printed
    assert main(["import", file, "--out", str(out)]) == 1
    assert "already holds a model; choose another --out, or --force" in capsys.readouterr().err
    assert main(["import", file, "--out", str(out), "--force"]) == 0


def test_a_wrong_layout_is_refused(tmp_path, capsys):
    file = str(find("distill-growing/ex2_eye.json"))
    out = ["--out", str(tmp_path / "eye")]
    assert main(["import", file, *out, "--layout", "interleaved"]) == 1
    assert "does not live under the layout interleaved" in capsys.readouterr().err
    assert main(["import", file, *out, "--layout", "rows"]) == 1
    assert "layout must be auto, interleaved or blocks" in capsys.readouterr().err
    assert not (tmp_path / "eye").exists()


def test_one_of_several_models_or_all_are_imported(tmp_path, capsys):
    file = str(find("google-adversarial.zip"))
    assert main(["import", file, "--out", str(tmp_path / "a")]) == 1
    assert "holds several models; choose by name or number" in capsys.readouterr().err
    assert main(["import", file, "--out", str(tmp_path / "a"), "--model", "no_tail_model"]) == 0
    assert main(["import", file, "--out", str(tmp_path / "all"), "--all"]) == 0
    assert "3 of 3 models imported" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names == ["no_tail_model", "red_model", "red_model_60perc"]
    one, same = (NeuralCA.load(tmp_path / name) for name in ("a", "all/no_tail_model"))
    assert torch.equal(one.update_net[0].weight, same.update_net[0].weight)
    assert main(["import", file, "--all", "--model", "0"]) == 1
    assert "--all and --model exclude each other" in capsys.readouterr().err


def write_keras(path, weights):
    """Write an HDF5 file as Keras 3 does: kernels are (1, 1, in, out)."""
    h5py = pytest.importorskip("h5py", reason="Keras files need h5py")
    with h5py.File(path, "w") as file:
        for number, name in enumerate(("conv2d", "conv2d_1")):
            group = file.create_group(f"dmodel/layers/{name}/vars")
            weight = weights[f"update_net.{2 * number}.weight"][:, :, 0, 0]
            group["0"] = weight.T[None, None].numpy().astype(np.float32)
            group["1"] = weights[f"update_net.{2 * number}.bias"].numpy()


def write_onnx(path, weights):
    """Write one step as ONNX."""
    pytest.importorskip("onnx", reason="ONNX files need onnx")
    model = NeuralCA()
    model.load_state_dict({**model.state_dict(), **weights})
    path.write_bytes(export_onnx(model))


@pytest.mark.parametrize(("name", "write"), [("a.weights.h5", write_keras), ("a.onnx", write_onnx)])
def test_keras_and_onnx_files_are_certified_too(tmp_path, lizard, name, write):
    weights = NeuralCA.load(lizard).state_dict()
    write(tmp_path / name, weights)
    model = import_model(tmp_path / name)
    assert model.metadata["layout"].startswith("interleaved")
    for entry, tensor in weights.items():
        assert torch.equal(model.state_dict()[entry], tensor), entry


def test_an_import_leaves_torchs_state_alone():
    """Neither random numbers nor the default device and dtype matter, or are touched."""
    path = find("distill-growing/ex2_eye.json")
    expected, before = import_model(path), torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            model = import_model(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert tensor.dtype == torch.float32
    assert [each.requires_grad for each in model.parameters()] == [False, True, True, True, True]


def test_an_imported_model_is_drawn(lizard, tmp_path):
    pictures = [tmp_path / name for name in ("a.png", "b.gif", "c.png")]
    grow = ["grow", str(lizard), "--steps", "40", "--out", *map(str, pictures[:2])]
    assert main(grow) == 0
    heal = ["regenerate", str(lizard), "--grow-steps", "60", "--steps", "20", "--out"]
    assert main([*heal, str(pictures[2])]) == 0
    assert all(picture.stat().st_size > 5000 for picture in pictures)


QUICK = [
    *("--iterations", "2", "--pool-size", "4", "--batch-size", "4"),
    *("--min-steps", "3", "--max-steps", "5", "--save-interval", "0", "--size", "40"),
]


@pytest.mark.long
def test_training_goes_on_from_an_imported_model(lizard, tmp_path, capsys):
    """Its weights, rule and seed are the first ones; the run needs no other option."""
    out = tmp_path / "run"
    words = ["train", "--target", "heart", *QUICK, "--out", str(out), "--init-from", str(lizard)]
    assert main(words) == 0
    assert "16 channels, hidden 128" in capsys.readouterr().out
    first, trained = NeuralCA.load(lizard), NeuralCA.load(out)
    assert trained.metadata["fill_hidden"] is True
    assert trained.metadata["target"] == "heart"
    weights = first.update_net[0].weight, trained.update_net[0].weight
    assert 0 < (weights[0] - weights[1]).abs().max() < 0.02  # two steps of Adam
    assert f'init_from = "{lizard}"' in (out / "run.toml").read_text()
    assert "fill_hidden = true" in (out / "run.toml").read_text()
    assert main([*words, "--resume"]) == 0


@pytest.mark.long
def test_a_run_takes_the_size_of_the_model_it_starts_from(tmp_path, capsys):
    model = NeuralCA(6, 5)
    model.metadata = {"size": [12, 20]}
    model.save(tmp_path / "model")
    words = ["train", *QUICK[:-2], "--out", str(tmp_path / "run"), "--preset", "tutorial"]
    assert main([*words, "--init-from", str(tmp_path / "model")]) == 0
    assert "12x20 cells, 6 channels, hidden 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "match"),
    [
        (("--channels", "12"), "--channels 12 is not what"),
        (("--hidden", "64"), "which is (128,); leave it out"),
        (("--alive", "none"), "--alive none is not what"),
    ],
)
def test_options_that_the_first_model_does_not_have_are_refused(
    lizard, tmp_path, capsys, option, match
):
    words = ["train", *QUICK, *option, "--out", str(tmp_path / "run")]
    assert main([*words, "--init-from", str(lizard)]) == 1
    assert match in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_imported_model_is_reported_against_its_own_picture(lizard, tmp_path):
    page = tmp_path / "lizard.html"
    words = ["report", str(lizard), "--steps", "20", "100", "--runs", "2", "--out", str(page)]
    assert main(words) == 0
    text = page.read_text()
    for shown in ("its own picture after 200 steps", "CC-BY 4.0", "left half", "Stability"):
        assert shown in text
    assert "Pool" not in text


def test_an_imported_texture_is_reported(tmp_path):
    out = tmp_path / "dots"
    file = str(find("google-textures.json"))
    assert main(["import", file, "--model", "dots", "--out", str(out)]) == 0
    assert main(["report", str(out), "--steps", "20", "--runs", "1"]) == 0
    assert "seamless tiles" in (out / "report.html").read_text()
