"""The autograd node of a rollout that launches its kernels itself, without torch's dispatcher."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastnca import cuda_graphs
from fastnca.backends.autograd import (
    Grads,
    check_saved,
    first_order_only,
    kinds,
    refuse_forward_mode,
)
from fastnca.backends.triton_fused import loops
from fastnca.backends.triton_fused.buffers import SavedStates, aligned
from fastnca.backends.triton_fused.graphs import GRAPHS
from fastnca.backends.triton_fused.limits import check_tensors
from fastnca.backends.triton_fused.settings import MaskCounter, RolloutSettings, make_settings
from fastnca.checks import Parameters
from fastnca.kernels import device_guard, prepare_rollout
from fastnca.rule import Rule

_NO_MEMORY = torch.empty(0)


def eager_rollout(
    state: Tensor,
    parameters: Parameters,
    rule: Rule,
    steps: int,
    seed: int | Tensor | None,
    first_step: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    device_steps: Tensor | None,
) -> Tensor:
    """Compute what `fused_rollout` describes, with its arguments and errors.

    An int seed is its 64 bits as a signed number. Tensors with one number are int64, on the state's
    device.
    """
    check_tensors(state, parameters, rule, precision)
    keep = torch.is_grad_enabled() and (
        state.requires_grad or any(parameter.requires_grad for parameter in parameters)
    )
    if isinstance(seed, int) and cuda_graphs.is_capturing(state):
        raise RuntimeError(
            "a CUDA graph is being captured, and would freeze the seed of the update masks; "
            "pass seed as an int64 tensor on the device"
        )
    settings = make_settings(
        rule, steps, update_rate, precision, checkpoint_every, seed is not None, keep
    )
    counter = MaskCounter(0 if seed is None else seed, first_step, steps, device_steps)
    if keep:
        result: Tensor = _EagerRollout.apply(counter, settings, state, *parameters)
        return result
    return _forward(state, parameters, counter, settings)[0]


def _forward(
    state: Tensor, parameters: Parameters, counter: MaskCounter, settings: RolloutSettings
) -> tuple[Tensor, SavedStates, RolloutSettings]:
    """Run the forward pass, from a graph if there is one for it.

    Returns:
        The last state, what the backward pass needs, and the settings that the kernels ran with.
    """
    with device_guard(state.device):
        acquired = None
        if counter.device_steps is None:
            acquired = GRAPHS.acquire(state, parameters, settings)
        if acquired is None:
            return *loops.run_forward(state, parameters, counter, settings), settings
        workspace, saved = acquired
        prepare_rollout(parameters, saved.weights, saved.counter, counter)
        loops.begin_forward(state, saved, workspace.settings)
        workspace.forward()
        return loops.end_forward(state, saved, workspace.settings), saved, workspace.settings


def _backward(
    grad: Tensor,
    saved: SavedStates,
    shapes: tuple[torch.Size, ...],
    settings: RolloutSettings,
    needs_state_grad: bool,
) -> Grads:
    """Run the backward pass, from a graph if the forward pass left its states in a workspace."""
    with device_guard(grad.device):
        workspace = None if cuda_graphs.is_capturing(grad) else GRAPHS.find(saved.states)
        if workspace is None:
            return loops.run_backward(grad, saved, shapes, settings, needs_state_grad)
        buffers = workspace.buffers()
        loops.begin_backward(grad, saved, buffers, settings)
        workspace.backward()
        return loops.end_backward(grad, shapes, saved, buffers, settings, needs_state_grad)


class _EagerRollout(torch.autograd.Function):
    """Forward and backward as launches."""

    @staticmethod
    def forward(
        ctx: Any,
        counter: MaskCounter,
        settings: RolloutSettings,
        state: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        result, saved, ctx.settings = _forward(state, parameters, counter, settings)
        ctx.set_materialize_grads(False)
        tensors = (*saved.tensors, state, *parameters)
        ctx.save_for_backward(*tensors)
        ctx.kinds = kinds(tensors)
        ctx.weights = replace(saved.weights, packed=_NO_MEMORY)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Grads:
        grad, needed = grad_outputs[0], ctx.needs_input_grad
        if grad is None:
            return (None,) * len(needed)
        tensors = ctx.saved_tensors
        check_saved(tensors, ctx.kinds)
        states, flags, counter, packed = map(aligned, tensors[:4])
        saved = SavedStates(states, flags, counter, replace(ctx.weights, packed=packed))
        shapes = tuple(parameter.shape for parameter in tensors[5:])

        def compute(grad: Tensor) -> Grads:
            return _backward(grad, saved, shapes, ctx.settings, needed[2])

        grads = first_order_only("triton", compute, grad, *tensors[4:])
        return None, None, *(g if n else None for g, n in zip(grads, needed[2:], strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("triton")
