"""What the tests on a GPU compute: cases large enough for it, and rollouts with their gradients."""

import torch
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout
from fastnca.rule import TUTORIAL, Rule
from tests.kernels.helpers import Case, without_graphs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

GPU_CASES = [
    Case(9, 17, precision="bf16"),
    Case(16, 8, batch=3, precision="bf16", hidden=128),
    Case(7, 9, precision="bf16", channels=32, hidden=64, rate=None),
    Case(64, 64, batch=8, hidden=128, precision="bf16", steps=1, calm=True),
    Case(64, 64, batch=8, hidden=128, precision="fp16", steps=1, calm=True),
    Case(65, 63, batch=5, hidden=128, precision="fp16", steps=1, calm=True),
    Case(65, 63, batch=5, hidden=128, precision="fp16", steps=3, calm=True),
    Case(65, 63, batch=5, hidden=128, precision="ieee", steps=2, calm=True),
]
"""Bfloat16, which the interpreter multiplies wrongly, and grids of many tiles and programs."""


def make_tensors(
    batch: int, size: int, seed: int = 0, rule: Rule = TUTORIAL, channels: int = 16
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draw a state with patches of life and a network of the rule, the tutorial's by default."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    options = {"generator": generator, "device": DEVICE}
    state = torch.randn(batch, channels, size, size, **options) * 0.3
    _, *shapes = rule.shapes(channels).values()  # the filters are fixed
    return state, tuple(torch.randn(shape, **options) * 0.05 for shape in shapes)


def gradients(
    state: Tensor,
    parameters: tuple[Tensor, ...],
    steps: int,
    seed: int | Tensor,
    device_steps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a rollout and differentiate its squared sum; one step has kernels of its own."""
    leaves = [tensor.detach().requires_grad_() for tensor in (state, *parameters)]
    result = fused_rollout(
        leaves[0],
        tuple(leaves[1:]),
        steps=steps,
        seed=seed,
        first_step=0,
        update_rate=0.5,
        precision="fp16",
        device_steps=device_steps,
    )
    return result.detach(), *torch.autograd.grad(result.square().sum(), leaves)


def launched(
    state: Tensor,
    parameters: tuple[Tensor, ...],
    steps: int,
    seed: int,
    rollout: bool = False,
) -> tuple[Tensor, ...]:
    """Do the same launch by launch; a single step as a `rollout` like any other, if asked to."""
    count = torch.tensor(steps, device=state.device) if rollout else None
    with without_graphs():
        return gradients(state, parameters, steps, seed, count)
