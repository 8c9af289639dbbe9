"""The torch operators `fastnca::rollout_forward` and `fastnca::rollout_backward`.

Defined with `torch.library`, so that `torch.compile` treats a whole rollout as one node. The
step count is a symbolic integer: a new count needs no new graph. `b2` is None if the rule has no
final bias; its gradient is empty then.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastnca.backends.autograd import Grads, refuse_second
from fastnca.backends.triton_fused.buffers import (
    SavedStates,
    aligned,
    allocate_states,
    allocate_weights,
)
from fastnca.backends.triton_fused.limits import check_stored, check_tensors
from fastnca.backends.triton_fused.loops import run_backward, run_forward
from fastnca.backends.triton_fused.settings import make_settings
from fastnca.checks import Parameters, check_devices
from fastnca.kernels import device_guard, prepare_rollout
from fastnca.rule import Rule

OperatorSettings = tuple[str, int, float, str, int, bool]
"""The rule's JSON, the maximum number of steps, update rate, precision, `checkpoint_every`, and
whether masks are drawn."""

_PARAMETERS = "Tensor w1, Tensor b1, Tensor w2, Tensor? b2"
_SETTINGS = (
    "Tensor counter, str rule, SymInt steps, float update_rate, str precision, "
    "int checkpoint_every, bool random"
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


def record(
    state: Tensor, parameters: Parameters, counter: Tensor, settings: OperatorSettings
) -> Tensor:
    """Compute a rollout as an operator.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weights and biases of the two 1x1 convolutions, float32.
        counter: `[3]` int64: seed, number of the first step, number of steps, at most that of
            `settings`.
        settings: the other arguments of the operator.

    Returns:
        `[B, C, H, W]` float32, contiguous.
    """
    tensors = (state, *parameters)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    padding = () if len(parameters) == 4 else (None,)
    result: Tensor = _Rollout.apply(*tensors, *padding, counter, settings, keep)[0]
    return result


@lru_cache(maxsize=64)
def _parse(rule: str) -> Rule:
    return Rule.from_dict(json.loads(rule))


def _given(*parameters: Tensor | None) -> Parameters:
    return tuple(parameter for parameter in parameters if parameter is not None)


@torch.library.impl("fastnca::rollout_forward", ("cpu", "cuda"))
def _rollout_forward(
    state: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    counter: Tensor,
    rule: str,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    parameters = _given(w1, b1, w2, b2)
    settings = make_settings(_parse(rule), *numbers)
    check_tensors(state, parameters, settings.rule, settings.precision)
    check_stored({"counter": (counter, (3,), torch.int64)}, state.device)
    with device_guard(state.device):
        result, saved = run_forward(state, parameters, counter, settings)
    return result, saved.states, saved.flags


@torch.library.impl("fastnca::rollout_backward", ("cpu", "cuda"))
def _rollout_backward(
    grad: Tensor,
    states: Tensor,
    flags: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    counter: Tensor,
    rule: str,
    *numbers: Any,
) -> tuple[Tensor, ...]:
    parameters = _given(w1, b1, w2, b2)
    settings = make_settings(_parse(rule), *numbers, True)
    check_tensors(grad, parameters, settings.rule, settings.precision)
    like_states, like_flags = allocate_states(torch.empty_like(grad, device="meta"), settings)
    saved = {
        "counter": (counter, (3,), torch.int64),
        "states": (states, like_states.shape, like_states.dtype),
        "flags": (flags, like_flags.shape, like_flags.dtype),
    }
    check_stored(saved, grad.device)
    states, flags, counter = map(aligned, (states, flags, counter))
    weights = allocate_weights(grad.shape[1], parameters, settings)
    shapes = tuple(parameter.shape for parameter in parameters)
    with device_guard(grad.device):
        prepare_rollout(parameters, weights, counter, None)
        grads = run_backward(grad, SavedStates(states, flags, counter, weights), shapes, settings)
    found = _given(*grads)
    return found if b2 is not None else (*found, grad.new_empty(0))


@torch.library.register_fake("fastnca::rollout_forward")
def _fake_forward(
    state: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    counter: Tensor,
    rule: str,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices(state, *_given(w1, b1, w2, b2), counter)
    settings = make_settings.__wrapped__(_parse(rule), *numbers)
    states, flags = allocate_states(state, settings)
    return torch.empty_like(state, memory_format=torch.contiguous_format), states, flags


@torch.library.register_fake("fastnca::rollout_backward")
def _fake_backward(
    grad: Tensor,
    states: Tensor,
    flags: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    counter: Tensor,
    *settings: Any,
) -> tuple[Tensor, ...]:
    check_devices(grad, states, flags, *_given(w1, b1, w2, b2), counter)
    likes = (grad, w1, b1, w2, grad.new_empty(0) if b2 is None else b2)
    return tuple(torch.empty_like(a, memory_format=torch.contiguous_format) for a in likes)


class _Rollout(torch.autograd.Function):
    """Forward: `fastnca::rollout_forward`. Backward: `fastnca::rollout_backward`."""

    @staticmethod
    def forward(
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor | None,
        counter: Tensor,
        settings: OperatorSettings,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.fastnca.rollout_forward(
            state, w1, b1, w2, b2, counter, *settings, keep
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        state, w1, b1, w2, b2, counter, settings, _ = inputs
        _, states, flags = output
        ctx.mark_non_differentiable(states, flags)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(state, w1, b1, w2, b2, counter, states, flags)
        ctx.settings = settings

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Grads:
        grad = grad_outputs[0]
        if grad is None:
            return (None,) * 8
        grads = _RolloutGrad.apply(grad, *ctx.saved_tensors, ctx.settings)
        needed = ctx.needs_input_grad
        return *(g if need else None for g, need in zip(grads, needed, strict=False)), *(None,) * 3


class _RolloutGrad(torch.autograd.Function):
    """The gradients of a rollout; refuse to be differentiated, instead of being wrong."""

    @staticmethod
    def forward(
        grad: Tensor,
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor | None,
        counter: Tensor,
        states: Tensor,
        flags: Tensor,
        settings: OperatorSettings,
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.fastnca.rollout_backward(
            grad, states, flags, w1, b1, w2, b2, counter, *settings
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        refuse_second("triton")
