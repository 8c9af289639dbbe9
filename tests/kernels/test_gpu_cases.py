"""What the tests on a GPU need can be made without one, in seconds."""

import pytest
import torch

from tests.kernels.gpu_cases import GPU_CASES, gradients, launched, make_tensors
from tests.kernels.helpers import NAMES, Case, make_problem, violations


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_every_case_can_be_made(case: Case) -> None:
    """With life and death, and a result that plain PyTorch in the same precision gets right."""
    problem = make_problem(case)
    assert len(problem.exact) == len(NAMES)
    living = (problem.exact[0] != 0).any(1).double().mean()
    assert 0.2 < living < 1
    assert all(bool(exact.any()) for exact in problem.exact)
    assert not violations(case, problem, problem.plain)


def test_a_single_step_rounds_otherwise_than_a_rollout_of_one() -> None:
    """So tests on a GPU compare like with like."""
    state, parameters = make_tensors(1, 8)
    single, rollout, again = (
        gradients(state, parameters, 1, seed=7),
        launched(state, parameters, 1, seed=7, rollout=True),
        gradients(state, parameters, 1, seed=7, device_steps=torch.tensor(1, device=state.device)),
    )
    assert torch.equal(single[0], rollout[0])
    assert not torch.equal(single[1], rollout[1])
    assert (single[1] - rollout[1]).abs().max() <= 2e-2 * rollout[1].abs().max()
    assert all(torch.equal(a, b) for a, b in zip(rollout, again, strict=True))
