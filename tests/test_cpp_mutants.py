"""Deliberate mistakes in the C++ kernels, each of which a comparison must notice."""

import shutil

import pytest
import torch

from fastnca import NeuralCA
from fastnca.backends.cpp import build, library
from tests.helpers import COMPILED, copy_weights, excite, relative_error, roll_out

pytestmark = COMPILED

MUTANTS = {
    "mask dropped": ("forward.h", "reach[x] & (mask ? mask[x] : 1)", "reach[x]"),
    "seed used again every step": ("rollout.cpp", "call.first_step + step,", "call.first_step,"),
    "masks of the first grid for all": ("rollout.cpp", "number * cells + skipped, (", "skipped, ("),
    "filters swapped": (
        "perceive.h",
        "falling - rising + (along + along)",
        "falling + rising + (across + across)",
    ),
    "halo left out": (
        "forward.h",
        "spread(pre_, reach_,",
        "spread(visible_, reach_,",
    ),
    "threshold not strict": (
        "forward.h",
        "fresh_[i * stride + ALPHA] > threshold_",
        "fresh_[i * stride + ALPHA] >= threshold_",
    ),
    "cells born that were dead before": ("forward.h", "pre_[row] & post_[row]", "post_[row]"),
    "post-update test dropped": ("forward.h", "pre_[row] & post_[row]", "pre_[row]"),
    "values outside the living region left": (
        "forward.h",
        "for (const int32_t row : gone_) clear",
        "for (const int32_t row : {0}) clear",
    ),
    "cells that are gone not put back": (
        "backward.h",
        "put(record.gone, record.gone_cells, record.gone_old);",
        "",
    ),
    "transposed filters not negated": ("perceive.h", "sent[3] = -(x + x)", "sent[3] = x + x"),
    "gradient of dead cells kept": ("backward.h", "!any || !flags[row]", "!any"),
    "rectifier not differentiated": ("vectors.h", "load(gate + place) > Vector", "1 > Vector"),
    "bias gradient lost": (
        "network.h",
        "add_columns(grad_delta, count,",
        "add_columns(grad_delta, 0,",
    ),
    "bias gradient of the first layer lost": (
        "network.h",
        "add_columns(grad_hidden_.data(), count,",
        "add_columns(grad_hidden_.data(), 0,",
    ),
    "eighth lost": ("perceive.h", "T(0.125)", "T(0.25)"),
    "sums of other groups lost": ("rollout.cpp", "sums[0].add(sums[i]);", ""),
    "an odd cell at the end of a tile lost": ("network.h", "(count + 1) / 2 * 2", "count / 2 * 2"),
}


def errors(grown):
    """Return the relative errors of states and gradients that the comparisons look at."""
    torch.manual_seed(1)
    noisy = excite(NeuralCA(5, 7, backend="cpp"), 0.3).double()
    outside = torch.rand(3, 5, 9, 7, dtype=torch.float64)
    outside[:, 3] *= torch.rand(3, 9, 7) < 0.15
    found = []
    for model, state, steps in (
        (grown.model(backend="cpp"), grown.states.double(), 20),
        (noisy, outside, 3),
    ):
        fast, slow = (roll_out(each, state, steps, 3) for each in (model, copy_weights(model)))
        found.append(relative_error(fast.state, slow.state))
        found += [relative_error(fast.gradients[name], g) for name, g in slow.gradients.items()]
    found.append(float((on_the_threshold("cpp") - on_the_threshold("reference")).abs().max()))
    return found


def on_the_threshold(backend):
    """Step a state whose only living alpha becomes exactly the threshold, and so dies."""
    model = NeuralCA(4, 2, backend=backend).double().eval()
    with torch.no_grad():
        model.update_net[2].bias[3] = -0.1
    state = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    state[0, 3, 1, 1] = 0.2
    return model.run_steps(state, 1).detach()


@pytest.fixture
def copied(monkeypatch, tmp_path):
    """Let the kernels be built from a copy of their sources, quickly."""
    folder = tmp_path / "cpu"
    shutil.copytree(build._sources(), folder)
    monkeypatch.setattr(build, "_sources", lambda: folder)
    monkeypatch.setattr(build, "_OPTIONS", tuple(o for o in build._OPTIONS if o != "-O3"))
    monkeypatch.setenv(build.DIRECTORY, str(tmp_path / "cache"))
    for function in (build._load, library._library):
        function.cache_clear()
    yield folder
    for function in (build._load, library._library):
        function.cache_clear()


def test_copy_passes(copied, grown):
    assert max(errors(grown)) <= 1e-12


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, copied, grown):
    file, before, after = MUTANTS[name]
    text = (copied / file).read_text()
    assert text.count(before) == 1
    (copied / file).write_text(text.replace(before, after))
    assert not max(errors(grown)) <= 1e-9
