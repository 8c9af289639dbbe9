"""Outputs and every gradient of the kernels against the reference."""

import pytest
import torch

from tests.kernels.helpers import Case, make_problem, run_kernels, violations

GRIDS = [(1, 1), (1, 5), (5, 1), (2, 3), (3, 3), (7, 7), (8, 8), (9, 9), (7, 9), (9, 7)]
BORDERS = ["top", "bottom", "left", "right"]

CASES = [
    *(Case(h, w, precision=p) for h, w in GRIDS for p in ("ieee", "fp16")),
    *(Case(h, w, batch=3, precision="fp16") for h, w in [(1, 1), (1, 9), (9, 1), (5, 11)]),
    *(Case(9, 10, pattern=p, precision=q) for p in BORDERS for q in ("ieee", "fp16")),
    *(Case(h, w, pattern=p) for p in ("dead", "alive") for h, w in [(1, 1), (6, 10)]),
    *(Case(h, w, rate=None, precision="fp16") for h, w in [(1, 9), (9, 1), (8, 9)]),
    *(Case(5, 9, rate=r) for r in (0.0, 0.1, 1.0, None)),
    *(Case(h, w, precision="fp16") for h, w in [(15, 7), (16, 8), (17, 9), (15, 17)]),
    *(Case(6, 9, channels=c, precision="fp16") for c in (4, 5, 12, 17, 32)),
    *(Case(5, 9, hidden=h, precision="fp16") for h in (20, 64, 100, 128)),
    Case(4, 8, hidden=128),
    Case(4, 5, channels=32, hidden=64),
    Case(9, 9, pattern="seed", zero_initialised=True, steps=1),
    Case(9, 9, pattern="seed", zero_initialised=True, steps=1, precision="fp16"),
    Case(9, 9, pattern="seed", rate=None),
    Case(17, 33, pattern="seed", precision="fp16"),
    Case(9, 9, batch=3, steps=4),
    Case(6, 6, steps=6, precision="fp16"),
    Case(5, 5, steps=0),
]


@pytest.mark.one_in(20)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rollout_matches_reference(case: Case, device: torch.device) -> None:
    problem = make_problem(case)
    found = run_kernels(case, problem, device, rollout=case.steps == 1)
    assert not violations(case, problem, found)


def test_there_are_enough_cases() -> None:
    assert len(set(CASES)) == len(CASES) >= 60
