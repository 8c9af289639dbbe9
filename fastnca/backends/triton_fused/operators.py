"""The torch operators `fastnca::rollout_forward` and `fastnca::rollout_backward`.

Defined with `torch.library`, so that `torch.compile` treats a whole rollout as one node. The
step count is a symbolic integer: a new count needs no new graph.
"""

from typing import Any

import torch
from torch import Tensor

from fastnca.backends.triton_fused.checks import check_stored, check_tensors
from fastnca.backends.triton_fused.plan import make_plan
from fastnca.backends.triton_fused.rollout import run_backward, run_forward
from fastnca.backends.triton_fused.storage import Stored, aligned, allocate_states, allocate_weights
from fastnca.checks import check_devices
from fastnca.kernels import device_guard, pack_weights

_PARAMETERS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2"
_SETTINGS = (
    "Tensor counter, SymInt steps, float update_rate, str precision, int checkpoint_every, "
    "bool random"
)

torch.library.define(
    "fastnca::rollout_forward",
    f"(Tensor state, {_PARAMETERS}, {_SETTINGS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastnca::rollout_backward",
    f"(Tensor grad, Tensor states, Tensor flags, {_PARAMETERS}, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("fastnca::rollout_forward", ("cpu", "cuda"))
def _rollout_forward(
    state: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    counter: Tensor,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    random: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    parameters = (w1, b1, w2, b2)
    check_tensors(state, parameters, precision)
    check_stored({"counter": (counter, (3,), torch.int64)}, state.device)
    plan = make_plan(steps, update_rate, precision, checkpoint_every, keep, random)
    with device_guard(state.device):
        result, stored = run_forward(state, parameters, plan, counter)
    return result, stored.states, stored.flags


@torch.library.impl("fastnca::rollout_backward", ("cpu", "cuda"))
def _rollout_backward(
    grad: Tensor,
    states: Tensor,
    flags: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    counter: Tensor,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    random: bool,
) -> tuple[Tensor, ...]:
    parameters = (w1, b1, w2, b2)
    check_tensors(grad, parameters, precision)
    plan = make_plan(steps, update_rate, precision, checkpoint_every, True, random)
    like_states, like_flags = allocate_states(torch.empty_like(grad, device="meta"), plan.slots)
    stored = {
        "counter": (counter, (3,), torch.int64),
        "states": (states, like_states.shape, like_states.dtype),
        "flags": (flags, like_flags.shape, like_flags.dtype),
    }
    check_stored(stored, grad.device)
    states, flags, counter = map(aligned, (states, flags, counter))
    weights = allocate_weights(parameters, precision)
    shapes = tuple(parameter.shape for parameter in parameters)
    with device_guard(grad.device):
        pack_weights(parameters, weights, counter, None)
        grads = run_backward(grad, Stored(states, flags, counter, weights), shapes, plan)
    return tuple(gradient for gradient in grads if gradient is not None)


@torch.library.register_fake("fastnca::rollout_forward")
def _fake_forward(
    state: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    counter, steps, rate, precision, checkpoint_every, random, keep = settings
    check_devices(state, w1, b1, w2, b2, counter)
    plan = make_plan.__wrapped__(steps, rate, precision, checkpoint_every, keep, random)
    states, flags = allocate_states(state, plan.slots)
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
    check_devices(grad, states, flags, w1, b1, w2, b2, settings[0])
    likes = (grad, w1, b1, w2, b2)
    return tuple(torch.empty_like(a, memory_format=torch.contiguous_format) for a in likes)
