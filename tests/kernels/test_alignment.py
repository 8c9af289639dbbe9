"""Tensors of the caller's may begin at any number of their memory; the package's own may not."""

import importlib
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnca.kernels
from fastnca.backends.triton_fused import fused_rollout
from fastnca.backends.triton_fused.buffers import ALIGNMENT, aligned
from tests.kernels.conftest import INTERPRETED
from tests.kernels.helpers import FIRST_STEP, SEED, Case, make_problem, run_kernels

CALLERS = {"state_ptr", "grad_ptr", "w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "seed_ptr", "steps_ptr"}
RESULTS = {("_end_forward_kernel", "state_ptr")}  # the package allocates them


def kernels() -> dict[str, Any]:
    """Return every kernel that is launched, by name."""
    found = {}
    for module in pkgutil.iter_modules(fastnca.kernels.__path__):
        for name, value in vars(importlib.import_module(f"fastnca.kernels.{module.name}")).items():
            if name.endswith("_kernel") and hasattr(value, "arg_names"):
                found[name] = value
    return found


def test_kernels_take_no_alignment_of_callers_tensors_for_granted() -> None:
    found = set()
    for name, kernel in kernels().items():
        options = kernel.kwargs if INTERPRETED else vars(kernel)
        taken = CALLERS & set(kernel.arg_names)
        taken -= {argument for result, argument in RESULTS if result == name}
        assert taken <= set(options["do_not_specialize_on_alignment"] or ()), name
        found |= taken
    assert found == CALLERS


def misaligned(tensor: Tensor) -> Tensor:
    """Return a copy that begins one number after the start of an allocation."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    copy = memory[1:].view(tensor.shape).copy_(tensor.detach())
    assert copy.data_ptr() % ALIGNMENT
    return copy


@pytest.mark.one_in(2)
@pytest.mark.parametrize("steps", [1, 3])
def test_callers_tensors_begin_anywhere(steps: int, device: torch.device) -> None:
    case = Case(9, 10, precision="fp16", steps=steps)
    problem = make_problem(case)
    expected = run_kernels(case, problem, device)
    moved = [misaligned(t.to(device)) for t in (problem.state, *problem.parameters, problem.grad)]
    *leaves, grad = moved
    leaves = [leaf.requires_grad_() for leaf in leaves]
    options = {"steps": steps, "precision": "fp16", "update_rate": 0.5}
    result = fused_rollout(
        leaves[0], tuple(leaves[1:]), seed=SEED, first_step=FIRST_STEP, **options
    )
    found = result.detach(), *torch.autograd.grad(result, leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("steps", [1, 3])
def test_saved_tensors_that_a_hook_moved(steps: int, device: torch.device) -> None:
    case = Case(9, 10, precision="fp16", steps=steps)
    problem = make_problem(case)
    expected = run_kernels(case, problem, device)
    with torch.autograd.graph.saved_tensors_hooks(misaligned, lambda tensor: tensor):
        found = run_kernels(case, problem, device)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_aligned_copies_only_what_must_move() -> None:
    tensor = torch.arange(8.0)
    assert aligned(tensor) is tensor
    moved = aligned(tensor[1:])
    assert moved.data_ptr() % ALIGNMENT == 0
    assert torch.equal(moved, tensor[1:])
