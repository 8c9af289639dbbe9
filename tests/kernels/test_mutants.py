"""Deliberate mistakes in the kernels, each of which the comparisons must notice."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastnca.backends.triton_fused.loops as rollout
import fastnca.backends.triton_fused.single_step as single
import fastnca.kernels
from tests.kernels.helpers import Case, make_problem, run_kernels, violations
from tests.kernels.scenarios import (
    border_errors,
    count_errors,
    forms,
    halo_errors,
    not_finite_errors,
    overflow_errors,
    reach_errors,
    scale_errors,
    threshold_errors,
)

OVERFLOWS = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter

SOURCE = Path(fastnca.kernels.__file__).parent

PROBES = [
    Case(9, 17, precision="fp16"),
    Case(5, 9, pattern="left", rate=0.5, steps=2),
]

SINGLE_PROBES = [
    Case(9, 17, precision="fp16", steps=1),
    Case(17, 9, precision="fp16", pattern="top", steps=1),
    Case(5, 9, pattern="left", rate=None, steps=1),
]

MUTANTS = {
    "mask dropped forward": (
        "step_forward.py",
        "delta = tl.where(has(wide, UPDATE), delta, 0.0)",
        "delta += 0.0",
    ),
    "mask dropped backward": (
        "step_backward.py",
        "grad_delta = tl.where(has(wide, UPDATE), grad, 0.0)",
        "grad_delta = grad",
    ),
    "seed used again every step": (
        "step_forward.py",
        "step_number = tl.load(counter_ptr + 1) + step",
        "step_number = tl.load(counter_ptr + 1) + step * 0",
    ),
    "words of a quad swapped": ("mask.py", "tl.where(number == 0,", "tl.where(number == 1,"),
    "filters swapped": (
        "perceive.py",
        "return center, falling + rising + 2 * across, falling - rising + 2 * down",
        "return center, falling - rising + 2 * down, falling + rising + 2 * across",
    ),
    "halo shifted": (
        "perceive.py",
        "_neighbour(above + CELL, status, 2)",
        "_neighbour(above, status, 1)",
    ),
    "transposed filters not negated": (
        "perceive.py",
        "return corners + 2 * (across_x + down_y)\n\n\n@triton.jit\ndef gather",
        "return -corners - 2 * (across_x + down_y)\n\n\n@triton.jit\ndef gather",
    ),
    "threshold not strict": ("step_forward.py", "updated > threshold", "updated >= threshold"),
    "cells born that were dead before": (
        "step_forward.py",
        "stored = tl.where(has(wide, PRE), updated, updated * 0.0)",
        "stored = updated",
    ),
    "post-update test dropped": (
        "finish.py",
        "alive = ((dilate(above, here, below) >> (column + OWN)) & 1 != 0) & inside",
        "alive = inside",
    ),
    "dead neighbours ignored": (
        "step_forward.py",
        "tl.where(updated > threshold, (inside | kept)[:, None], 0)",
        "tl.where(updated > threshold, (kept | kept >> PRE)[:, None], 0)",
    ),
    "flags not told to the run on the left": ("alive.py", "mask=own_run > 0", "mask=own_run < 0"),
    "tiles skipped too eagerly": ("tile.py", "0x3FFC0", "0x0FF00"),
    "dead tiles left alone": (
        "step_forward.py",
        "stored, mask=inside[:, None])",
        "stored, mask=(inside.to(tl.int32) * tl.max(found, axis=0) != 0)[:, None])",
    ),
    "flags of dead tiles wrong": (
        "step_forward.py",
        "found = tl.zeros((HEIGHT,), tl.int32)",
        "found = tl.full((HEIGHT,), -1, tl.int32)",
    ),
    "gradients of dead tiles wrong": (
        "step_backward.py",
        "passed = tl.zeros((cells, CHANNELS), tl.float32)",
        "passed = tl.full((cells, CHANNELS), 1.0, tl.float32)",
    ),
    "gradient through cells that died": ("step_backward.py", "((post & 1) ^ 1)", "(post & 0)"),
    "rectifier not differentiated": (
        "network.py",
        "tl.where(hidden <= 0, 0.0, grad_hidden)",
        "grad_hidden",
    ),
    "bias gradient lost": (
        "gradients.py",
        "tl.sum(grad_bias2, axis=0), later",
        "tl.sum(grad_bias2, axis=0) * 0, later",
    ),
    "bias gradient of the first layer lost": (
        "gradients.py",
        "_store(grad_b1_ptr + unit, total,",
        "_store(grad_b1_ptr + unit, total * 0,",
    ),
    "eighth lost": (
        "gradients.py",
        "tl.where(feature == 0, total, total * 0.125)",
        "total",
    ),
    "eighth lost forward": (
        "weights.py",
        "tl.where(feature == 0, weight, weight * 0.125)",
        "weight",
    ),
    "sums of later steps lost": (
        "step_backward.py",
        "later = step + 1 < tl.load(counter_ptr + 2)",
        "later = step < 0",
    ),
    "rows of other programs lost": ("gradients.py", "(row < rows)[:, None]", "(row < 1)[:, None]"),
    "all launches taken": (
        "step_forward.py",
        "if step >= tl.load(counter_ptr + 2):",
        "if step < 0:",
    ),
    "one step too many backward": (
        "step_backward.py",
        "if step >= tl.load(counter_ptr + 2):",
        "if step > tl.load(counter_ptr + 2):",
    ),
    "infinity cleared with its cell": (
        "step_forward.py",
        "tl.where(has(wide, PRE), updated, updated * 0.0)",
        "tl.where(has(wide, PRE), updated, 0.0)",
    ),
    "infinity not alive": (
        "step_forward.py",
        "tl.where(is_finite(updated), flags",
        'tl.where(updated < float("inf"), flags',
    ),
    "infinity not alive at the start": (
        "start.py",
        "kept = alpha & ((state <= threshold) == 0)",
        "kept = alpha & (state > threshold)",
    ),
    "infinity of other channels not seen": (
        "alive.py",
        "packed, ALL_FLAGS)",
        "packed, packed)",
    ),
    "last slot that of all launches": (
        "finish.py",
        "tl.minimum(tl.load(counter_ptr + 2), most)",
        "most",
    ),
    "half of the gradient swapped": (
        "start.py",
        "half = tl.minimum(tl.load(counter_ptr + 2), most) % 2",
        "half = 1 - tl.minimum(tl.load(counter_ptr + 2), most) % 2",
    ),
}

SINGLE_MUTANTS = {
    "mask dropped forward": (
        "single_step.py",
        "delta = tl.where(has(wide, UPDATE), delta, 0.0)",
        "delta += 0.0",
    ),
    "step number ignored": ("single_step.py", "step + nothing", "nothing"),
    "threshold not strict before": (
        "single_step.py",
        "is_visible(alpha, threshold)",
        "alpha >= threshold",
    ),
    "threshold not strict after": (
        "single_step.py",
        "(updated <= threshold)",
        "(updated < threshold)",
    ),
    "cells born that were dead before": (
        "single_step.py",
        "dilate_bits(words, cells) & (status >> PRE) & 1",
        "dilate_bits(words, cells) & 1",
    ),
    "post-update test dropped": (
        "single_step.py",
        "dilate_bits(words, cells) & (status >> PRE) & 1",
        "(status >> PRE) & 1",
    ),
    "dead neighbours ignored": (
        "single_step.py",
        "visible & has(wide, HERE)",
        "visible & has(wide, PRE)",
    ),
    "cells outside of the grid alive": (
        "single_step.py",
        "visible & has(wide, HERE)",
        "visible & (wide > -1)",
    ),
    "padding perceived on the left": ("single_step.py", "below(x - 1, width)", "below(x, width)"),
    "padding perceived on the right": ("single_step.py", "below(x + 1, width)", "below(x, width)"),
    "padding perceived above": ("single_step.py", "below(y - 1, height)", "below(y, height)"),
    "padding perceived below": ("single_step.py", "below(y + 1, height)", "below(y, height)"),
    "ring stored": ("single_step.py", "| (column == 0) |", "|"),
    "ring too wide": ("single_step.py", "(column == RUN - 1)", "(column >= RUN - 2)"),
    "dead tiles left alone": (
        "single_step.py",
        "offsets, result, mask=mask)",
        "offsets, result, mask=mask & (fate + tl.max(fate, axis=0) > 0)[:, None])",
    ),
    "fates of dead tiles wrong": (
        "single_step.py",
        "fate = tl.zeros((cells,), tl.int32)",
        "fate = tl.full((cells,), 1, tl.int32)",
    ),
    "infinity not alive before": (
        "single_step.py",
        "is_visible(alpha, threshold)",
        "alpha > threshold",
    ),
    "infinity cleared with its cell": (
        "single_step.py",
        "result = updated * survives[:, None]",
        "result = tl.where(survives[:, None] == 0, 0.0, updated)",
    ),
    "fate of the mask lost": ("single_step.py", "& 1) << UPDATES", "& 1) << 3"),
    "words torn apart": ("bits.py", " | (before >> (32 - RUN))", ""),
    "words in a wrong order": ("bits.py", "word + (count - 1)", "word + (count - 2)"),
    "bits not spread to the left": ("bits.py", "(rows << 1) | (rows >> 1)", "rows << 1"),
    "gradient through cells that died": (
        "single_gradient.py",
        "mask=has(fates, SURVIVES), other=0.0",
        "mask=has(status, 4), other=0.0",
    ),
    "mask dropped backward": (
        "single_gradient.py",
        "grad_delta = tl.where(updating, grad, 0.0)",
        "grad_delta = grad",
    ),
    "mask dropped from the bias": (
        "single_gradient.py",
        "unscaled = tl.where(updating, grad, 0.0)",
        "unscaled = grad",
    ),
    "sums not brought down": ("single_gradient.py", "grad2 *= change", "grad2 *= 1.0"),
    "scale left in the sums": ("single_gradient.py", "grad1 *= inverse", "grad1 *= 1.0"),
    "scale left in the state": (
        "single_gradient.py",
        "(grad + grad_identity) * unscale",
        "grad + grad_identity",
    ),
    "Sobel gradients swapped": (
        "single_gradient.py",
        "scratch_ptr + corner + offsets, grad_x",
        "scratch_ptr + corner + offsets, grad_y",
    ),
    "nothing gathered": ("single_gradient_end.py", "+ received + poison", "+ poison"),
    "gather shifted": (
        "perceive.py",
        "_neighbour(x_top - 1, status, 0)",
        "_neighbour(x_top, status, 1)",
    ),
    "gather not negated": (
        "perceive.py",
        "return corners + 2 * (across_x + down_y)\n\n\n@triton.jit\ndef join_features",
        "return -corners - 2 * (across_x + down_y)\n\n\n@triton.jit\ndef join_features",
    ),
    "gradients of dead tiles left alone": (
        "single_gradient.py",
        "offsets, passed, mask=mask)",
        "offsets, passed, mask=mask & (fate + tl.max(fate, axis=0) > 0)[:, None])",
    ),
    "overflow of weights not noted": (
        "single_gradient.py",
        "tl.store(notes_ptr + program, wrong.to(tl.float32))",
        "tl.store(notes_ptr + program, 0.0)",
    ),
    "notes not read": (
        "single_gradient_end.py",
        'tl.where(wrong, float("nan"), 0.0)',
        "0.0",
    ),
    "bias of the second layer not read": (
        "single_step.py",
        "mask=channel < CHANNELS, other=0.0)",
        "mask=channel < 0, other=0.0)",
    ),
    "eighth lost": ("weights.py", "tl.where(feature == 0, weight, weight * 0.125)", "weight"),
}


def load_copy(folder: Path) -> ModuleType:
    """Import the kernels in `folder` beside the shipped ones."""
    name = f"copied_{folder.parent.name}".replace("-", "_")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "kernels"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    yield folder
    for name in [n for n in sys.modules if n.startswith("copied_")]:
        del sys.modules[name]


def load_patched(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let rollouts and single steps use the kernels in `folder`."""
    module = load_copy(folder)
    for user in (rollout, single):
        for name in module.__all__:
            if hasattr(user, name):
                patch.setattr(user, name, getattr(module, name))
    patch.setattr(single, "_prepared", {})


def complaints(folder: Path, device: torch.device, patch: pytest.MonkeyPatch) -> list[str]:
    """Run the probes of rollouts on the kernels in `folder`; collect what comparisons say."""
    load_patched(folder, patch)
    _, form = forms(device)
    found = threshold_errors(device, form) + halo_errors(device, form)
    found += count_errors(device) + reach_errors(device)
    for case in PROBES:
        if not found:
            problem = make_problem(case)
            found += violations(case, problem, run_kernels(case, problem, device))
    return found or not_finite_errors(device, form)


def single_complaints(folder: Path, device: torch.device, patch: pytest.MonkeyPatch) -> list[str]:
    """Do the same with the probes of single steps."""
    load_patched(folder, patch)
    form, _ = forms(device)
    found = threshold_errors(device, form) + border_errors(device, form)
    found += halo_errors(device, form) + halo_errors(device, form, down=True)
    for case in SINGLE_PROBES:
        if not found:
            problem = make_problem(case)
            found += violations(case, problem, run_kernels(case, problem, device))
    found = found or scale_errors(device) + overflow_errors(device)
    return found or not_finite_errors(device, form)


@OVERFLOWS
def test_copy_passes(copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not complaints(copied, device, monkeypatch)


@OVERFLOWS
def test_single_copy_passes(
    copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not single_complaints(copied, device, monkeypatch)


def change(folder: Path, file: str, before: str, after: str) -> None:
    """Make a deliberate mistake in the kernels in `folder`."""
    text = (folder / file).read_text()
    assert text.count(before) == 1
    (folder / file).write_text(text.replace(before, after))


@OVERFLOWS
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(
    mutant: str, copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copied, *MUTANTS[mutant])
    assert complaints(copied, device, monkeypatch)


@OVERFLOWS
@pytest.mark.parametrize("mutant", SINGLE_MUTANTS)
def test_single_mutant_is_caught(
    mutant: str, copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copied, *SINGLE_MUTANTS[mutant])
    assert single_complaints(copied, device, monkeypatch)
