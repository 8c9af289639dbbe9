"""A single step as one autograd node: one launch forward, two backward, and little else.

The tutorial's own loop calls a model once a step. The kernels of `single_forward` and
`single_backward` read states, parameters and gradients as they are, so nothing has to be packed,
converted or cleared around them. What does not change from call to call is prepared once.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from fastnca.fused import eager
from fastnca.fused.checks import check_tensors
from fastnca.fused.plan import make_plan
from fastnca.fused.refusals import Gradients, Grads, refuse_forward_mode
from fastnca.kernels import (
    OPERAND_DTYPES,
    SingleBackward,
    SingleForward,
    choose_launch,
    device_facts,
    device_guard,
    padded_channels,
    padded_hidden,
    single_tiles,
)

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]

MOST_PREPARED = 256

MOST_TILES = 1 << 30
"""Tiles are numbered in 32 bits."""

MOST_CELLS = {16: 1 << 60, 8: 1 << 17, 4: 1 << 13}
"""By rows of a tile. Tiles overlap by a ring of one cell, so tiles of 16 rows compute each cell
1.5 times, less than the launches they replace; lower tiles up to 2.7 times, which pays while the
device is not full."""


class Prepared:
    """A single step for states of one kind.

    Args:
        state: `[B, C, H, W]` float32, of that kind.
        parameters: weights and biases of the two 1x1 convolutions.
        update_rate: probability that a cell updates.
        precision: "fp16", "bf16" or "ieee".
        seed_given: whether the seed is a tensor.
        random: False updates every cell.
    """

    def __init__(
        self,
        state: Tensor,
        parameters: Parameters,
        update_rate: float,
        precision: str,
        seed_given: bool,
        random: bool,
    ) -> None:
        batch, channels, height, width = shape = tuple(state.shape)
        hidden = parameters[1].shape[0]
        self.device = state.device
        self.guarded = state.device.type == "cuda"
        self.frozen = random and not seed_given
        self.fates_shape = (batch, height, width)
        rule = make_plan(1, update_rate, precision, 1, True, random).rule
        wide, tall = padded_channels(channels), padded_hidden(hidden)
        kind = (wide, tall, OPERAND_DTYPES[precision], *device_facts(state.device))
        config = choose_launch("single_forward", *kind)
        tiles = single_tiles(batch, height, width, config.tile_height)
        self.suits = (
            wide * tall <= 16 * 128
            and batch * height * width <= MOST_CELLS[config.tile_height]
            and 0 < tiles <= MOST_TILES
        )
        if not self.suits:
            return
        self.forward = [
            SingleForward(shape, hidden, precision, rule, seed_given, keep, state.device, config)
            for keep in (False, True)
        ]
        config = choose_launch("single_backward", *kind)
        self.backward = SingleBackward(shape, hidden, precision, state.device, config)


_prepared: dict[Hashable, Prepared] = {}


def single_step(
    state: Tensor,
    parameters: Parameters,
    seed: int | Tensor | None,
    step: int,
    update_rate: float,
    precision: str,
) -> Tensor | None:
    """Advance a state by one step.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weights and biases of the two 1x1 convolutions.
        seed: the seed's 64 bits as a signed number, a `[]` int64 tensor on the state's device,
            or None, which updates every cell.
        step: number of the step.
        update_rate: probability that a cell updates.
        precision: "fp16", "bf16" or "ieee".

    Returns:
        `[B, C, H, W]` float32, contiguous; None if the state is one for the kernels of rollouts.

    Raises:
        RuntimeError: the kernels cannot run, or an int seed would be frozen into a CUDA graph.
        ValueError: a shape or the update rate does not fit.
    """
    w1, b1, w2, b2 = parameters
    key = (
        state.shape,
        w1.shape,
        b1.shape,
        w2.shape,
        b2.shape,
        state.device,
        w1.device,
        b1.device,
        w2.device,
        b2.device,
        state.dtype,
        w1.dtype,
        b1.dtype,
        w2.dtype,
        b2.dtype,
        update_rate,
        precision,
        type(seed),
    )
    prepared = _prepared.get(key)
    if prepared is None:
        check_tensors(state, parameters, precision)
        given = isinstance(seed, Tensor)
        prepared = Prepared(state, parameters, update_rate, precision, given, seed is not None)
        if len(_prepared) >= MOST_PREPARED:
            _prepared.clear()
        _prepared[key] = prepared
    if not prepared.suits:
        return None
    if prepared.frozen and eager._capturing(state):
        return None  # refused there
    if seed is None:
        seed = 0
    if torch.is_grad_enabled() and (
        state.requires_grad
        or w1.requires_grad
        or b1.requires_grad
        or w2.requires_grad
        or b2.requires_grad
    ):
        result: Tensor = _SingleStep.apply(state, w1, b1, w2, b2, seed, step, prepared)
        return result
    state = state.contiguous()
    result = torch.empty_like(state)
    parameters = (w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous())
    _guarded(prepared, prepared.forward[0], state, parameters, seed, step, result, result)
    return result


def _guarded(prepared: Prepared, launches: Any, *arguments: Any) -> None:
    """Launch on the tensors' device."""
    if prepared.guarded and prepared.device.index != torch.cuda.current_device():
        with device_guard(prepared.device):
            launches(*arguments)
    else:
        launches(*arguments)


class _SingleStep(torch.autograd.Function):
    """Forward and backward of one step as launches."""

    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        seed: int | Tensor,
        step: int,
        prepared: Prepared,
    ) -> Tensor:
        dense = state.contiguous()
        parameters = (w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous())
        result = torch.empty_like(dense)
        fates = torch.empty(prepared.fates_shape, dtype=torch.uint8, device=prepared.device)
        launches = prepared.forward[1]
        _guarded(prepared, launches, dense, parameters, seed, step, result, fates)
        ctx.set_materialize_grads(False)
        ctx.prepared = prepared
        ctx.save_for_backward(state, w1, b1, w2, b2, fates)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Grads:
        grad = grad_outputs[0]
        if grad is None:
            return (None,) * 8
        saved = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # a graph of the gradients is wanted
            compute = lambda: _backward(ctx.prepared, grad, saved, needed[0])  # noqa: E731
            grads = Gradients.apply(compute, grad, *saved[:5])
        else:
            grads = _backward(ctx.prepared, grad, saved, needed[0])
        return *(g if need else None for g, need in zip(grads, needed, strict=False)), *(None,) * 3

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode()


def _backward(
    prepared: Prepared, grad: Tensor, saved: tuple[Tensor, ...], state_too: bool
) -> tuple[Tensor, ...]:
    """Return the gradients of the state, undefined if it is not wanted, and of the parameters."""
    state, w1, b1, w2, b2, fates = saved
    state, w1, b1, w2 = state.contiguous(), w1.contiguous(), b1.contiguous(), w2.contiguous()
    empty = torch.empty_like
    grads = (empty(state), empty(w1), empty(b1), empty(w2), empty(b2.contiguous()))
    launches = prepared.backward
    scratch = torch.empty(launches.scratch_size, dtype=torch.float32, device=prepared.device)
    grad = grad.contiguous()
    _guarded(prepared, launches, state, fates, grad, (w1, b1, w2), scratch, grads, state_too)
    return grads
