"""Rules in files: models, checkpoints, pictures; and files of the first format."""

import json

import pytest
import torch

from fastnca import NeuralCA, Rule, reference
from fastnca.commands.parser import main
from fastnca.storage import FileFormatError
from fastnca.storage.bundle import digest_header
from fastnca.training import PoolTrainer, TrainConfig
from tests.rule_cases import CASES
from tests.runs import SMALL

TEXTURE = Rule(
    filters=("identity", "sobel_x", "sobel_y", "laplacian"),
    padding="circular",
    alive="none",
    final_bias=False,
)
VISIBLE = [case for case in CASES if case.channels - case.rule.inputs >= 4]


def make_model(case):
    model = NeuralCA(case.channels, rule=case.rule).double()
    model.load_state_dict(case.weights())
    return model


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loaded_model_gives_the_same_bits(tmp_path, case):
    model = make_model(case)
    model.save(tmp_path)
    loaded = NeuralCA.load(tmp_path)
    assert loaded.rule == model.rule
    assert loaded.hidden_dim == model.hidden_dim
    for grid in case.grids()[:2]:  # one size, both modes
        state = case.state(grid)
        for each in (model, loaded):
            each.train(grid.training)
        ends = [each.run_steps(state, grid.steps, seed=case.number) for each in (model, loaded)]
        assert torch.equal(*ends)
        assert torch.equal(model.eval()(state), loaded.eval()(state))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("case", VISIBLE[:: len(VISIBLE) // 12], ids=lambda case: case.name)
def test_grow_draws_the_same_picture_of_the_file_and_of_the_model(tmp_path, case, capsys):
    model = make_model(case).float()
    model.metadata = {"size": 8}
    pictures = []
    for name in ("first", "again"):
        model.save(tmp_path / name)
        out = tmp_path / f"{name}.png"
        assert main(["grow", str(tmp_path / name), "--steps", "6", "--out", str(out)]) == 0
        pictures.append(out.read_bytes())
        model = NeuralCA.load(tmp_path / name)
    assert pictures[0] == pictures[1]


def test_config_json_holds_every_field(tmp_path):
    NeuralCA(12, 96, rule=TEXTURE).save(tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    assert header["format_version"] == 2
    assert Rule.from_dict(header["rule"]) == TEXTURE.with_hidden(96)
    assert set(header["rule"]) == set(Rule().to_dict())


def test_files_of_the_first_format_are_the_tutorials_rule(tmp_path):
    model = NeuralCA(16, 24)
    model.save(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    del header["rule"]
    header |= {"format_version": 1, "hidden_dim": 24}
    path.write_text(json.dumps({**header, "sha256": digest_header(header)}))
    loaded = NeuralCA.load(tmp_path)
    assert loaded.rule == Rule(hidden=(24,))
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_a_rule_that_does_not_fit_its_channels_is_refused(tmp_path):
    NeuralCA(16, 8).save(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    header["rule"]["inputs"] = 14
    path.write_text(json.dumps({**header, "sha256": digest_header(header)}))
    with pytest.raises(FileFormatError, match="num_channels must be at least 18"):
        NeuralCA.load(tmp_path)


@pytest.mark.parametrize(
    "rule",
    [TEXTURE, Rule(learn_filters=True), Rule(hidden=(8, 6), activation="tanh"), Rule(inputs=2)],
    ids=str,
)
def test_a_run_resumes_with_its_rule_and_no_other(tmp_path, rule):
    def make(rule):
        torch.manual_seed(0)
        from fastnca import create_target_circle

        config = TrainConfig(**{**SMALL, "seed": 3})
        return PoolTrainer(NeuralCA(16, rule=rule), create_target_circle(12), config)

    whole, first, second = make(rule), make(rule), make(rule)
    first.step()
    first.save(tmp_path)
    second.resume(tmp_path)
    for trainer in (whole, second):
        while trainer.iteration < 3:
            trainer.step()
    assert whole.losses == second.losses
    (field, *_) = (name for name in rule.changed if name != "hidden")
    with pytest.raises(ValueError, match=f"the saved run has {field} "):
        make(Rule(hidden=rule.hidden)).resume(tmp_path)


def test_training_learns_the_filters():
    torch.manual_seed(0)
    from fastnca import create_target_circle

    model = NeuralCA(16, 8, rule=Rule(learn_filters=True))
    before = model.perception.filters.detach().clone()
    config = TrainConfig(**{**SMALL, "seed": 3, "iterations": 3})
    PoolTrainer(model, create_target_circle(12), config).fit(progress=False)
    assert not torch.equal(model.perception.filters, before)


def test_the_reference_takes_the_same_rule():
    model = NeuralCA(12, 96, rule=TEXTURE)
    other = reference.NeuralCA(12, 96, rule=TEXTURE)
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.rule == model.rule == TEXTURE.with_hidden(96)


def test_info_prints_rule_and_backend(tmp_path, capsys):
    NeuralCA(12, 96, rule=TEXTURE).save(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "12 channels, 5,856 weights, torch.float32" in said
    assert "padding          circular   *" in said
    assert "computes it" in said
    assert "triton does not: " in said
    NeuralCA(12, 96, rule=Rule(hidden=(96,), clamp=(-1, 1))).save(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    assert "triton does not: clamp=(-1.0, 1.0)" in capsys.readouterr().out


@pytest.mark.long
def test_a_run_writes_its_rule_and_trains_the_same_again(tmp_path, capsys):
    options = [
        *("train", "--iterations", "2", "--size", "12", "--pool-size", "8", "--seed", "1"),
        *("--channels", "8", "--hidden", "12", "10", "--rule", "texture", "--padding", "reflect"),
        *("--filters", "identity", "0,0.5,0,0.5,-2,0.5,0,0.5,0", "--clamp", "-3", "3"),
        *("--activation", "gelu", "--step-size", "0.5", "--learn-filters", "--final-bias"),
        *("--inputs", "1", "--alive", "before", "--alive-threshold", "0.2", "--preset", "quick"),
    ]
    assert main([*options, "--out", str(tmp_path / "a")]) in (0, 3)
    again = ["train", "--config", str(tmp_path / "a" / "run.toml"), "--out", str(tmp_path / "b")]
    assert main(again) in (0, 3)
    models = [NeuralCA.load(tmp_path / name) for name in "ab"]
    assert models[0].rule == models[1].rule
    assert models[0].rule == Rule(
        filters=("identity", [[0, 0.5, 0], [0.5, -2, 0.5], [0, 0.5, 0]]),
        learn_filters=True,
        padding="reflect",
        alive="before",
        alive_threshold=0.2,
        hidden=(12, 10),
        activation="gelu",
        inputs=1,
        clamp=(-3, 3),
        step_size=0.5,
    )
    weights = [model.state_dict() for model in models]
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))


@pytest.mark.long
def test_a_run_of_before_there_were_rules_is_read(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text('hidden = 6\npadding = 3\nsize = 12\ntarget = "circle"\niterations = 1\n')
    out = str(tmp_path / "r")
    assert main(["train", "--config", str(config), "--out", out]) == 1
    assert "--target-padding is for picture files" in capsys.readouterr().err
    config.write_text("hidden = 6\nsize = 12\niterations = 1\npool_size = 8\n")
    assert main(["train", "--config", str(config), "--out", out]) in (0, 3)
    assert NeuralCA.load(out).rule == Rule(hidden=(6,))
