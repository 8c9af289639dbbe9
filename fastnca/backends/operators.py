"""The torch operators `fastnca::rollout` and `fastnca::rollout_gradients`.

They are a whole rollout of the `torch` or the `cpp` backend as one node: what `torch.compile`
keeps in its graph for every number of steps, and what a dispatch mode sees. The gradients compute
the rollout again, so that only tensors of known shapes pass from one operator to the other.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call

from fastnca import reference
from fastnca.backends.autograd import refuse_second
from fastnca.backends.base import BACKENDS, ExactBackend, RolloutCall
from fastnca.checks import OutOfRangeError, check_devices
from fastnca.masks import Updates, make_counter
from fastnca.recognition import parameter_names
from fastnca.rule import Rule


def record(call: RolloutCall, backend: str) -> Tensor:
    """Compute a rollout as one operator."""
    state, parameters, rule, updates = call[:4]
    if updates.given is not None:
        raise NotImplementedError("torch cannot look at a rollout with masks that are given")
    steps, _, seed, first_step, update_rate, count = updates
    counter = make_counter(seed, first_step, steps, count, state.device)
    random = seed is not None
    result: Tensor = rollout(
        state, list(parameters), counter, float(update_rate), random, backend, rule.json
    )
    return result


@torch.library.custom_op("fastnca::rollout", mutates_args=())
def rollout(
    state: Tensor,
    parameters: list[Tensor],
    counter: Tensor,
    update_rate: float,
    random: bool,
    backend: str,
    rule: str,
) -> Tensor:
    """Advance a state.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides.
        parameters: what the steps compute with, as `recognition.parameters_of` orders it.
        counter: `[3]` int64: seed, number of the first step, number of steps.
        update_rate: probability in [0, 1] that a cell updates.
        random: False updates every cell in every step.
        backend: "torch" or "cpp"; the reference computes values beyond its range.
        rule: `Rule.json`.

    Returns:
        `[B, C, H, W]`, contiguous.
    """
    call = _call(state, parameters, counter, update_rate, random, rule)
    if call.updates.steps == 0:
        return state.clone(memory_format=torch.contiguous_format)
    try:
        return _advance(backend, call)
    except OutOfRangeError:
        return _advance_by_reference(call)


@torch.library.custom_op("fastnca::rollout_gradients", mutates_args=())
def rollout_gradients(
    grad: Tensor,
    state: Tensor,
    parameters: list[Tensor],
    counter: Tensor,
    update_rate: float,
    random: bool,
    backend: str,
    rule: str,
) -> list[Tensor]:
    """Differentiate `rollout`.

    Args:
        grad: `[B, C, H, W]`, gradient of the last state.
        state: this and the others are those of `rollout`.
        parameters: see `rollout`.
        counter: see `rollout`.
        update_rate: see `rollout`.
        random: see `rollout`.
        backend: see `rollout`.
        rule: see `rollout`.

    Returns:
        The gradients of the state and of the parameters, contiguous.
    """
    call = _call(state, parameters, counter, update_rate, random, rule)

    def differentiate(advance: Callable[[RolloutCall], Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (state, *parameters)]
            end = advance(call._replace(state=leaves[0], parameters=tuple(leaves[1:])))
            grads = torch.autograd.grad(end, leaves, grad, materialize_grads=True)
        return [gradient.clone(memory_format=torch.contiguous_format) for gradient in grads]

    if call.updates.steps == 0:
        return differentiate(lambda call: call.state * 1)
    try:
        return differentiate(partial(_advance, backend))
    except OutOfRangeError:
        # within an operator torch records no graph, but for functions with a backward of their own
        with ThreadPoolExecutor(1) as outside:
            return outside.submit(differentiate, _advance_by_reference).result()


@rollout.register_fake
def _fake_rollout(state: Tensor, parameters: list[Tensor], counter: Tensor, *_: Any) -> Tensor:
    check_devices(state, *parameters, counter)
    return torch.empty_like(state, memory_format=torch.contiguous_format)


@rollout_gradients.register_fake
def _fake_gradients(
    grad: Tensor, state: Tensor, parameters: list[Tensor], counter: Tensor, *_: Any
) -> list[Tensor]:
    check_devices(grad, state, *parameters, counter)
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (state, *parameters)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    state, parameters, counter, *ctx.settings = inputs
    ctx.save_for_backward(state, counter, *parameters)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    state, counter, *parameters = ctx.saved_tensors
    found = rollout_gradients(grad, state, parameters, counter, *ctx.settings)
    return found[0], found[1:], *(None,) * 5


def _refuse(ctx: Any, *grads: Any) -> Any:
    refuse_second("torch or cpp")


rollout.register_autograd(_backward, setup_context=_setup)
rollout_gradients.register_autograd(_refuse)


class _ReferenceRollout(nn.Module):
    """A rollout of the reference; its parameters are given to every call."""

    def __init__(self, channels: int, rule: Rule) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = reference.NeuralCA(channels, rule=rule)
        self.model.perception = reference.PerceptionModule(channels, rule)

    def forward(self, state: Tensor, updates: Updates) -> Tensor:
        steps, _, seed, first_step, update_rate, _ = updates
        number = None if seed is None else int(seed)
        return self.model.train(seed is not None).run_steps(
            state, steps, update_rate, seed=number, first_step=first_step
        )


@lru_cache(maxsize=64)
def _rule(text: str) -> Rule:
    return Rule.from_dict(json.loads(text))


def _call(
    state: Tensor,
    parameters: list[Tensor],
    counter: Tensor,
    update_rate: float,
    random: bool,
    rule: str,
) -> RolloutCall:
    """Read a call out of an operator's arguments.

    Raises:
        ValueError: the counter is none.
    """
    if counter.shape != (3,) or counter.dtype != torch.int64:
        raise ValueError(f"counter must be [3] int64, got {list(counter.shape)} {counter.dtype}")
    seed, first_step, steps = counter.tolist()
    updates = Updates(max(steps, 0), None, seed if random else None, first_step, update_rate)
    return RolloutCall(state, tuple(parameters), _rule(rule), updates)


def _advance(backend: str, call: RolloutCall) -> Tensor:
    """Advance a state with a backend."""
    chosen = BACKENDS[backend]
    assert isinstance(chosen, ExactBackend)
    return chosen.compute(call)


def _advance_by_reference(call: RolloutCall) -> Tensor:
    """Advance a state with the reference operators."""
    state = call.state
    rollout = _ReferenceRollout(state.shape[1], call.rule)
    rollout.model.perception.to(state.device, state.dtype)
    names = parameter_names(call.rule, state.shape[1])
    given = {f"model.{name}": value for name, value in zip(names, call.parameters, strict=True)}
    result: Tensor = functional_call(rollout, given, (state, call.updates))
    return result
