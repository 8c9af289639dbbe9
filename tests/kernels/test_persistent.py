"""The kernel that takes all steps in one launch gives the bits of the kernel that takes one.

In the interpreter programs run one after the other, so a group is one program and its barrier
lets it through; `test_gpu.py` has programs that really wait.
"""

import pytest
import torch
from torch import Tensor

from fastnca.fused import fused_rollout
from fastnca.kernels.persistent import choose_groups
from tests.kernels.helpers import SEED, Case, make_problem

CASES = [
    Case(1, 1, precision="fp16", steps=1),
    Case(9, 10, precision="fp16", steps=3, hidden=20),
    Case(5, 9, batch=3, steps=2, rate=None),
    Case(9, 9, pattern="top", steps=0),
]


def outcome(case: Case, device: torch.device, **options) -> tuple[Tensor, ...]:
    problem = make_problem(case)
    state = problem.state.to(device).detach().requires_grad_()
    parameters = tuple(p.to(device).detach().requires_grad_() for p in problem.parameters)
    result = fused_rollout(
        state,
        parameters,
        steps=case.steps,
        seed=None if case.rate is None else SEED,
        first_step=3,
        update_rate=0.5,
        precision=case.precision,
        **options,
    )
    weight = torch.linspace(-1, 1, result.numel(), device=device).view_as(result)
    return result.detach(), *torch.autograd.grad((result * weight).sum(), (state, *parameters))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_launch_gives_the_bits_of_many(case: Case, device: torch.device) -> None:
    found = outcome(case, device, persistent=True)
    expected = outcome(case, device, replay=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_two_slots_take_turns_without_gradient(steps: int, device: torch.device) -> None:
    problem = make_problem(Case(9, 10, precision="fp16", steps=3, hidden=20))
    state, parameters = problem.state.to(device), tuple(p.to(device) for p in problem.parameters)
    settings = {"seed": 3, "first_step": 0, "update_rate": 0.5, "precision": "fp16"}
    with torch.no_grad():
        found = fused_rollout(state, parameters, steps=steps, persistent=True, **settings)
        expected = fused_rollout(state, parameters, steps=steps, **settings)
    assert torch.equal(found, expected)


def test_step_count_on_the_device(device: torch.device) -> None:
    case = Case(1, 1, precision="fp16", steps=3)
    count = torch.tensor(2, device=device)
    found = outcome(case, device, persistent=True, count=count)
    expected = outcome(Case(1, 1, precision="fp16", steps=3), device, count=count, replay=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_checkpoints_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="checkpoint_every=1"):
        outcome(Case(1, 1), device, persistent=True, checkpoint_every=2)


@pytest.mark.parametrize(
    ("batch", "tiles", "programs", "expected"),
    [(8, 64, 264, (8, 33)), (4, 2, 264, (4, 2)), (264, 64, 264, (264, 1)), (999, 4, 264, (264, 1))],
)
def test_programs_are_shared_among_grids(batch, tiles, programs, expected) -> None:
    assert choose_groups(batch, tiles, programs, waits=True) == expected
    assert choose_groups(batch, tiles, programs, waits=False) == (expected[0], 1)
