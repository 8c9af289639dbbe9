"""Steps backward: undo each step, differentiate it on the cells that it updated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnca.backends.torch_active.forward import StepRecord
from fastnca.backends.torch_active.grid import Grid, indices, put
from fastnca.backends.torch_active.network import Network, NetworkGrad, stencil


def run_backward(
    grid: Grid,
    network: Network,
    rows: Tensor,
    grad: Tensor,
    records: Sequence[StepRecord],
    weights_wanted: bool,
    state_wanted: bool,
) -> NetworkGrad:
    """Differentiate a rollout.

    With g = ∂L/∂s' of one step, on the cells that were updated and are alive afterwards:

        ∂L/∂ŝ = g ⊙ alive,   ∂L/∂s = ∂L/∂ŝ + Σₖ Fₖᵀ ∂L/∂pₖ,

    Fₖ being the perception filters. The transposed filters are gathered by the cells that
    receive a gradient, in a fixed order, so repetition gives the same bits.

    Args:
        grid: the geometry.
        network: the update network.
        rows: `[N, C]`, the state after the last step; turned back into the first state.
        grad: `[N, C]`, gradient of the last state; turned into the gradient of the first state
            if `state_wanted`.
        records: what each step overwrote, first step first.
        weights_wanted: whether the weight gradients are needed.
        state_wanted: whether the gradient of the first state is needed.

    Returns:
        The gradients of the network's weights.
    """
    filters = stencil(grid, rows.dtype)
    sums = NetworkGrad(network, weights_wanted)
    grad_features = rows.new_zeros(grid.cells, 3 * rows.shape[1])
    sent = grid.plane()
    reached = torch.empty_like(sent.flags)
    if records:
        grad *= records[-1].alive[:, None]
    for step in reversed(range(len(records))):
        record = records[step]
        record.undo(rows)
        live = record.cells[record.alive.index_select(0, record.cells)]
        if live.shape[0]:
            grad_live = sums.add(filters.perceive(rows, live), grad.index_select(0, live))
        first = step == 0
        if first and not state_wanted:
            break
        before = grid.interior if first else records[step - 1].alive
        if live.shape[0]:
            sent.flags.index_fill_(0, live, True)
            receivers = indices(sent.dilate(reached).bitwise_and_(before))
            sent.flags.index_fill_(0, live, False)
            put(grad_features, live, grad_live)
            received = filters.perceive_grad(grad_features, receivers)
            received += grad.index_select(0, receivers)
            put(grad, receivers, received)
            put(grad_features, live, None)
        if not first:
            put(grad, indices(record.alive > before), None)
    return sums
