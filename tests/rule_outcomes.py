"""Outcomes of a rollout, state and every gradient: a model's, the oracle's, the difference."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fastnca.masks import update_masks
from fastnca.rule import Rule
from tests import rule_oracle
from tests.helpers import relative_error
from tests.rule_cases import Case, Grid

EXACT = 1e-10


@dataclass(frozen=True)
class Outcome:
    state: Tensor
    gradients: dict[str, Tensor]


def differentiate(state: Tensor, end: Tensor, parameters: dict[str, Tensor]) -> Outcome:
    """Differentiate a loss that reaches every value of `end`, by the state and by parameters."""
    draws = torch.Generator().manual_seed(7)
    ramp = torch.randn(end.shape, generator=draws, dtype=end.dtype)
    ((end * ramp).sum() + end.square().sum() / 2).backward()
    found = {name: each.grad for name, each in parameters.items() if each.grad is not None}
    return Outcome(end.detach(), {"state": state.grad, **found})


def compute(model: torch.nn.Module, state: Tensor, grid: Grid, seed: int) -> Outcome:
    """Roll out a model."""
    state = state.clone().requires_grad_()
    model.train(grid.training).zero_grad()
    end = model.run_steps(state, grid.steps, 0.5, seed=seed, first_step=seed % 4)
    return differentiate(state, end, dict(model.named_parameters()))


def draw_masks(grid: Grid, seed: int) -> Tensor:
    """Return which cells update in `compute`: `[T, B, H, W]` bool."""
    shape = grid.batch, 1, *grid.size
    return update_masks(seed, seed % 4, grid.steps, shape, 0.5 if grid.training else 1.0)


def expect(rule: Rule, weights: dict[str, Tensor], state: Tensor, grid: Grid, seed: int) -> Outcome:
    """Roll out the oracle."""
    state = state.clone().requires_grad_()
    parameters = {
        name: tensor.clone().requires_grad_(rule.learn_filters or name != "perception.filters")
        for name, tensor in weights.items()
    }
    end = rule_oracle.rollout(state, rule, parameters, draw_masks(grid, seed))
    return differentiate(state, end, parameters)


@cache
def expected(case: Case, grid: Grid) -> Outcome:
    """Roll out the oracle once for all backends."""
    return expect(case.rule, case.weights(), case.state(grid), grid, case.number)


def errors(found: Outcome, right: Outcome) -> dict[str, float]:
    """Return the relative errors of state and gradients; infinite for one that cannot be one."""
    one = {"end": found.state, **found.gradients}
    other = {"end": right.state, **right.gradients}
    return {
        name: relative_error(one[name], other[name])
        if name in one and name in other and one[name].shape == other[name].shape
        else float("inf")
        for name in one.keys() | other.keys()
    }
