"""Deliberate mistakes in the kernels, each of which the comparisons must notice."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastnca.backends.triton_fused.nodes
import fastnca.kernels
from fastnca.backends.triton_fused import settings, single_step
from tests.kernels.helpers import Case, make_problem, run_kernels, violations
from tests.kernels.mutants import MUTANTS, SINGLE_MUTANTS
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
HOST = fastnca.backends.triton_fused.__name__

PROBES = [
    Case(9, 17, precision="fp16"),
    Case(5, 9, pattern="left", rate=0.5, steps=2),
]

SINGLE_PROBES = [
    Case(9, 17, precision="fp16", steps=1),
    Case(17, 9, precision="fp16", pattern="top", steps=1),
    Case(5, 9, pattern="left", rate=None, steps=1),
]


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
    settings.kernel_rule.cache_clear()  # of rules that the copy has made


def load_patched(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the host use the kernels in `folder` wherever it uses the shipped ones."""
    copy = load_copy(folder)
    shipped = {id(getattr(fastnca.kernels, name)): name for name in copy.__all__}
    hosts = [module for name, module in sys.modules.items() if name.startswith(HOST)]
    for host in hosts:
        for name, value in list(vars(host).items()):
            if value is fastnca.kernels:
                patch.setattr(host, name, copy)
            elif id(value) in shipped:
                patch.setattr(host, name, getattr(copy, shipped[id(value)]))
    settings.kernel_rule.cache_clear()
    patch.setattr(single_step, "_prepared", {})


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


@OVERFLOWS
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(
    mutant: str, copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTANTS[mutant].apply(mutant, copied)
    assert complaints(copied, device, monkeypatch)


@OVERFLOWS
@pytest.mark.parametrize("mutant", SINGLE_MUTANTS)
def test_single_mutant_is_caught(
    mutant: str, copied: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    SINGLE_MUTANTS[mutant].apply(mutant, copied)
    assert single_complaints(copied, device, monkeypatch)
