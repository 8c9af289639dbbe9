"""Cases, oracles and the error rule of the kernel tests.

The rule: the error against the reference in float64 is at most twice (forward) or three times
(gradients) the error of plain PyTorch with the same operand precision, plus a floor for results
that plain PyTorch happens to get right to the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout
from fastnca.cuda_graphs import ENVIRONMENT_VARIABLE
from fastnca.masks import update_mask
from fastnca.reference import NeuralCA
from fastnca.states import ALIVE_THRESHOLD

NAMES = ("state", "grad_state", "grad_w1", "grad_b1", "grad_w2", "grad_b2")
FACTORS = (2.0, 3.0, 3.0, 3.0, 3.0, 3.0)
FLOOR = {
    "ieee": 2e-7,
    "fp16": 2e-4,
    "bf16": 2e-3,
}  # relative to the largest element: a rounding or two
MARGIN = {
    "ieee": 1e-3,
    "fp16": 1e-2,
    "bf16": 2e-2,
}  # distance of neighbourhood maxima from the threshold
SEED = 0x9E3779B97F4A7C15  # above 2⁶³: the seed is an unsigned number
FIRST_STEP = 2**32 - 1  # the step number crosses a word of the counter


@dataclass(frozen=True)
class Case:
    """One comparison with the reference."""

    height: int
    width: int
    batch: int = 1
    channels: int = 16
    hidden: int = 16
    steps: int = 2
    precision: str = "ieee"
    rate: float | None = 0.5
    pattern: str = "patches"
    zero_initialised: bool = False
    calm: bool = False  # updates far smaller than the distance of alpha from the threshold

    def __str__(self) -> str:
        parts = [f"{self.batch}x{self.height}x{self.width}", self.precision]
        for field in fields(self)[3:]:
            value = getattr(self, field.name)
            if field.name != "precision" and value != field.default:
                parts.append(f"{field.name}={value}")
        return "-".join(parts)


@dataclass(frozen=True)
class Problem:
    """A case with numbers: float32 inputs, and what the float64 reference makes of them."""

    state: Tensor
    parameters: tuple[Tensor, ...]
    grad: Tensor
    exact: tuple[Tensor, ...]
    plain: tuple[Tensor, ...]


def alpha_of(case: Case, generator: torch.Generator) -> Tensor:
    """Return alpha `[B, H, W]`, far from the threshold where the pattern says so."""
    shape = (case.batch, case.height, case.width)
    high = torch.rand(shape, generator=generator) * 0.4 + 0.5
    low = -torch.rand(shape, generator=generator) * 0.4 - 0.1
    rows = torch.arange(case.height)[:, None]
    columns = torch.arange(case.width)[None, :]
    living = {
        "patches": torch.rand(shape, generator=generator) < 0.2,
        "dead": torch.zeros(shape, dtype=torch.bool),
        "alive": torch.ones(shape, dtype=torch.bool),
        "top": (rows == 0).expand(shape),
        "bottom": (rows == case.height - 1).expand(shape),
        "left": (columns == 0).expand(shape),
        "right": (columns == case.width - 1).expand(shape),
        "seed": ((rows == case.height // 2) & (columns == case.width // 2)).expand(shape),
    }[case.pattern]
    return torch.where(living, high, low)


def draw(case: Case, seed: int) -> tuple[NeuralCA, Tensor, Tensor]:
    """Draw a float64 model with float32 weights, a state and an output gradient."""
    generator = torch.Generator().manual_seed(seed)
    model = NeuralCA(case.channels, case.hidden).double()
    with torch.no_grad():
        for index, parameter in enumerate(model.update_net.parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if index < 2 else (0.01 if case.calm else 0.5) / case.hidden**0.5
            parameter.copy_(values * (0.0 if case.zero_initialised and index > 1 else scale))
    shape = (case.batch, case.channels, case.height, case.width)
    state = torch.randn(shape, generator=generator) * 0.5
    if case.pattern == "seed":
        state.zero_()
    state[:, 3] = alpha_of(case, generator)
    return model, state, torch.randn(shape, generator=generator)


def mask_of(case: Case, step: int) -> Tensor | float:
    """Return the mask `[B, 1, H, W]` of a step as a number."""
    if case.rate is None:
        return 1.0
    shape = (case.batch, case.channels, case.height, case.width)
    return update_mask(SEED, FIRST_STEP + step, shape, case.rate).double()


class _RoundedProduct(torch.autograd.Function):
    """A 1x1 convolution whose operands are rounded to `dtype`, also in its derivative."""

    @staticmethod
    def forward(ctx, x, weight, dtype):
        x, weight = x.to(dtype).float(), weight.to(dtype).float()
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return F.conv2d(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.to(ctx.dtype).float()
        grad_weight = torch.einsum("bohw,bihw->oi", grad, x)[:, :, None, None]
        return F.conv_transpose2d(grad, weight), grad_weight, None


def _plain_step(model: NeuralCA, state: Tensor, mask: Tensor | float, precision: str) -> Tensor:
    """Advance by one step in plain PyTorch with operands of the given precision."""
    if precision == "ieee":
        return model._step(state, mask)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    first, _, second = model.update_net
    hidden = _RoundedProduct.apply(model.perception(state), first.weight, dtype)
    hidden = torch.relu(hidden + first.bias[:, None, None])
    delta = _RoundedProduct.apply(hidden, second.weight, dtype) + second.bias[:, None, None]
    pre = model.get_alive_mask(state)
    state = state + delta * mask
    return state * (pre * model.get_alive_mask(state))


def _differentiate(model: NeuralCA, state: Tensor, grad: Tensor, step) -> tuple[Tensor, ...]:
    """Run `step` over a rollout and return the last state and the five gradients."""
    parameters = tuple(model.update_net.parameters())
    leaf = state.clone().requires_grad_()
    result = step(leaf)
    grads = torch.autograd.grad(result, (leaf, *parameters), grad, allow_unused=True)
    zeros = (leaf, *parameters)
    filled = (torch.zeros_like(z) if g is None else g for g, z in zip(grads, zeros, strict=True))
    return result.detach(), *filled


def _keeps_off(case: Case, values: Tensor) -> bool:
    """Whether every neighbourhood's largest alpha keeps its distance from the threshold."""
    highest = F.max_pool2d(values[:, 3:4], 3, stride=1, padding=1)
    return bool(((highest - ALIVE_THRESHOLD).abs() > MARGIN[case.precision]).all())


@torch.no_grad()
def _is_clear(case: Case, model: NeuralCA, values: Tensor) -> bool:
    """Whether the float64 rollout from `values` keeps off the threshold throughout."""
    for step in range(case.steps):
        mask = mask_of(case, step)
        updated = values + model.update_net(model.perception(values)) * mask
        if not (_keeps_off(case, values) and _keeps_off(case, updated)):
            return False
        values = model._step(values, mask)
    return True


@cache
def make_problem(case: Case) -> Problem:
    """Draw numbers for a case until all of its neighbourhoods keep off the threshold.

    The more cells and steps, the rarer they are; large cases have to be calm.
    """
    for seed in range(1 if case.calm else 1000):
        model, state, grad = draw(case, seed)
        if not _is_clear(case, model, state.double()):
            continue

        def rollout(values: Tensor, model: NeuralCA, precision: str) -> Tensor:
            for step in range(case.steps):
                mask = mask_of(case, step)
                mask = mask.to(values.dtype) if isinstance(mask, Tensor) else mask
                values = _plain_step(model, values, mask, precision)
            return values

        exact = _differentiate(
            model, state.double(), grad.double(), partial(rollout, model=model, precision="ieee")
        )
        model = model.float()
        plain = _differentiate(
            model, state, grad, partial(rollout, model=model, precision=case.precision)
        )
        parameters = tuple(p.detach() for p in model.update_net.parameters())
        return Problem(state, parameters, grad, exact, plain)
    raise AssertionError(f"no state of {case} keeps off the threshold")


@contextmanager
def without_graphs() -> Iterator[None]:
    """Launch the steps of every rollout, as `FASTNCA_GRAPHS=0` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, "0")
        yield


def run_kernels(
    case: Case,
    problem: Problem,
    device: torch.device,
    checkpoint_every: int = 1,
    rollout: bool = False,
):
    """Run the kernels on a problem and return what `Problem.exact` holds.

    A single step has kernels of its own, unless it is to be a `rollout` like any other.
    """
    state = problem.state.to(device).detach().requires_grad_()
    parameters = tuple(p.to(device).detach().requires_grad_() for p in problem.parameters)
    result = fused_rollout(
        state,
        parameters,
        steps=case.steps,
        seed=None if case.rate is None else SEED,
        first_step=FIRST_STEP,
        update_rate=0.5 if case.rate is None else case.rate,
        precision=case.precision,
        checkpoint_every=checkpoint_every,
        device_steps=torch.tensor(case.steps, device=device) if rollout else None,
    )
    grads = torch.autograd.grad(result, (state, *parameters), problem.grad.to(device))
    return result.detach(), *grads


def violations(case: Case, problem: Problem, found: tuple[Tensor, ...]) -> list[str]:
    """List the results that break the error rule."""
    broken = []
    for name, factor, got, exact, plain in zip(
        NAMES, FACTORS, found, problem.exact, problem.plain, strict=True
    ):
        difference = (got.cpu().double() - exact).abs()
        allowed = factor * (plain.double() - exact).abs().max()
        allowed += FLOOR[case.precision] * exact.abs().max()
        if not difference.max() <= allowed:
            where = torch.unravel_index(difference.argmax(), difference.shape)
            broken.append(
                f"{name}: error {difference.max():.2e} at {tuple(int(i) for i in where)}, "
                f"allowed {allowed:.2e}, rms {difference.square().mean().sqrt():.2e}"
            )
    return broken
