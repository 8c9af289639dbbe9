"""A resumed run delivers the model of a run that was not interrupted."""

import json
import os
import signal
import subprocess
import sys
from functools import lru_cache

import pytest
import torch

from fastnca import FileFormatError, NeuralCA
from fastnca.commands.parser import main
from fastnca.training import Callback, EmaTracker, RunDirectory
from tests.runs import advance, make_trainer

QUICK = [
    *("--size", "8", "--hidden", "6", "--channels", "8", "--pool-size", "4", "--batch-size", "4"),
    *("--min-steps", "3", "--max-steps", "6", "--save-interval", "2"),
]
SHORT = ["--iterations", "6"]
"""One look at the average, after the last iteration; each iteration takes two rollouts."""

LONG = ["--preset", "tutorial", "--seed", "15", *("--iterations", "200", "--milestones", "102")]
LONG += ["--decay", "200"]
"""Looks after 100 and after 200 iterations, between which a large learning rate spoils it."""

KILLED = """
import os, signal, sys
from fastnca import NeuralCA
from fastnca.commands.parser import main

real, calls = NeuralCA.run_steps, [0]

def run_steps(self, *arguments, **options):
    calls[0] += 1
    if calls[0] == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments, **options)

NeuralCA.run_steps = run_steps
main(sys.argv[1:])
"""


def train(out, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastnca.commands.train.draw_result", lambda *_: [])  # pictures take longest
        return main(["train", *QUICK, *flags, "--out", str(out)])


def delivered(out):
    return (out / "model.safetensors").read_bytes(), NeuralCA.load(out).metadata


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Return what a run that is not interrupted delivers."""

    @lru_cache
    def deliver(*flags):
        out = tmp_path_factory.mktemp("straight")
        assert train(out, *flags) == 0
        return delivered(out)

    return deliver


def interrupt(monkeypatch, number):
    """Press Ctrl-C in rollout `number`, from 1: training stops after the next iteration."""
    real, calls = NeuralCA.run_steps, [0]

    def run_steps(self, *arguments, **options):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments, **options)

    monkeypatch.setattr(NeuralCA, "run_steps", run_steps)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize(
    ("flags", "rollout", "done", "best"),
    [(SHORT, 4, 3, 6), (LONG, 29, 30, 100), (LONG, 123, 120, 100)],
    ids=["before the last look", "before every look", "after the best look"],
)
def test_interrupted_and_resumed_it_is_the_same_model(
    tmp_path, monkeypatch, straight, flags, rollout, done, best
):
    expected = straight(*flags)
    interrupt(monkeypatch, rollout)  # a look takes four rollouts
    assert train(tmp_path / "run", *flags) == 130
    assert (tmp_path / "run" / "latest").read_text() == f"ckpt-{done:08d}\n"
    monkeypatch.undo()
    assert train(tmp_path / "run", *flags, "--resume") == 0
    assert delivered(tmp_path / "run") == expected
    assert expected[1]["iterations"] == best


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
def test_killed_and_resumed_it_is_the_same_model(tmp_path, straight):
    words = ["train", *QUICK, *SHORT, "--out", str(tmp_path / "run")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "latest").read_text() == "ckpt-00000004\n"
    assert train(tmp_path / "run", *SHORT, "--resume") == 0
    assert delivered(tmp_path / "run") == straight(*SHORT)


def make(iterations=0):
    """Make a trainer with averaged weights."""
    each, best = make_trainer(iterations=8), EmaTracker(every=2)
    each.add_callback(best)
    advance(each, iterations)
    return each, best


def assert_equal(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_average_and_best_weights_go_on_where_they_were(tmp_path, iterations):
    each, best = make(iterations)
    each.save(tmp_path)
    other, second = make()
    other.resume(tmp_path)
    assert_equal(second, best)
    assert second.loss == best.loss
    for trainer in (each, other):
        advance(trainer, 4)
    assert_equal(second, best)


def test_a_look_after_the_checkpoint_is_not_in_it(tmp_path):
    each, best = make(3)
    each.save(tmp_path)
    best.evaluate(each)
    resumed, other = make()
    resumed.resume(tmp_path)
    assert best.loss < other.loss == float("inf")


def test_a_longer_run_forgets_looks_that_it_does_not_take(tmp_path):
    each, best = make(5)
    assert best.iteration == 4
    each.save(tmp_path)
    for total, loss in ((8, best.loss), (9, float("inf"))):
        longer, other = make_trainer(iterations=total), EmaTracker(every=2)
        longer.add_callback(other)
        longer.resume(tmp_path)
        assert other.loss == loss


def test_a_callback_that_is_added_after_the_resume_starts_anew(tmp_path):
    make(5)[0].save(tmp_path)
    each, best = make_trainer(iterations=8), EmaTracker(every=2)
    each.resume(tmp_path)
    each.add_callback(best)
    assert (best.loss, best.iteration) == (float("inf"), 5)


def test_a_checkpoint_without_an_average_is_resumed_with_a_note(tmp_path):
    plain = make_trainer(iterations=8)
    advance(plain, 3)
    plain.save(tmp_path)
    each, best = make()
    (note,) = RunDirectory(tmp_path).resume(each).notes
    assert "ckpt-00000003 does not hold the state of best-weights, which starts anew" in note
    assert (best.loss, best.iteration) == (float("inf"), 3)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(best.weights[name], value)
        assert torch.equal(best.ema_model.state_dict()[name], value)


class Other(Callback):
    """Has the place of averaged weights, and other tensors."""

    name = "best-weights"

    def state_dict(self):
        return {"loss": torch.zeros(3)}


def test_what_does_not_fit_is_refused(tmp_path):
    each = make_trainer()
    each.add_callback(Other())
    each.save(tmp_path)
    file = r"companion-best-weights\.safetensors: tensors are missing: average\."
    with pytest.raises(FileFormatError, match=file):
        make()[0].resume(tmp_path)


def test_an_average_that_is_not_finite_is_not_saved(tmp_path):
    each, best = make(1)
    with torch.no_grad():
        next(best.ema_model.parameters()).fill_(float("nan"))
    with pytest.raises(OSError, match=r"'average\.perception\.filters' holds NaN"):
        each.save(tmp_path)


def test_the_manifest_lists_the_file(tmp_path):
    make(1)[0].save(tmp_path)
    manifest = json.loads((tmp_path / "ckpt-00000001" / "manifest.json").read_text())
    assert "companion-best-weights.safetensors" in manifest["files"]
