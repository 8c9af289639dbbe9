"""Deliberate mistakes in the C++ kernels, each of which a comparison must notice."""

import shutil

import pytest
import torch

from fastnca import NeuralCA
from fastnca.backends.cpp import build, library
from tests.helpers import COMPILED, copy_weights, excite, relative_error, roll_out
from tests.test_cpp_rules import VARIANTS, compare

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


RULE_MUTANTS = {
    "wrap off by one": ("grid.h", "CIRCULAR ? count :", "CIRCULAR ? count - 1 :"),
    "wrap to the wrong end": ("grid.h", "CIRCULAR ? 1 : p", "CIRCULAR ? count : p"),
    "corners of the margin left": (
        "grid.h",
        "copy(grid.pitch(), grid.cell(grid.shown_b",
        "copy(1, grid.cell(grid.shown_b",
    ),
    "margin not filled again in the backward pass": (
        "backward.h",
        "fill_margins(grid_, stride, rows_.data());",
        "",
    ),
    "margin's gradient not folded": (
        "backward.h",
        "fold_margins(grid_, stride, grad_.data());",
        "",
    ),
    "margin's gradient folded twice": ("grid.h", "rows[from * stride + i] = 0;", ""),
    "flags not wrapped": ("forward.h", "if (grid_.padding == CIRCULAR) fill", "if (false) fill"),
    "lines not wrapped": ("grid.h", "if (grid.padding == CIRCULAR && around)", "if (false)"),
    "transpose not flipped": (
        "perceive.h",
        "sent[i] += taps_[k][i] * value",
        "sent[i] += taps_[k][8 - i] * value",
    ),
    "filter transposed": ("perceive.h", "near(i / 3 - 1, i % 3 - 1)", "near(i % 3 - 1, i / 3 - 1)"),
    "fourth filter lost": ("perceive.h", "store(to + k * channels_, sum);", ""),
    "fourth filter's gradient lost": (
        "perceive.h",
        "sent[i] += taps_[k][i] * value",
        "sent[i] += k < 3 ? taps_[k][i] * value : Vector<T>{}",
    ),
    "input updated": ("network.h", "to[c] = row[c];", "to[c] = row[c] + T(0.5);"),
    "input cleared in dead cells": (
        "forward.h",
        "copy_row(stride, fresh, values) : clear_row(weights_.own, values)",
        "copy_row(stride, fresh, values) : clear_row(stride, values)",
    ),
    "input cleared in cells that are gone": (
        "forward.h",
        "for (const int32_t row : gone_) clear_row(weights_.own,",
        "for (const int32_t row : gone_) clear_row(stride,",
    ),
    "inputs far from the last state's cells lost": ("forward.h", "|| weights_.rule.inputs > 0", ""),
    "gradient of an input lost": (
        "backward.h",
        "clear_row(weights_.own, grad_",
        "clear_row(weights_.channels, grad_",
    ),
    "halo searched without a test after the step": (
        "forward.h",
        "before && !after ? pre_ : reach_",
        "pre_",
    ),
    "test before the step made always": ("forward.h", "if (before) spread", "spread"),
    "test after the step made always": ("forward.h", "if (weights_.rule.after) spread", "spread"),
    "clamp lost": ("forward.h", "if (weights_.rule.clamped) clamp", "if (false) clamp"),
    "clamp gate lost": ("backward.h", "if (weights_.rule.clamped) limit", "if (false) limit"),
    "clamp gate inverted": ("backward.h", "if (!(low <= ", "if ((low <= "),
    "step size lost": ("network.h", "w2[c * hidden + h] * step_size", "w2[c * hidden + h]"),
    "step size not in the gradient": (
        "network.h",
        "static_cast<T>(last[c]) * step_size",
        "static_cast<T>(last[c])",
    ),
    "sums of other slots lost": (
        "backward.h",
        "sums ? sums + chunk : nullptr",
        "sums && !chunk ? sums : nullptr",
    ),
    "slots not flushed": ("rollout.cpp", "own && slot < count", "own && slot < 1"),
    "a line between bands lost": ("backward.h", "place(top - 1)", "place(top)"),
    "a line between bands received twice": ("backward.h", "std::min<int64_t>(bottom - y, 1)", "1"),
    "end of a chunk lost": (
        "backward.h",
        "std::min(count, (chunk + 1)",
        "std::min(count - 1, (chunk + 1)",
    ),
}


OTHERS = {
    "texture": (1, 5, 66, 64),  # large enough for several slots and bands
    "inputs": (2, 7, 24, 5),
    "torus": (2, 7, 24, 5),
}
"""Shapes of states, beside a small one for every rule."""


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


def errors_of_rules():
    """Return relative errors for rules that are not the tutorial's, with threads that share."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return [
            compare(VARIANTS[name], shape, 6, seed=3)
            for name, shape in (*((name, (2, 7, 6, 5)) for name in VARIANTS), *OTHERS.items())
        ]
    finally:
        torch.set_num_threads(before)


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
    assert max(errors_of_rules()) <= 1e-10


def put(folder, file, before, after):
    text = (folder / file).read_text()
    assert text.count(before) == 1
    (folder / file).write_text(text.replace(before, after))


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, copied, grown):
    put(copied, *MUTANTS[name])
    assert not max(errors(grown)) <= 1e-9


@pytest.mark.parametrize("name", RULE_MUTANTS)
def test_mutant_of_rules_is_caught(name, copied):
    put(copied, *RULE_MUTANTS[name])
    assert not max(errors_of_rules()) <= 1e-9
