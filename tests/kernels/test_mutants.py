"""Deliberate mistakes in the kernels, each of which the comparisons must notice."""

from pathlib import Path

import pytest
import torch

from tests.kernels.copies import copied_kernels
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

PROBES = [
    Case(9, 17, precision="fp16"),
    Case(5, 9, pattern="left", rate=0.5, steps=2),
]

SINGLE_PROBES = [
    Case(9, 17, precision="fp16", steps=1),
    Case(17, 9, precision="fp16", pattern="top", steps=1),
    Case(5, 9, pattern="left", rate=None, steps=1),
]


def complaints(device: torch.device) -> list[str]:
    """Run the probes of rollouts; collect what comparisons say."""
    _, form = forms(device)
    found = threshold_errors(device, form) + halo_errors(device, form)
    found += count_errors(device) + reach_errors(device)
    for case in PROBES:
        if not found:
            problem = make_problem(case)
            found += violations(case, problem, run_kernels(case, problem, device))
    return found or not_finite_errors(device, form)


def single_complaints(device: torch.device) -> list[str]:
    """Do the same with the probes of single steps."""
    form, _ = forms(device)
    found = threshold_errors(device, form) + border_errors(device, form)
    found += halo_errors(device, form) + halo_errors(device, form, down=True)
    for case in SINGLE_PROBES:
        if not found:
            problem = make_problem(case)
            found += violations(case, problem, run_kernels(case, problem, device))
    found = found or scale_errors(device) + overflow_errors(device)
    return found or not_finite_errors(device, form)


@pytest.mark.long
@OVERFLOWS
def test_copy_passes(tmp_path: Path, device: torch.device) -> None:
    with copied_kernels(tmp_path, "copy"):
        assert not complaints(device)


@pytest.mark.long
@OVERFLOWS
def test_single_copy_passes(tmp_path: Path, device: torch.device) -> None:
    with copied_kernels(tmp_path, "copy"):
        assert not single_complaints(device)


@pytest.mark.long
@OVERFLOWS
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant: str, tmp_path: Path, device: torch.device) -> None:
    with copied_kernels(tmp_path, mutant, MUTANTS[mutant]):
        assert complaints(device)


@pytest.mark.long
@OVERFLOWS
@pytest.mark.parametrize("mutant", SINGLE_MUTANTS)
def test_single_mutant_is_caught(mutant: str, tmp_path: Path, device: torch.device) -> None:
    with copied_kernels(tmp_path, mutant, SINGLE_MUTANTS[mutant]):
        assert single_complaints(device)
