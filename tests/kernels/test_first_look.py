"""A few rollouts and every gradient, the tutorial's rule in each precision and the texture rule.

On a CUDA GPU these come first: they say in seconds whether the kernels compile and compute.
"""

from dataclasses import replace

import pytest
import torch

from fastnca.rule import CHANNELS, RULES
from tests.kernels.helpers import Case, make_problem, run_kernels, violations
from tests.kernels.variant_cases import Variant, make_variant, run_variant, variant_violations

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
CASES = [
    Case(33, 17, batch=2, precision=precision, steps=steps, hidden=128, calm=True)
    for precision in ("fp16", "bf16", "ieee")
    for steps in (1, 3, 8)
]
INTERPRETED = [Case(9, 9, precision=precision, steps=2) for precision in ("fp16", "ieee")]
TEXTURE = Variant(RULES["texture"], CHANNELS["texture"], 33, 17, batch=2, steps=3, precision="fp16")


@pytest.mark.parametrize("case", CASES if CUDA else INTERPRETED, ids=str)
def test_the_tutorials_rule(case):
    problem = make_problem(case)
    assert violations(case, problem, run_kernels(case, problem, DEVICE)) == []


def test_a_rule_without_an_alive_test():
    case = TEXTURE if CUDA else replace(TEXTURE, height=9, width=9, batch=1, steps=2)
    variant = make_variant(case)
    assert variant_violations(case, variant, run_variant(case, variant, DEVICE)) == []
