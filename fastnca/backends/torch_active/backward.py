"""Steps backward: undo each step, differentiate it on the cells that it updated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnca.backends.torch_active.forward import StepRecord, parts, updated
from fastnca.backends.torch_active.grid import Grid, indices, put
from fastnca.checks import Parameters
from fastnca.rule import Rule


def run_backward(
    grid: Grid,
    rule: Rule,
    parameters: Parameters,
    rows: Tensor,
    grad: Tensor,
    records: Sequence[StepRecord],
    weights_wanted: bool,
    state_wanted: bool,
) -> tuple[Tensor, ...]:
    """Differentiate a rollout.

    E8 to E12 of every step, on the cells that were updated and are alive afterwards. The
    transposed filters of E12 are gathered by the cells that receive a gradient, in a fixed order,
    so repetition gives the same bits.

    Args:
        grid: the geometry.
        rule: what a step computes.
        parameters: what it computes with, as `recognition.parameters_of` orders it.
        rows: `[N, C]`, the state after the last step; turned back into the first state.
        grad: `[N, C]`, gradient of the last state; turned into the gradient of the first state
            if `state_wanted`.
        records: what each step overwrote, first step first.
        weights_wanted: whether the gradients of the parameters are needed.
        state_wanted: whether the gradient of the first state is needed.

    Returns:
        The gradients of the parameters.
    """
    filters, network = parts(grid, rule, parameters, rows)
    sums = network.gradients(weights_wanted)
    own = rows.shape[1] - rule.inputs
    features = rows.shape[1] * len(rule.filters)
    guarded = rows.new_zeros(grid.cells + 2 * filters.guard, features)
    grad_features = guarded[filters.guard : filters.guard + grid.cells]
    sent = grid.plane()
    reached = torch.empty_like(sent.flags)
    if records and rule.alive != "none":
        grad[:, :own] *= records[-1].alive[:, None]  # E8
    for step in reversed(range(len(records))):
        record = records[step]
        record.undo(rows)
        grid.fill_margin(rows)
        live = record.cells  # where δ of E9 may be other than zero
        if rule.alive != "none":
            live = live[record.alive.index_select(0, live)]
        if live.shape[0]:
            perceived = filters.perceive(rows, live)
            grad_own = grad.index_select(0, live)[:, :own]
            if rule.clamp is not None:
                new = updated(rule, rows.index_select(0, live), network.delta(perceived))[:, :own]
                grad_own = grad_own * ((new >= rule.clamp[0]) & (new <= rule.clamp[1]))  # E8
                grad_live = grad.index_select(0, live)
                grad_live[:, :own] = grad_own
                put(grad, live, grad_live)
            if rule.step_size != 1.0:
                grad_own = grad_own * rule.step_size  # E9
            grad_live = sums.add(perceived, grad_own.contiguous())  # E9 to E11
            if weights_wanted:
                filters.add_grad(rows, live, grad_live)
        first = step == 0
        if first and not state_wanted:
            break
        before = grid.interior if first else records[step - 1].alive
        if live.shape[0]:
            sent.flags.index_fill_(0, live, True)
            receivers = indices(_receivers(grid, rule, sent.spread(reached), before))
            sent.flags.index_fill_(0, live, False)
            put(grad_features, live, grad_live)
            received = filters.perceive_grad(guarded, receivers)  # E12
            received += grad.index_select(0, receivers)
            put(grad, receivers, received)
            put(grad_features, live, None)
            grid.fold_margin(grad)
        if first or rule.alive == "none":
            continue
        if rule.inputs or grid.padding != "zeros":
            grad[:, :own] *= before[:, None]  # E8 of the step before
        else:
            put(grad, indices(record.alive > before), None)  # the same
    learned = filters.grad()
    found = sums.to_parameters()
    return found if learned is None else (learned, *found)


def _receivers(grid: Grid, rule: Rule, reached: Tensor, before: Tensor) -> Tensor:
    """Return which rows take a gradient, `[N]` bool.

    Args:
        grid: the geometry.
        rule: what a step computes.
        reached: `[N]` bool, rows that a sender perceives, those of the margin included.
        before: `[N]` bool, cells that are alive before the step.
    """
    if grid.padding != "zeros":  # the margin's gradient is folded back
        return reached
    return reached.bitwise_and_(grid.interior if rule.inputs else before)
