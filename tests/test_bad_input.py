"""Bad input: it works as the reference does, or one sentence says what was expected and got."""

import pytest
import torch

from fastnca import (
    NeuralCA,
    create_seed,
    create_target,
    create_target_circle,
    game_of_life_step,
    use_backend,
)
from fastnca.states import rectangle

GOOD = torch.rand(1, 16, 5, 5)

STATES = {
    "a list": ([1.0], TypeError, "must be a torch.Tensor"),
    "three dimensions": (GOOD[0], ValueError, r"\[batch, 16, height, width\].*state\[None\]"),
    "five dimensions": (GOOD[None], ValueError, "must have shape"),
    "eight channels": (GOOD[:, :8], ValueError, "16 channels to match the model, got 8"),
    "no rows": (GOOD[:, :, :0], ValueError, "at least one cell"),
    "no columns": (GOOD[..., :0], ValueError, "at least one cell"),
    "double": (GOOD.double(), TypeError, "float64 and the model torch.float32"),
    "integers": (GOOD.long(), TypeError, "int64 and the model torch.float32"),
    "another device": (GOOD.to("meta"), ValueError, "on meta and the model on cpu"),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_states(name, backend):
    state, error, words = STATES[name]
    model = NeuralCA(backend=backend)
    for call in (model, lambda s: model.run_steps(s, 2), lambda s: model.trajectory(s, 2)):
        with pytest.raises(error, match=words):
            call(state)


CALLS = {
    "rate above one": (lambda m: m(GOOD, 1.5), ValueError, r"in \[0, 1\], got 1.5"),
    "rate below zero": (lambda m: m.run_steps(GOOD, 1, -0.1), ValueError, r"in \[0, 1\]"),
    "rate not a number": (lambda m: m(GOOD, float("nan")), ValueError, "got nan"),
    "negative steps": (lambda m: m.run_steps(GOOD, -1), ValueError, "steps must be at least 0"),
    "half a step": (lambda m: m.run_steps(GOOD, 1.5), TypeError, "steps must be an int"),
    "true steps": (lambda m: m.run_steps(GOOD, True), TypeError, "steps must be an int"),
    "a seed of text": (lambda m: m.run_steps(GOOD, 1, seed="x"), TypeError, "seed must be an int"),
    "a huge seed": (lambda m: m.run_steps(GOOD, 1, seed=2**70), ValueError, "64 bits"),
    "first step": (lambda m: m.run_steps(GOOD, 1, first_step=-1), ValueError, "first_step"),
    "every zero": (lambda m: m.trajectory(GOOD, 1, every=0), ValueError, "every must be at least"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_calls(name, backend):
    call, error, words = CALLS[name]
    with pytest.raises(error, match=words):
        call(NeuralCA(backend=backend))


CONSTRUCTIONS = {
    "three channels": (lambda: NeuralCA(3), ValueError, "num_channels must be at least 4"),
    "no hidden unit": (lambda: NeuralCA(16, 0), ValueError, "hidden_dim must be at least 1"),
    "channels as text": (lambda: NeuralCA("16"), TypeError, "num_channels must be an int, got str"),
    "unknown backend": (lambda: NeuralCA(backend="cuda"), ValueError, "one of auto, reference"),
    "unknown precision": (lambda: NeuralCA(precision="fp8"), ValueError, "one of auto, fp16"),
    "use_backend": (lambda: use_backend("gpu"), ValueError, "must be one of auto"),
    "empty seed": (lambda: create_seed(0), ValueError, "size >= 1"),
    "flat seed": (lambda: create_seed(8, 3), ValueError, "num_channels >= 4"),
    "empty target": (lambda: create_target_circle(0), ValueError, "size >= 1"),
    "unknown target": (lambda: create_target("cube"), ValueError, "one of circle, ring"),
    "life in one dimension": (
        lambda: game_of_life_step(torch.zeros(5)),
        ValueError,
        r"\[height, width\]",
    ),
    "damage outside": (lambda: rectangle(8, 8, (9, 9, 12, 12)), ValueError, "covers no cell"),
}


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_constructions(name):
    make, error, words = CONSTRUCTIONS[name]
    with pytest.raises(error, match=words):
        make()


def test_an_unknown_backend_in_the_environment(monkeypatch):
    monkeypatch.setenv("FASTNCA_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTNCA_BACKEND must be one of"):
        NeuralCA()(GOOD)
