"""What is asked of the default recipe: the judgement, and the time to it."""

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from bench.quality import recipes
from bench.quality import time_to_quality as quality
from bench.quality.judge import BOUNDS, EMPTY_CIRCLE, MASK_SEED, ROLLOUTS, Judgement, judge
from bench.quality.table import time_to_quality
from bench.results import read_if_there, write_csv
from fastnca import NeuralCA, create_seed, create_target_circle, get_visible_state
from fastnca.commands.parser import main
from fastnca.testing.tutorial import NeuralCA as TutorialCA
from fastnca.training import TrainConfig

SMALL = {"pool_size": 6, "batch_size": 3, "min_steps": 3, "max_steps": 6, "seed": 1}


def judgement(**changes):
    good = {"empty": 0.2, "scraps": 0.0, "dead": 0.0}
    good |= {name: 0.99 * share * 0.2 for name, share in BOUNDS.items()}
    return Judgement(**{**good, **changes})


def test_bounds_are_those_of_the_circle():
    assert float(create_target_circle().square().mean()) == pytest.approx(EMPTY_CIRCLE, rel=1e-6)
    assert BOUNDS["grown_480"] * EMPTY_CIRCLE == pytest.approx(0.01)


def test_each_bound_can_break():
    assert all(judgement().holds().values())
    for name, share in BOUNDS.items():
        broken = judgement(**{name: 1.01 * share * 0.2}).holds()
        assert [key for key, holds in broken.items() if not holds] == [name]
    assert not judgement(scraps=0.25).holds()["scraps"]
    assert not judgement(healed=math.nan).holds()["healed"]


@pytest.mark.long
def test_a_judgement_is_what_rollouts_of_the_reference_give():
    torch.manual_seed(0)
    model = NeuralCA(6, 8, backend="reference").double().eval()
    torch.nn.init.normal_(model.update_net[2].weight, 0, 0.05)
    target = create_target_circle(12).double()
    seed = create_seed(12, 6, dtype=torch.float64)
    found = judge(model, seed, target)
    assert not model.training
    model.train()

    def loss(state):
        wanted = target.expand(ROLLOUTS, -1, -1, -1)
        return float(F.mse_loss(get_visible_state(state), wanted))

    with torch.no_grad():
        state = seed.repeat(ROLLOUTS, 1, 1, 1)
        grown = {
            steps: model.run_steps(state, steps, 0.5, seed=MASK_SEED) for steps in (96, 192, 480)
        }
        damaged = grown[192].clone()
        damaged[:, :, 3:8, 3:8] = 0
        healed = model.run_steps(damaged, 200, 0.5, seed=MASK_SEED, first_step=192)
    for steps, state in grown.items():
        assert getattr(found, f"grown_{steps}") == pytest.approx(loss(state), rel=1e-6)
    assert found.healed == pytest.approx(loss(healed), rel=1e-6)
    assert found.empty == pytest.approx(float(target.square().mean()))


@pytest.mark.parametrize(("column", "count"), [(6, 0), (13, 0), (14, 1)])
def test_scraps_are_living_cells_far_from_the_target(column, count, monkeypatch):
    target = torch.zeros(1, 4, 16, 16)
    target[:, :, 4:12, 4:12] = 1.0
    model = NeuralCA(6, 8)
    state = create_seed(16, 6)
    state[:, :4, 4:12, 4:12] = 1.0
    state[:, 3, 8, column] = 0.2
    monkeypatch.setattr(NeuralCA, "run_steps", lambda _self, state, *_, **__: state)
    assert judge(model, state, target).scraps == count


@pytest.mark.long
def test_the_study_trains_as_the_command_does(tmp_path, monkeypatch):
    options = {**SMALL, "iterations": 12, "damage": 1, "damage_start": 0, "seed": 3}
    options["learning_rate"] = 1e-3  # so that the model stays finite
    config = TrainConfig.preset("quick", **options)
    found, _ = quality.train(create_target_circle(12), 3, config, tmp_path / "kept")
    kept = NeuralCA.load(tmp_path / "kept")
    assert kept.metadata == {"size": 12, "fill_hidden": True}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    monkeypatch.setattr(
        "fastnca.commands.train.draw_result", lambda *_: []
    )  # pictures take longest
    assert main(["train", "--size", "12", *flags, "--out", str(tmp_path / "r")]) == 0
    saved = NeuralCA.load(tmp_path / "r")
    seed = create_seed(12, 16, fill_hidden=True)
    torch.testing.assert_close(saved.state_dict(), kept.state_dict(), rtol=0, atol=0)
    theirs = judge(saved, seed, create_target_circle(12))
    assert {name: found[name] for name in ("grown_96", "healed", "scraps")} == {
        name: getattr(theirs, name) for name in ("grown_96", "healed", "scraps")
    }


def test_the_time_to_quality_is_the_first_look_at_which_all_bounds_hold(monkeypatch):
    looks = []

    def stand_in(model, *_):
        looks.append(model)
        return judgement(scraps=float(len(looks) < 2))

    monkeypatch.setattr(quality, "judge", stand_in)
    monkeypatch.setattr(quality, "EVERY", 2)
    config = TrainConfig.preset(
        "quick", **{**SMALL, "batch_size": 4, "iterations": 12, "repairs": 0}
    )
    facts, steps = quality.train(create_target_circle(12), 3, config)
    assert len(looks) == 2 + 1  # after 6 and 8 iterations, and at the end
    assert facts["reached"] == 8
    assert 0 < facts["reached_seconds"] < facts["seconds"]
    assert 8 * config.ramp_from * config.min_steps <= steps < 8 * config.max_steps


def test_the_tutorials_class_is_timed_with_its_gradient():
    model = TutorialCA(6, 8)
    seconds = quality.seconds_per_step(model, torch.rand(2, 6, 8, 8), create_target_circle(8))
    assert 0 < seconds < 10
    assert model.update_net[2].weight.grad is not None


def test_seeds_are_read_as_ranges():
    assert list(quality.read_seeds("0,3,5-7")) == [0, 3, 5, 6, 7]
    with pytest.raises(ValueError, match="invalid literal"):
        list(quality.read_seeds("a"))


def example(**changes):
    values = {field.name: field.type for field in fields(quality.Result)}
    facts = {name: {str: "x", int: 7, float: 0.5}[kind] for name, kind in values.items()}
    return quality.Result(**{**facts, **vars(judgement()), **changes})


def test_results_round_trip(tmp_path):
    path = tmp_path / "quality.csv"
    assert read_if_there(path, quality.Result) == []
    write_csv(path, [example()], quality.Result)
    (found,) = read_if_there(path, quality.Result)
    for field in fields(quality.Result):
        value = getattr(example(), field.name)
        assert getattr(found, field.name) == (
            pytest.approx(value, rel=1e-5) if field.type is float else value
        )


def test_the_table_says_what_was_not_reached():
    table = time_to_quality(
        [
            example(target="heart", seed=0),
            example(target="heart", seed=1, scraps=2.0, reached=0),
            example(target="leaf", reached=0),
            example(target="leaf", preset="growing", iterations=8000, commit="y"),
        ]
    )
    heart, leaf, longer = table.splitlines()[-3:]
    assert heart.startswith("| heart | x | 7 | 2 | 1 of 2 |")
    assert "| 1 of 2 | 0 s | 0 s | 0 s |" in heart
    assert leaf.endswith("| never | 0 s |")
    assert longer.startswith("| leaf | growing | 8,000 | 1 | 1 of 1 |")
    assert "commits x, y:" in table.replace("\n", " ")


def test_options_that_count_iterations_are_stretched_alike(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "x", {"warm_up": 50, "milestones": (100, 300)})
    whole = TrainConfig(**recipes.BASE)
    half = recipes.make_config("x", whole.iterations // 2, 4)
    assert (half.warm_up, half.milestones, half.seed) == (25, (50, 150), 4)
    assert half.damage_start == round(whole.damage_start / 2)
    assert half.ramp == round(whole.ramp / 2)


def test_the_preset_is_one_of_the_cases():
    quick = TrainConfig.preset("quick", seed=4)
    assert quick in [recipes.make_config(case, quick.iterations, 4) for case in recipes.RECIPES]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("case", recipes.RECIPES)
def test_every_case_is_a_recipe_that_trains(case):
    found = recipes.train(case, "heart", 8, 0, 2)
    assert found["ended"] == "done"
    assert found["iterations"] == 2


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "SEEDS", (0, 1))
    monkeypatch.setattr(recipes, "TARGETS", ("circle",))
    path, calls = tmp_path / "recipes.csv", []
    first = recipes.train("base", "circle", 8, 0, 2)
    facts = {"machine": "m", "torch": "t", "commit": "c"}
    write_csv(path, [recipes.Run(**first, **facts)], recipes.Run)

    class Inline:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, function, *arguments):
            for each in zip(*arguments, strict=True):
                calls.append((function.__name__, each))
                yield 2 if function is recipes.affordable else function(*each)

    monkeypatch.setattr(recipes, "ProcessPoolExecutor", Inline)
    flags = ["--csv", str(path), "--size", "8", "--cases", "base"]
    monkeypatch.setattr("sys.argv", ["recipes", *flags])
    assert recipes.main() == 0
    assert [name for name, _ in calls] == ["affordable", "train"]
    assert calls[1][1] == ("base", "circle", 8, 1, 2)
    assert [run.seed for run in read_if_there(path, recipes.Run)] == [0, 1]
    assert "| base | nothing |" in path.with_suffix(".md").read_text()
    calls.clear()
    assert recipes.main() == 0
    assert calls == []
    assert "2 training runs" in capsys.readouterr().out
