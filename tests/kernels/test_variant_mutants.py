"""Deliberate mistakes in what the kernels compute for rules that are not the tutorial's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastnca.backends.triton_fused import loops
from fastnca.backends.triton_fused.buffers import allocate_states
from fastnca.backends.triton_fused.settings import RolloutSettings
from fastnca.kernels import flag_shape
from fastnca.rule import Rule
from tests.kernels import variant_scenarios as scenarios
from tests.kernels.copies import copied_kernels
from tests.kernels.variant_cases import (
    LAPLACIAN8,
    X8,
    Variant,
    make_variant,
    run_variant,
    variant_violations,
)
from tests.kernels.variant_mutants import VARIANT_MUTANTS
from tests.rule_cases import EVEN, ODD, SKEW

OVERFLOWS = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter

FREE = (SKEW, EVEN, ODD, "sobel_x")
WRAPS = {"padding": "circular", "hidden": (16,)}
EVERY = {"alive": "none", "hidden": (16,)}

PROBES = [
    Variant(Rule(FREE, final_bias=False, inputs=1, **WRAPS), 6, 5, 9),
    Variant(Rule((EVEN, SKEW), **WRAPS), 4, 4, 25, precision="fp16", pattern="left"),
    Variant(Rule(("laplacian", ODD), inputs=3, **EVERY), 7, 5, 9, precision="fp16", rate=None),
    Variant(Rule(("identity", X8, LAPLACIAN8), padding="circular", **EVERY), 3, 3, 5),
    Variant(Rule(FREE, inputs=2, **WRAPS), 6, 5, 25, precision="fp16", pattern="left"),
    Variant(Rule((EVEN,), **WRAPS), 4, 34, 3, precision="fp16", pattern="top", rate=None),
    Variant(Rule((ODD, EVEN), **WRAPS), 4, 17, 5, precision="fp16", pattern="bottom"),
    Variant(Rule((ODD, EVEN), **WRAPS), 4, 5, 16, precision="fp16", pattern="right"),
]


def _guarded(state: Tensor, settings: RolloutSettings) -> tuple[Tensor, Tensor]:
    """Allocate states with NaN behind them, and flags, of no cell, where a rule needs none too.

    A kernel that reads where it must not is noticed instead of reading whatever is there.
    """
    states, flags = allocate_states(state, settings)
    memory = states.new_full((3 * states.numel(),), float("nan"))
    if flags.numel() == 0:
        words = flag_shape(*state.shape[2:])
        flags = flags.new_zeros(*states.shape[:2], *words)
    return memory[: states.numel()].view_as(states), flags


@contextmanager
def guarded_memory() -> Iterator[None]:
    """Let rollouts have the memory that `_guarded` allocates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "allocate_states", _guarded)
        yield


def case_errors(case: Variant, device: torch.device) -> list[str]:
    """Compare a case with the oracle."""
    problem = make_variant(case)
    return variant_violations(case, problem, run_variant(case, problem, device))


def complaints(device: torch.device) -> list[str]:
    """Return what the first comparison says that finds something."""
    with guarded_memory():
        for case in PROBES:
            if found := case_errors(case, device):
                return found
        return scenarios.reach_errors(device) or scenarios.input_overflow_errors(device)


@pytest.mark.long
@OVERFLOWS
def test_variant_copy_passes(tmp_path: Path, device: torch.device) -> None:
    with copied_kernels(tmp_path, "copy"):
        assert not complaints(device)


@pytest.mark.long
@OVERFLOWS
@pytest.mark.parametrize("mutant", VARIANT_MUTANTS)
def test_variant_mutant_is_caught(mutant: str, tmp_path: Path, device: torch.device) -> None:
    with copied_kernels(tmp_path, mutant, VARIANT_MUTANTS[mutant]):
        assert complaints(device)
