"""The autograd node of a rollout on active cells."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastnca.backends.autograd import (
    Grads,
    first_order_only,
    refuse_forward_mode,
    refuse_tangents,
    savable,
)
from fastnca.backends.torch_active.backward import run_backward
from fastnca.backends.torch_active.forward import Stepper, StepRecord
from fastnca.backends.torch_active.grid import Grid
from fastnca.checks import Parameters, check_rollout
from fastnca.rule import TUTORIAL, Rule

_RECORD = 5  # tensors of a StepRecord


def active_rollout(
    state: Tensor,
    parameters: Parameters,
    masks: Iterable[Tensor | None],
    rule: Rule = TUTORIAL,
) -> Tensor:
    """Advance a state by one step per mask, as one autograd node.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides.
        parameters: what the steps compute with, as `recognition.parameters_of` orders it, of the
            state's dtype and device.
        masks: `[B, H, W]` bool each, True where a cell updates; None for every cell.
        rule: what a step computes.

    Returns:
        `[B, C, H, W]`, contiguous.

    Raises:
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation.
        OutOfRangeError: a value left the range in which active cells are exact.
        TypeError: a dtype or a layout does not fit.
        ValueError: a shape or a device does not fit.
    """
    check_rollout(state, parameters, rule)
    refuse_tangents("torch", (state, *parameters))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (state, *parameters)):
        result: Tensor = _Rollout.apply(masks, rule, savable(state), *parameters)
        return result
    return _run(state, parameters, masks, rule, keep=False)[0]


def _run(
    state: Tensor,
    parameters: Parameters,
    masks: Iterable[Tensor | None],
    rule: Rule,
    keep: bool,
) -> tuple[Tensor, Grid, Tensor, list[StepRecord]]:
    """Advance a state; return the last one, its grid and rows, and a record per step if wanted."""
    with torch.no_grad():
        batch, _, height, width = state.shape
        grid = Grid(batch, height, width, state.device, rule.padding)
        rows = grid.to_rows(state)
        records = Stepper(grid, rule, parameters, rows).run(masks, keep)
        return grid.to_state(rows), grid, rows, records


class _Rollout(torch.autograd.Function):
    """Forward: all steps on active cells. Backward: undo and differentiate them one by one."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        masks, ctx.rule, state, *parameters = arguments
        result, ctx.grid, rows, records = _run(state, tuple(parameters), masks, ctx.rule, keep=True)
        kept = [tensor for record in records for tensor in record.tensors()]
        ctx.parameters = len(parameters)
        ctx.save_for_backward(state, *parameters, rows, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors[: 1 + ctx.parameters]
        rows, *kept = ctx.saved_tensors[1 + ctx.parameters :]
        wanted = ctx.needs_input_grad[2:]

        def compute(grad_output: Tensor) -> Grads:
            records = [
                StepRecord(*kept[start : start + _RECORD]) for start in range(0, len(kept), _RECORD)
            ]
            grad = ctx.grid.to_rows(grad_output)
            grads = run_backward(
                ctx.grid,
                ctx.rule,
                inputs[1:],
                rows.clone(),
                grad,
                records,
                weights_wanted=any(wanted[1:]),
                state_wanted=wanted[0],
            )
            return ctx.grid.to_state(grad), *grads

        grads = first_order_only("torch", compute, grad_outputs[0], *inputs)
        return None, None, *(g if need else None for g, need in zip(grads, wanted, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("torch")
