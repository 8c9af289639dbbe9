"""The kernel that takes all steps in one launch gives the bits of the kernel that takes one.

In the interpreter programs run one after the other, so a group is one program and its barrier
lets it through; `test_persistent_gpu.py` has programs that really wait.
"""

import pytest
import torch

from fastnca.backends.triton_fused.experimental import persistent_rollout
from fastnca.backends.triton_fused.plan import make_plan
from fastnca.backends.triton_fused.rollout import run_forward
from fastnca.kernels.persistent import choose_groups, choose_persistent
from tests.kernels.helpers import Case, make_problem

CASES = [
    Case(1, 1, precision="fp16", steps=1),
    Case(9, 10, precision="fp16", steps=3, hidden=20),
    Case(5, 9, batch=3, steps=2, rate=None),
    Case(9, 9, pattern="top", steps=0),
]


def compare(case: Case, device: torch.device, keep: bool, steps: int | None = None) -> None:
    """Compare the last state, and every stored state with its flags, bit for bit.

    Args:
        case: the rollout.
        device: where it runs.
        keep: whether every state is stored.
        steps: how many of the case's steps are taken, read on the device; None takes all.
    """
    problem = make_problem(case)
    state, parameters = problem.state.to(device), tuple(p.to(device) for p in problem.parameters)
    seed = None if case.rate is None else -5
    count = None if steps is None else torch.tensor(steps, device=device)
    options = {"first_step": 3, "precision": case.precision, "count": count, "keep": keep}
    found, stored = persistent_rollout(state, parameters, steps=case.steps, seed=seed, **options)
    plan = make_plan(case.steps, 0.5, case.precision, 1, keep, seed is not None)
    numbers = (seed or 0, 3, case.steps, count)
    expected, launched = run_forward(state, parameters, plan, numbers=numbers)
    assert torch.equal(found, expected)
    written = plan.slots if steps is None else steps + 1
    assert torch.equal(stored.states[:written], launched.states[:written])
    assert torch.equal(stored.flags[:written], launched.flags[:written])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_launch_gives_the_bits_of_many(case: Case, device: torch.device) -> None:
    compare(case, device, keep=True)


@pytest.mark.parametrize("case", [case for case in CASES if case.steps], ids=str)
def test_two_slots_take_turns(case: Case, device: torch.device) -> None:
    compare(case, device, keep=False)


def test_step_count_on_the_device(device: torch.device) -> None:
    compare(Case(1, 1, precision="fp16", steps=3), device, keep=True, steps=2)


@pytest.mark.parametrize(
    ("batch", "tiles", "programs", "expected"),
    [(8, 64, 264, (8, 33)), (4, 2, 264, (4, 2)), (264, 64, 264, (264, 1)), (999, 4, 264, (264, 1))],
)
def test_programs_are_shared_among_grids(batch, tiles, programs, expected) -> None:
    assert choose_groups(batch, tiles, programs, waits=True) == expected
    assert choose_groups(batch, tiles, programs, waits=False) == (expected[0], 1)


def test_programs_that_fit_a_consumer_gpu() -> None:
    """Two programs of 57 KiB would not be resident together in 99 KiB."""
    half, single = torch.float16, torch.float32
    assert choose_persistent(16, 128, half, processors=10).programs == 20
    assert choose_persistent(32, 128, half, processors=10).programs == 10
    assert choose_persistent(16, 128, single, processors=10).programs == 10
