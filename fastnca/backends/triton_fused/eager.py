"""The autograd node of a rollout that launches its kernels itself, without the dispatcher."""

from typing import Any

import torch
from torch import Tensor

from fastnca.backends.autograd import (
    Grads,
    check_saved,
    first_order_only,
    kinds,
    refuse_forward_mode,
)
from fastnca.backends.triton_fused.checks import check_tensors
from fastnca.backends.triton_fused.graphs import GRAPHS
from fastnca.backends.triton_fused.plan import Plan, make_plan
from fastnca.backends.triton_fused.rollout import (
    Gradients,
    Numbers,
    enter,
    enter_backward,
    leave,
    leave_backward,
    run_backward,
    run_forward,
)
from fastnca.backends.triton_fused.storage import Stored, aligned
from fastnca.checks import Parameters
from fastnca.kernels import Weights, device_guard, pack_weights, padded_hidden

Settings = tuple[int, float, str, int, bool]


def eager_rollout(
    state: Tensor,
    parameters: Parameters,
    numbers: Numbers,
    settings: Settings,
) -> Tensor:
    """Compute what `fused_rollout` describes.

    A rollout whose number of steps is not in device memory is replayed as a CUDA graph if that
    pays (`graphs.py`); otherwise every step is launched. Both give the same bits.

    Args:
        state: `[B, C, H, W]` float32.
        parameters: weights and biases of the two 1x1 convolutions.
        numbers: what the counter holds.
        settings: steps, update rate, precision, `checkpoint_every`, whether masks are drawn.

    Returns:
        `[B, C, H, W]` float32, contiguous.
    """
    check_tensors(state, parameters, settings[2])
    w1, b1, w2, b2 = parameters
    keep = torch.is_grad_enabled() and (
        state.requires_grad
        or w1.requires_grad
        or b1.requires_grad
        or w2.requires_grad
        or b2.requires_grad
    )
    if settings[4] and isinstance(numbers[0], int) and _capturing(state):
        raise RuntimeError(
            "a CUDA graph is being captured, and would freeze the seed of the update masks; "
            "pass seed as an int64 tensor on the device"
        )
    plan = make_plan(*settings[:4], keep, settings[4])
    if keep:
        result: Tensor = _EagerRollout.apply(state, *parameters, numbers, plan)
        return result
    return _forward(state, parameters, numbers, plan)[0]


def _capturing(state: Tensor) -> bool:
    return state.is_cuda and torch.cuda.is_current_stream_capturing()


def _forward(
    state: Tensor, parameters: Parameters, numbers: Numbers, plan: Plan
) -> tuple[Tensor, Stored, Plan]:
    """Run the forward pass, from a graph if one may be had; return result, store and plan."""
    with device_guard(state.device):
        lease = GRAPHS.acquire(state, parameters, plan) if numbers[3] is None else None
        if lease is None:
            return *run_forward(state, parameters, plan, None, numbers), plan
        workspace, stored = lease
        pack_weights(parameters, stored.weights, stored.counter, numbers)
        enter(state, stored, workspace.plan)
        workspace.forward()
        return leave(state, stored, workspace.plan), stored, workspace.plan


def _backward(
    grad: Tensor, stored: Stored, shapes: tuple[torch.Size, ...], plan: Plan, state_too: bool
) -> Gradients:
    """Run the backward pass, from a graph if the forward pass left its states in a workspace."""
    with device_guard(grad.device):
        workspace = None if _capturing(grad) else GRAPHS.find(stored.states)
        if workspace is None:
            return run_backward(grad, stored, shapes, plan, state_too)
        carried = workspace.carried()
        enter_backward(grad, stored, carried, plan)
        workspace.backward()
        return leave_backward(grad, shapes, stored, carried, plan, state_too)


class _EagerRollout(torch.autograd.Function):
    """Forward and backward as launches."""

    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        numbers: Numbers,
        plan: Plan,
    ) -> Tensor:
        parameters = (w1, b1, w2, b2)
        result, stored, ctx.plan = _forward(state, parameters, numbers, plan)
        ctx.set_materialize_grads(False)
        packed = stored.weights.packed
        saved = (stored.states, stored.flags, stored.counter, packed, state, *parameters)
        ctx.save_for_backward(*saved)
        ctx.kinds = kinds(saved)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Grads:
        grad = grad_outputs[0]
        if grad is None:
            return (None,) * 7
        saved = ctx.saved_tensors
        check_saved(saved, ctx.kinds)
        states, flags, counter, packed = map(aligned, saved[:4])
        state, w1, b1, w2, b2 = saved[4:]
        weights = Weights(packed, states.shape[-1], padded_hidden(b1.shape[0]))
        stored = Stored(states, flags, counter, weights)
        shapes = (w1.shape, b1.shape, w2.shape, b2.shape)
        needed = ctx.needs_input_grad

        def compute(grad: Tensor) -> Grads:
            return _backward(grad, stored, shapes, ctx.plan, needed[0])

        grads = first_order_only("triton", compute, grad, state, w1, b1, w2, b2)
        return *(g if need else None for g, need in zip(grads, needed, strict=False)), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("triton")
