"""A single step as one autograd node: one launch forward, two backward, and little else.

The tutorial's own loop calls a model once a step. The kernels of `single_step` and
`single_gradient` read states, parameters and gradients as they are, so nothing has to be packed,
converted or cleared around them. What does not change from call to call is prepared once. They
compute the tutorial's rule, with any alive threshold.
"""

from collections.abc import Hashable
from typing import Any, cast

import torch
from torch import Tensor

from fastnca import cuda_graphs
from fastnca._torch_internals import is_wrapped
from fastnca.backends.autograd import (
    Grads,
    dense,
    first_order_only,
    refuse_forward_mode,
    refuse_saved,
)
from fastnca.backends.triton_fused.limits import check_tensors
from fastnca.backends.triton_fused.settings import kernel_rule, make_settings
from fastnca.checks import Parameters, check_memory
from fastnca.kernels import (
    OPERAND_DTYPES,
    SINGLE_STEP_LIMIT,
    choose_launch,
    count_rectangles,
    device_facts,
    padded_channels,
    padded_hidden,
    prepare_backward,
    prepare_forward,
    single_tiles,
)
from fastnca.rule import Rule

MAX_PREPARED = 256

MAX_TILES = 1 << 30
"""Tiles are numbered in 32 bits."""

MAX_NUMBERS = 1 << 30
"""In one grid of a state; offsets within a grid are 32-bit."""

MAX_CELLS = {16: 1 << 60, 8: 1 << 17, 4: 1 << 11}
"""By rows of a tile. Tiles overlap by a ring of one cell, so tiles of 16 rows compute each cell
1.5 times, less than the launches they replace; lower tiles up to 2.7 times, which pays while the
device is not full."""

_FREE_FIELDS = frozenset(("hidden", "alive_threshold"))
"""Fields of a rule that need not be the tutorial's."""


class Prepared:
    """A single step for states and parameters of one kind.

    Args:
        state: `[B, C, H, W]` float32, of that kind.
        parameters: weights and biases of the two 1x1 convolutions.
        rule: what a step computes.
        seed: as in `single_step`; only its type matters.
        update_rate: probability that a cell updates.
        precision: "fp16", "bf16" or "ieee".

    Attributes:
        shapes: of the parameters.
        supported: whether the kernels of a single step can compute it, and gain by it.
        freezes_seed: whether a CUDA graph would freeze the seed.
        saved: shapes of what a step saves for its backward pass, and its device.
    """

    def __init__(
        self,
        state: Tensor,
        parameters: Parameters,
        rule: Rule,
        seed: int | Tensor | None,
        update_rate: float,
        precision: str,
    ) -> None:
        batch, channels, height, width = shape = cast(tuple[int, int, int, int], state.shape)
        self.shapes = tuple(parameter.shape for parameter in parameters)
        self.freezes_seed = isinstance(seed, int)
        hidden, device = parameters[1].shape[0], state.device
        settings = make_settings(rule, 1, update_rate, precision, 1, seed is not None, True)
        wide, tall = padded_channels(channels), padded_hidden(hidden)
        kind = (wide, tall, OPERAND_DTYPES[precision], *device_facts(device))
        config = choose_launch("single_step", *kind)
        tiles = single_tiles(batch, height, width, config.tile_height)
        rectangles = count_rectangles(batch * channels, height, width)
        self.supported = (
            wide <= SINGLE_STEP_LIMIT[0]
            and tall <= SINGLE_STEP_LIMIT[1]
            and batch * height * width <= MAX_CELLS[config.tile_height]
            and channels * height * width <= MAX_NUMBERS
            and 0 < max(tiles, rectangles) <= MAX_TILES
        )
        if not self.supported:
            return
        compiled_rule = kernel_rule(rule, channels)
        rest = compiled_rule, settings.step_settings, isinstance(seed, Tensor)
        self.forward, self.forward_keeping = (
            prepare_forward(shape, hidden, precision, *rest, keep, device, config)
            for keep in (False, True)
        )
        config = choose_launch("single_gradient", *kind)
        self.backward = prepare_backward(shape, hidden, precision, compiled_rule, device, config)
        # torch allocates fastest what is like a tensor; these take one number of memory.
        flag, number = (torch.empty(1, dtype=d, device=device) for d in (torch.uint8, state.dtype))
        self.cell_flags = flag.expand(batch * height * width)
        self.scratch = number.expand(self.backward.scratch_size)
        self.saved = (state.shape, *self.shapes, self.cell_flags.shape, device)


_prepared: dict[Hashable, Prepared] = {}


def single_step(
    state: Tensor,
    parameters: Parameters,
    rule: Rule,
    seed: int | Tensor | None,
    step: int,
    update_rate: float,
    precision: str,
) -> Tensor | None:
    """Advance a state by one step.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weights and biases of the two 1x1 convolutions, float32.
        rule: what a step computes.
        seed: the seed's 64 bits as a signed int, a `[]` int64 tensor on the state's device, or
            None, which updates every cell.
        step: number of the step.
        update_rate: probability that a cell updates.
        precision: "fp16", "bf16" or "ieee".

    Returns:
        `[B, C, H, W]` float32, contiguous; None if a rollout of one step must compute or refuse it.

    Raises:
        RuntimeError: the kernels cannot run.
        ValueError: a shape or the update rate does not fit.
    """
    if (rule.changed and not _FREE_FIELDS.issuperset(rule.changed)) or len(parameters) != 4:
        return None
    w1, b1, w2, b2 = parameters
    device, dtype = state.device, torch.float32
    key = (state.shape, b1.numel(), device, type(seed), update_rate, precision, rule.json)
    prepared = _prepared.get(key)
    if not (
        prepared is not None
        and (w1.shape, b1.shape, w2.shape, b2.shape) == prepared.shapes
        and device == w1.device == b1.device == w2.device == b2.device
        and state.dtype is w1.dtype is b1.dtype is w2.dtype is b2.dtype is dtype
    ):
        check_tensors(state, parameters, rule, precision)
        if len(_prepared) >= MAX_PREPARED:
            _prepared.clear()
        prepared = Prepared(state, parameters, rule, seed, update_rate, precision)
        _prepared[key] = prepared
    if not prepared.supported or (prepared.freezes_seed and cuda_graphs.is_capturing(state)):
        return None
    if torch.is_grad_enabled() and (
        state.requires_grad
        or w1.requires_grad
        or b1.requires_grad
        or w2.requires_grad
        or b2.requires_grad
    ):
        left_over = (
            is_wrapped(state)
            or is_wrapped(w1)
            or is_wrapped(b1)
            or is_wrapped(w2)
            or is_wrapped(b2)
        )
        apply = _SingleStep.apply if left_over else _apply
        result: Tensor = apply(state, w1, b1, w2, b2, seed, step, prepared)
        return result
    state, w1, b1, w2, b2 = _readable(state, w1, b1, w2, b2)
    result = torch.empty_like(state)
    given, number = (seed, 0) if isinstance(seed, Tensor) else (result, seed or 0)
    prepared.forward(state, w1, b1, w2, b2, given, result, result, number, step)
    return result


def _readable(
    state: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return a state and parameters as the kernels read them: contiguous, with their memory."""
    if state.is_neg() or w1.is_neg() or b1.is_neg() or w2.is_neg() or b2.is_neg():
        state, w1, b1, w2, b2 = map(Tensor.resolve_neg, (state, w1, b1, w2, b2))
    state = state.contiguous()
    w1, b1, w2, b2 = w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous()
    if 0 in (state.data_ptr(), w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), b2.data_ptr()):
        for tensor in (state, w1, b1, w2, b2):
            check_memory(tensor, "the state or a parameter")
    return state, w1, b1, w2, b2


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
        seed: int | Tensor | None,
        step: int,
        prepared: Prepared,
    ) -> Tensor:
        first, *parameters = _readable(state, w1, b1, w2, b2)
        result = torch.empty_like(first)
        cell_flags = torch.empty_like(prepared.cell_flags)
        given, number = (seed, 0) if isinstance(seed, Tensor) else (result, seed or 0)
        prepared.forward_keeping(first, *parameters, given, result, cell_flags, number, step)
        ctx.set_materialize_grads(False)
        ctx.prepared = prepared
        ctx.save_for_backward(state, w1, b1, w2, b2, cell_flags)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Grads:
        grad = grad_outputs[0]
        if grad is None:
            return (None,) * 8
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad

        def compute(grad: Tensor) -> Grads:
            return _backward(ctx.prepared, grad, saved, needed[0])

        grads = first_order_only("triton", compute, grad, *saved[:5])
        if not all(needed[:5]):
            grads = tuple(g if need else None for g, need in zip(grads, needed, strict=False))
        return *grads, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        refuse_forward_mode("triton")


_apply = super(torch.autograd.Function, _SingleStep).apply
"""The end of `_SingleStep.apply`, after it has looked for transforms of `torch.func`, of which
there are none here, and for tensors that one of them has left over."""


def _backward(
    prepared: Prepared, grad: Tensor, saved: tuple[Tensor, ...], needs_state_grad: bool
) -> tuple[Tensor, ...]:
    """Return the gradients of the state, unfinished if it is not wanted, and of the parameters."""
    state, w1, b1, w2, b2, cell_flags = saved
    shapes = state.shape, w1.shape, b1.shape, w2.shape, b2.shape, cell_flags.shape
    device = state.device
    if not (
        (*shapes, device) == prepared.saved
        and state.dtype is w1.dtype is b1.dtype is w2.dtype is b2.dtype is torch.float32
        and cell_flags.dtype is torch.uint8
        and device == w1.device == b1.device == w2.device == b2.device == cell_flags.device
    ):
        refuse_saved()
    state, w1, b1, w2, b2 = _readable(state, w1, b1, w2, b2)
    like = torch.empty_like
    grads = like(state), like(w1), like(b1), like(w2), like(b2)
    scratch = like(prepared.scratch)
    launches = prepared.backward
    launches.first(state, cell_flags.contiguous(), dense(grad), w1, b1, w2, grads[0], scratch)
    (launches.last if needs_state_grad else launches.sums)(scratch, *grads)
    return grads
