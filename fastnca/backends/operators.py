"""The torch operators `fastnca::rollout` and `fastnca::rollout_gradients`.

They are a whole rollout of the `torch` or the `cpp` backend as one node: what `torch.compile`
keeps in its graph for every number of steps, and what a dispatch mode sees. The gradients compute
the rollout again, so that only tensors of known shapes pass from one operator to the other.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call

from fastnca import reference
from fastnca.backends.autograd import refuse_second
from fastnca.backends.cpp import cpp_rollout
from fastnca.backends.torch_active import active_rollout
from fastnca.checks import OutOfRangeError, Parameters, check_devices
from fastnca.masks import Updates
from fastnca.recognition import PARAMETERS


@torch.library.custom_op("fastnca::rollout", mutates_args=())
def rollout(
    state: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    counter: Tensor,
    update_rate: float,
    random: bool,
    backend: str,
) -> Tensor:
    """Advance a state.

    Args:
        state: `[B, C, H, W]` float32 or float64, any strides.
        w1: `[hidden, 3*C, 1, 1]`.
        b1: `[hidden]`.
        w2: `[C, hidden, 1, 1]`.
        b2: `[C]`.
        counter: `[3]` int64: seed, number of the first step, number of steps.
        update_rate: probability in [0, 1] that a cell updates.
        random: False updates every cell in every step.
        backend: "torch" or "cpp"; the reference computes values beyond its range.

    Returns:
        `[B, C, H, W]`, contiguous.
    """
    updates = _updates(counter, update_rate, random)
    if updates.steps == 0:
        return state.clone(memory_format=torch.contiguous_format)
    try:
        return _advance(backend, state, (w1, b1, w2, b2), updates)
    except OutOfRangeError:
        return _advance_by_reference(state, (w1, b1, w2, b2), updates)


@torch.library.custom_op("fastnca::rollout_gradients", mutates_args=())
def rollout_gradients(
    grad: Tensor,
    state: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    counter: Tensor,
    update_rate: float,
    random: bool,
    backend: str,
) -> list[Tensor]:
    """Differentiate `rollout`.

    Args:
        grad: `[B, C, H, W]`, gradient of the last state.
        state: this and the others are those of `rollout`.
        w1: see `rollout`.
        b1: see `rollout`.
        w2: see `rollout`.
        b2: see `rollout`.
        counter: see `rollout`.
        update_rate: see `rollout`.
        random: see `rollout`.
        backend: see `rollout`.

    Returns:
        The gradients of the state and of the four parameters, contiguous.
    """
    updates = _updates(counter, update_rate, random)

    def differentiate(advance: Callable[[Tensor, Parameters, Updates], Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (state, w1, b1, w2, b2)]
            end = advance(leaves[0], (leaves[1], leaves[2], leaves[3], leaves[4]), updates)
            grads = torch.autograd.grad(end, leaves, grad, materialize_grads=True)
        return [gradient.clone(memory_format=torch.contiguous_format) for gradient in grads]

    if updates.steps == 0:
        return differentiate(lambda state, *_: state * 1)
    try:
        return differentiate(partial(_advance, backend))
    except OutOfRangeError:
        # within an operator torch records no graph, but for functions with a backward of their own
        with ThreadPoolExecutor(1) as outside:
            return outside.submit(differentiate, _advance_by_reference).result()


@rollout.register_fake
def _fake_rollout(state: Tensor, *others: Any) -> Tensor:
    check_devices(state, *others[:5])
    return torch.empty_like(state, memory_format=torch.contiguous_format)


@rollout_gradients.register_fake
def _fake_gradients(grad: Tensor, *others: Any) -> list[Tensor]:
    check_devices(grad, *others[:6])
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in others[:5]
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.update_rate, ctx.random, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = rollout_gradients(grad, *ctx.saved_tensors, ctx.update_rate, ctx.random, ctx.backend)
    return *grads, None, None, None, None


def _refuse(ctx: Any, *grads: Any) -> Any:
    refuse_second("torch or cpp")


rollout.register_autograd(_backward, setup_context=_setup)
rollout_gradients.register_autograd(_refuse)


class _ReferenceRollout(nn.Module):
    """A rollout of the reference; its parameters are given to every call."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.model = reference.NeuralCA(channels, hidden)
        self.model.perception = reference.PerceptionModule(channels)

    def forward(self, state: Tensor, updates: Updates) -> Tensor:
        return self.model.train(updates.seed is not None).run_steps(
            state,
            updates.steps,
            updates.update_rate,
            seed=updates.seed,
            first_step=updates.first_step,
        )


def _updates(counter: Tensor, update_rate: float, random: bool) -> Updates:
    """Read which cells update out of a counter.

    Raises:
        ValueError: it is no counter.
    """
    if counter.shape != (3,) or counter.dtype != torch.int64:
        raise ValueError(f"counter must be [3] int64, got {list(counter.shape)} {counter.dtype}")
    seed, first_step, steps = counter.tolist()
    return Updates(max(steps, 0), None, seed if random else None, first_step, update_rate)


def _advance(backend: str, state: Tensor, parameters: Parameters, updates: Updates) -> Tensor:
    """Advance a state with a backend."""
    if backend == "cpp":
        return cpp_rollout(state, parameters, updates)
    return active_rollout(state, parameters, updates.masks(state))


def _advance_by_reference(state: Tensor, parameters: Parameters, updates: Updates) -> Tensor:
    """Advance a state with the reference operators."""
    model = _ReferenceRollout(state.shape[1], parameters[1].shape[0])
    model.model.perception.to(state.device, state.dtype)
    given = {f"model.{name}": value for name, value in zip(PARAMETERS, parameters, strict=True)}
    result: Tensor = functional_call(model, given, (state, updates))
    return result
