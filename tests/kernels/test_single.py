"""Outputs and every gradient of a single step, which has kernels of its own."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.helpers import Case, make_problem, run_kernels, violations
from tests.kernels.test_rollout import CASES as ROLLOUTS

CASES = list(dict.fromkeys(replace(case, steps=1) for case in ROLLOUTS if case.steps))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_matches_reference(case: Case, device: torch.device) -> None:
    problem = make_problem(case)
    assert not violations(case, problem, run_kernels(case, problem, device))
