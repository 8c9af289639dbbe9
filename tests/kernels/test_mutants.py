"""Deliberate mistakes in the kernels, each of which the comparisons must notice."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastnca.fused.rollout as rollout
import fastnca.kernels
from tests.kernels.helpers import Case, make_problem, run_kernels, violations
from tests.kernels.scenarios import count_errors, halo_errors, threshold_errors

SOURCE = Path(fastnca.kernels.__file__).parent

PROBES = [
    Case(9, 17, precision="fp16"),
    Case(5, 9, pattern="left", rate=0.5, steps=2),
]

MUTANTS = {
    "mask dropped forward": (
        "step_forward.py",
        "delta = tl.where(has(status, UPDATE), delta, 0.0)",
        "delta += 0.0",
    ),
    "mask dropped backward": (
        "step_backward.py",
        "grad_delta = tl.where(has(status, UPDATE), grad, 0.0)",
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
        "_neighbour(top + CHANNELS, status, 2)",
        "_neighbour(top, status, 1)",
    ),
    "transposed filters not negated": (
        "perceive.py",
        "return corners + 2 * (across_x + down_y)",
        "return -corners - 2 * (across_x + down_y)",
    ),
    "threshold not strict": ("step_forward.py", "(updated > threshold)", "(updated >= threshold)"),
    "cells born that were dead before": (
        "step_forward.py",
        "stored = tl.where(has(status, PRE), updated, 0.0)",
        "stored = updated",
    ),
    "post-update test dropped": (
        "finish.py",
        "alive = ((dilate(above, here, below) >> (column + OWN)) & 1 != 0) & inside",
        "alive = inside",
    ),
    "dead neighbours ignored": (
        "step_forward.py",
        "visible = has(status, INSIDE)",
        "visible = has(status, PRE)",
    ),
    "flags not told to the run on the left": ("alive.py", "mask=own_run > 0", "mask=own_run < 0"),
    "tiles skipped too eagerly": ("tile.py", "0x3FFC0", "0x0FF00"),
    "gradient through cells that died": ("step_backward.py", "((post & 1) ^ 1)", "(post & 0)"),
    "rectifier not differentiated": (
        "step_backward.py",
        "tl.where(hidden > 0, grad_hidden, 0.0)",
        "grad_hidden",
    ),
    "bias gradient lost": (
        "step_backward.py",
        "tl.load(partial_bias2_ptr), 0.0) + grad_bias2)",
        "tl.load(partial_bias2_ptr), 0.0))",
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


def complaints(folder: Path, device: torch.device, patch: pytest.MonkeyPatch) -> list[str]:
    """Run the probes on the kernels in `folder` and collect what the comparisons say."""
    module = load_copy(folder)
    for name in module.__all__:
        if hasattr(rollout, name):
            patch.setattr(rollout, name, getattr(module, name))
    found = threshold_errors(device) + halo_errors(device) + count_errors(device)
    for case in PROBES:
        if not found:
            problem = make_problem(case)
            found += violations(case, problem, run_kernels(case, problem, device))
    return found


def test_copy_passes(copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not complaints(copied, device, monkeypatch)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(
    mutant: str, copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, before, after = MUTANTS[mutant]
    text = (copied / file).read_text()
    assert text.count(before) == 1
    (copied / file).write_text(text.replace(before, after))
    assert complaints(copied, device, monkeypatch)
