"""The torch operators `fastnca::rollout_forward` and `fastnca::rollout_backward`.

Defined with `torch.library`, so that `torch.compile` treats a whole rollout as one node. The
step count is a symbolic integer: a new count needs no new graph.
"""

from typing import Any

import torch
from torch import Tensor

from fastnca.fused.rollout import Gradients, Plan, allocate, count_slots, run_backward, run_forward
from fastnca.fused.support import fused_reasons, shape_reasons
from fastnca.kernels import Rule
from fastnca.masks import threshold
from fastnca.states import ALIVE_THRESHOLD

_PARAMETERS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2"
_SETTINGS = "Tensor? counter, SymInt steps, float update_rate, str precision, int checkpoint_every"

torch.library.define(
    "fastnca::rollout_forward",
    f"(Tensor state, {_PARAMETERS}, {_SETTINGS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastnca::rollout_backward",
    f"(Tensor grad, Tensor states, Tensor flags, {_PARAMETERS}, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _plan(
    counter: Tensor | None, steps: int, update_rate: float, precision: str, checkpoint_every: int
) -> Plan:
    """Collect how a rollout runs; without a counter every cell updates."""
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    rule = Rule(threshold(update_rate), counter is not None, ALIVE_THRESHOLD)
    return Plan(steps, precision, rule, checkpoint_every)


def _check(state: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, precision: str) -> None:
    """Raise unless the kernels can run these tensors."""
    if state.dim() != 4:
        raise ValueError(f"state must be [B, C, H, W], got {tuple(state.shape)}")
    batch, channels, height, width = state.shape
    hidden = b1.shape[0]
    expected = ((hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,))
    found = tuple(tuple(parameter.shape) for parameter in (w1, b1, w2, b2))
    if found != expected:
        raise ValueError(
            f"parameters for {channels} channels must have the shapes {expected}, got {found}"
        )
    reasons = fused_reasons(state.device, state.dtype, channels, hidden, precision)
    reasons += shape_reasons(batch, height, width)
    for name, parameter in zip(("w1", "b1", "w2", "b2"), (w1, b1, w2, b2), strict=True):
        if parameter.dtype != torch.float32 or parameter.device != state.device:
            reasons.append(
                f"{name} must be float32 on {state.device}, "
                f"got {parameter.dtype} on {parameter.device}."
            )
    if reasons:
        raise RuntimeError("the fused kernels cannot run this rollout: " + " ".join(reasons))


@torch.library.impl("fastnca::rollout_forward", ("cpu", "cuda"))
def _rollout_forward(
    state: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    counter: Tensor | None,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(state, w1, b1, w2, b2, precision)
    plan = _plan(counter, steps, update_rate, precision, checkpoint_every)
    return run_forward(state, (w1, b1, w2, b2), counter, plan, keep)


@torch.library.impl("fastnca::rollout_backward", ("cpu", "cuda"))
def _rollout_backward(
    grad: Tensor,
    states: Tensor,
    flags: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    counter: Tensor | None,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
) -> Gradients:
    plan = _plan(counter, steps, update_rate, precision, checkpoint_every)
    return run_backward(grad, states, flags, (w1, b1, w2, b2), counter, plan)


@torch.library.register_fake("fastnca::rollout_forward")
def _fake_forward(
    state: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _, steps, _, _, checkpoint_every, keep = settings
    states, flags = allocate(state, count_slots(steps, checkpoint_every, keep))
    return torch.empty_like(state, memory_format=torch.contiguous_format), states, flags


@torch.library.register_fake("fastnca::rollout_backward")
def _fake_backward(
    grad: Tensor,
    states: Tensor,
    flags: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *settings: Any,
) -> tuple[Tensor, ...]:
    likes = (grad, w1, b1, w2, b2)
    return tuple(torch.empty_like(a, memory_format=torch.contiguous_format) for a in likes)
