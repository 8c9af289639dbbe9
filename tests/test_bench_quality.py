"""Time to quality: both train the same way, and what is not reached is said so."""

import itertools

import pytest
import torch

from bench import quality
from fastnca.training import TrainConfig

CPU = torch.device("cpu")


def test_both_go_through_the_same_training():
    config = TrainConfig(iterations=4, pool_size=8, min_steps=8, max_steps=14, seed=3)
    losses = {}
    for provider in ("tutorial", "fastnca"):
        runs = quality.train(provider, 24, 5, config, CPU)
        losses[provider] = [loss for loss, _ in itertools.islice(runs, 4)]
    assert losses["tutorial"] == pytest.approx(losses["fastnca"], rel=1e-3)
    assert len(set(losses["tutorial"])) == 4


def test_masks_drawn_for_the_tutorial_are_not_on_its_clock(monkeypatch):
    slow, clock = quality.update_masks, [0.0]

    def drawn(*arguments):
        clock[0] += 5
        return slow(*arguments)

    monkeypatch.setattr(quality, "update_masks", drawn)
    monkeypatch.setattr(quality.time, "perf_counter", lambda: clock[0])
    config = TrainConfig(pool_size=2, min_steps=1, max_steps=2, batch_size=1, seed=0)
    _, seconds = next(quality.train("tutorial", 8, 0, config, CPU))
    assert clock[0] == 5
    assert seconds == 0


def losses_of(values):
    """Stand in for training: these losses, a second each."""
    return lambda *_: ((value, 1.0) for value in itertools.chain(values, itertools.repeat(0.5)))


def test_goal_is_reached_by_the_mean_of_the_window(monkeypatch):
    window = quality.WINDOW
    monkeypatch.setattr(quality, "train", losses_of([0.5, 0.001, *[0.009] * 40]))
    reached, iterations, seconds, lowest = quality.run("fastnca", 8, 0, 100, 1e9, CPU)
    assert reached
    assert iterations == window + 1  # the first loss has left the window
    assert seconds == iterations
    assert lowest <= quality.GOAL


@pytest.mark.parametrize(("iterations", "limit"), [(30, 1e9), (1000, 29.5)])
def test_a_cap_means_not_reached(iterations, limit, monkeypatch):
    monkeypatch.setattr(quality, "train", losses_of([]))
    found = quality.run("tutorial", 8, 0, iterations, limit, CPU)
    assert found == (False, 30, 30.0, 0.5)


def test_results_round_trip(tmp_path):
    result = quality.Result("fastnca", 24, 1, 0.01, 20, 0, 30, 1.5, 0.25, "m", 2, "2.13", "abc")
    quality.write_results(tmp_path / "quality.csv", [result])
    assert quality.read_results(tmp_path / "quality.csv") == [result]
