"""Deliberate mistakes in the C++ kernels, each of which a comparison must notice."""

import shutil

import pytest
import torch

from fastnca import NeuralCA
from fastnca.backends.cpp import build, library
from tests.helpers import COMPILED, copy_weights, excite, relative_error, roll_out
from tests.mutation import Mutant
from tests.test_cpp_rules import VARIANTS, compare

pytestmark = COMPILED

MUTANTS = {
    "mask dropped": Mutant(
        "forward.h",
        "E5",
        "$near[$x] = $reach[$x] & ($$mask)",
        "$near[$x] = $reach[$x]",
        "list_cells",
    ),
    "seed used again every step": Mutant(
        "rollout.cpp",
        "E4",
        "draw_mask($$seed, $call.first_step + $step,",
        "draw_mask($$seed, $call.first_step,",
    ),
    "masks of the first grid for all": Mutant(
        "rollout.cpp", "E4", "$number * $cells + $skipped, (", "$skipped, (", "forward_grid"
    ),
    "filters swapped": Mutant(
        "perceive.h",
        "E1",
        "store($$x, $falling + $rising + ($across + $across)); store($$y, $$sobel_y);",
        "store($$x, $falling + $rising + ($across + $across));"
        "store($$y, $falling + $rising + ($across + $across));",
    ),
    "halo left out": Mutant(
        "forward.h",
        "E5",
        "spread($visible, $pre, $$lines); if ($$both) spread($pre, $reach,",
        "spread($visible, $pre, $$lines); if ($$both) spread($visible, $reach,",
    ),
    "threshold not strict": Mutant(
        "forward.h",
        "E5",
        "$fresh[$$i + ALPHA] > $threshold",
        "$fresh[$$i + ALPHA] >= $threshold",
        "settle",
    ),
    "cells born that were dead before": Mutant(
        "forward.h", "E6", "$pre[$row] & $post[$row]", "$post[$row]", "settle"
    ),
    "post-update test dropped": Mutant(
        "forward.h", "E7", "$pre[$row] & $post[$row]", "$pre[$row]", "settle"
    ),
    "values outside the living region left": Mutant(
        "forward.h",
        "E7",
        "for (const int32_t $row : $gone) clear_row(",
        "for (const int32_t $row : {0}) clear_row(",
    ),
    "cells that are gone not put back": Mutant(
        "backward.h", "", "put($record.gone, $$cells, $$old);", "", "undo"
    ),
    "transposed filters not negated": Mutant(
        "perceive.h", "E12", "$sent[3] = -($x + $x)", "$sent[3] = $x + $x", "send_back"
    ),
    "gradient of dead cells kept": Mutant(
        "backward.h", "E8", "!$any || !$flags[$row]", "!$any", "mask"
    ),
    "rectifier not differentiated": Mutant(
        "vectors.h", "E10", "load($gate + $place) > Vector", "1 > Vector"
    ),
    "bias gradient lost": Mutant(
        "network.h", "E9", "add_columns($grad, $count,", "add_columns($grad, 0,", "differentiate"
    ),
    "bias gradient of the first layer lost": Mutant(
        "network.h",
        "E10",
        "add_columns($grad.data(), $count,",
        "add_columns($grad.data(), 0,",
        "differentiate",
    ),
    "gradient of a hidden unit not sent back": Mutant(
        "network.h",
        "E11",
        "from_hidden.data(), $stride, $grad, $stride, $weights.hidden}",
        "from_hidden.data(), $stride, $grad, $stride, $weights.hidden - 1}",
        "differentiate",
    ),
    "eighth lost": Mutant("perceive.h", "E1", "T(0.125)", "T(0.25)", "scale"),
    "sums of other groups lost": Mutant("rollout.cpp", "E9", "$sums[0].add($sums[$i]);", ""),
    "an odd cell at the end of a tile lost": Mutant(
        "network.h", "E3", "($count + 1) / 2 * 2", "$count / 2 * 2", "even"
    ),
}


RULE_MUTANTS = {
    "wrap off by one": Mutant(
        "grid.h", "E1", "CIRCULAR ? $count :", "CIRCULAR ? $count - 1 :", "shown_before"
    ),
    "wrap to the wrong end": Mutant(
        "grid.h",
        "E1",
        "CIRCULAR ? 1 : $padding == REFLECT ? $count - 1",
        "CIRCULAR ? $count : $padding == REFLECT ? $count - 1",
        "shown_after",
    ),
    "corners of the margin left": Mutant(
        "grid.h",
        "E1",
        "$copy($grid.pitch(), $grid.cell($grid.shown_before(",
        "$copy(1, $grid.cell($grid.shown_before(",
        "fill_margins",
    ),
    "margin not filled again in the backward pass": Mutant(
        "backward.h", "E1", "fill_margins($$rows);", ""
    ),
    "margin's gradient not folded": Mutant("backward.h", "E12", "fold_margins($$grad);", ""),
    "margin's gradient folded twice": Mutant(
        "grid.h", "E12", "$rows[$from * $stride + $i] = 0;", "", "fold_margins"
    ),
    "flags not wrapped": Mutant(
        "forward.h",
        "E2",
        "if ($grid.padding == CIRCULAR) fill_margins",
        "if (false) fill_margins",
        "spread",
    ),
    "lines not wrapped": Mutant(
        "grid.h", "", "if ($grid.padding == CIRCULAR && $around)", "if (false)", "widened"
    ),
    "transpose not flipped": Mutant(
        "perceive.h",
        "E12",
        "$sent[$i] += $taps[$k][$i] * $value",
        "$sent[$i] += $taps[$k][8 - $i] * $value",
    ),
    "filter transposed": Mutant(
        "perceive.h",
        "E1",
        "$near($i / 3 - 1, $i % 3 - 1)",
        "$near($i % 3 - 1, $i / 3 - 1)",
    ),
    "fourth filter lost": Mutant(
        "perceive.h", "E1", "store($to + $k * $channels, $sum);", "", "perceive"
    ),
    "fourth filter's gradient lost": Mutant(
        "perceive.h",
        "E12",
        "$sent[$i] += $taps[$k][$i] * $value",
        "$sent[$i] += $k < 3 ? $taps[$k][$i] * $value : Vector<T>{}",
    ),
    "input updated": Mutant(
        "network.h", "E5", "$to[$c] = $row[$c];", "$to[$c] = $row[$c] + T(0.5);", "update"
    ),
    "input cleared in dead cells": Mutant(
        "forward.h",
        "E7",
        "copy_row($stride, $fresh, $values) : clear_row($$own, $values)",
        "copy_row($stride, $fresh, $values) : clear_row($stride, $values)",
    ),
    "input cleared in cells that are gone": Mutant(
        "forward.h",
        "E7",
        "for (const int32_t $row : $gone) clear_row($$own, $$rows + $row * $stride)",
        "for (const int32_t $row : $gone) clear_row($stride, $$rows + $row * $stride)",
    ),
    "inputs far from the last state's cells lost": Mutant(
        "forward.h", "", "|| $weights.rule.inputs > 0", "", "leave"
    ),
    "gradient of an input lost": Mutant(
        "backward.h", "E8", "clear_row($weights.own,", "clear_row($weights.channels,", "mask"
    ),
    "halo searched without a test after the step": Mutant(
        "forward.h", "E5", "$before && !$after ? $pre : $reach", "$pre", "step"
    ),
    "test before the step made always": Mutant(
        "forward.h", "E2", "if ($before) spread", "spread", "step"
    ),
    "test after the step made always": Mutant(
        "forward.h", "E7", "if ($weights.rule.after) spread", "spread", "settle"
    ),
    "clamp lost": Mutant(
        "forward.h", "E5", "if ($weights.rule.clamped) clamp", "if (false) clamp", "update"
    ),
    "clamp gate lost": Mutant(
        "backward.h", "E8", "if ($weights.rule.clamped) limit", "if (false) limit"
    ),
    "clamp gate inverted": Mutant(
        "backward.h", "E8", "if (!($low <= $$value))", "if (($low <= $$value))", "limit"
    ),
    "step size lost": Mutant(
        "network.h",
        "E5",
        "$w2[$c * $hidden + $h] * $step_size",
        "$w2[$c * $hidden + $h]",
    ),
    "step size not in the gradient": Mutant(
        "network.h",
        "E9",
        "static_cast<T>($sums[$c]) * $step_size",
        "static_cast<T>($sums[$c])",
        "unpack",
    ),
    "sums of other slots lost": Mutant(
        "backward.h",
        "E9",
        "$sums ? $sums + $chunk : nullptr",
        "$sums && !$chunk ? $sums : nullptr",
    ),
    "slots not flushed": Mutant(
        "rollout.cpp", "E9", "$own && $slot < $count", "$own && $slot < 1", "backward"
    ),
    "a line between bands lost": Mutant(
        "backward.h", "E12", "$place($top - 1)", "$place($top)", "receive"
    ),
    "a line between bands received twice": Mutant(
        "backward.h", "E12", "std::min<int64_t>($bottom - $y, 1)", "1", "receive"
    ),
    "end of a chunk lost": Mutant(
        "backward.h",
        "E9",
        "std::min($count, ($chunk + 1)",
        "std::min($count - 1, ($chunk + 1)",
        "differentiate",
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


@pytest.mark.long
def test_copy_passes(copied, grown):
    assert max(errors(grown)) <= 1e-12
    assert max(errors_of_rules()) <= 1e-10


@pytest.mark.one_in(14)
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, copied, grown):
    MUTANTS[name].apply(name, copied)
    assert not max(errors(grown)) <= 1e-9


@pytest.mark.one_in(30)
@pytest.mark.parametrize("name", RULE_MUTANTS)
def test_mutant_of_rules_is_caught(name, copied):
    RULE_MUTANTS[name].apply(name, copied)
    assert not max(errors_of_rules()) <= 1e-9
