"""A rollout on the fused kernels as one autograd node; the choice between its forms.

Eagerly, `eager.py` launches the kernels itself, or `single.py` those of a single step. Where
something else looks on, `torch.compile`, a transform of `torch.func`, a dispatch mode or a
subclass of tensors, the rollout is the operators `fastnca::rollout_forward` and
`fastnca::rollout_backward`. All give the same bits, but for the gradients of a single step with
16-bit operands, which are rounded once less in `single.py`.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastnca.backends.autograd import Grads, observed, refuse_second, refuse_tangents, savable
from fastnca.checks import Parameters, check_steps
from fastnca.masks import make_counter, signed

Settings = tuple[int, float, str, int, bool]


def fused_rollout(
    state: Tensor,
    parameters: Parameters,
    *,
    steps: int,
    seed: int | Tensor | None,
    first_step: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int = 1,
    count: Tensor | None = None,
) -> Tensor:
    """Advance a state by several steps on the fused kernels, as one autograd node.

    Under autocast the state, the accumulation and every gradient stay float32; `precision` alone
    chooses the operands.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, 3*C, 1, 1]`,
            `[hidden]`, `[C, hidden, 1, 1]`, `[C]`, float32 on the state's device.
        steps: number of steps, at least 0.
        seed: 64-bit seed of the update masks, an int or a `[]` int64 tensor that is read on the
            device; None updates every cell in every step. A CUDA graph needs the tensor: an int
            would be frozen into it, and every replay would draw the same masks.
        first_step: number of the first step, at least 0.
        update_rate: probability that a cell updates in a step, in [0, 1].
        precision: "fp16", "bf16" or "ieee", the type of the products' operands.
        checkpoint_every: keep every how manieth state for the backward pass and compute the
            others again; memory against time, the gradients are the same bits.
        count: `[]` int64 tensor on the state's device: how many of the `steps` steps are taken,
            read on the device, so that a CUDA graph of the caller's can change it; None takes all.

    Returns:
        `[B, C, H, W]` float32, contiguous.

    Raises:
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation, or a
            second derivative is asked for.
        RuntimeError: the fused path cannot run here, or an int seed is used while a CUDA graph is
            captured; the message says why.
        ValueError: a shape or a number is out of range.
    """
    if count is not None and checkpoint_every > 1:
        raise ValueError("count needs checkpoint_every=1: which states are kept would depend on it")
    if count is not None:
        count = _on_device(count, "count", state)
    if isinstance(seed, Tensor):
        seed = _on_device(seed, "seed", state)
    tensors = (state, *parameters)
    random = seed is not None
    if observed(tensors):
        if not torch.compiler.is_compiling():
            refuse_tangents("triton", tensors)
        from fastnca.backends.triton_fused import operators  # noqa: F401  (imports Triton)

        counter = make_counter(seed, first_step, steps, count, state.device)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        settings = (steps, float(update_rate), precision, checkpoint_every, random)
        result: Tensor = _Rollout.apply(*tensors, counter, settings, keep)[0]
        return result
    if not 0 <= first_step < 2**62 > steps >= 0:
        check_steps(first_step, steps)
    refuse_tangents("triton", tensors)
    state = savable(state)
    eager_rollout, single_step = _eager_nodes()
    if isinstance(seed, int):
        seed = signed(seed)
    if steps == 1 and count is None and checkpoint_every == 1:
        stepped = single_step(state, parameters, seed, first_step, update_rate, precision)
        if stepped is not None:
            return stepped
    numbers = (0 if seed is None else seed, first_step, steps, count)
    settings = (steps, update_rate, precision, checkpoint_every, random)
    return eager_rollout(state, parameters, numbers, settings)


def _on_device(number: Tensor, name: str, state: Tensor) -> Tensor:
    """Return a tensor that holds one number as int64 on the state's device."""
    if number.numel() != 1:
        raise ValueError(f"{name} must hold one number, got shape {tuple(number.shape)}")
    return number.to(state.device, torch.int64)


def release_graphs() -> None:
    """Free the device memory of rollouts that were captured as CUDA graphs."""
    if "fastnca.backends.triton_fused.graphs" in sys.modules:
        sys.modules["fastnca.backends.triton_fused.graphs"].GRAPHS.release()


@cache
def _eager_nodes() -> tuple[Callable[..., Tensor], Callable[..., Tensor | None]]:
    """Import Triton with those who launch kernels."""
    from fastnca.backends.triton_fused.eager import eager_rollout
    from fastnca.backends.triton_fused.single import single_step

    return eager_rollout, single_step


class _Rollout(torch.autograd.Function):
    """Forward: `fastnca::rollout_forward`. Backward: `fastnca::rollout_backward`."""

    @staticmethod
    def forward(
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        counter: Tensor,
        settings: Settings,
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
        state, w1, b1, w2, b2, counter, states, flags = ctx.saved_tensors
        grads = _RolloutGrad.apply(
            grad, state, w1, b1, w2, b2, counter, states, flags, ctx.settings
        )
        needed = ctx.needs_input_grad
        return *(g if need else None for g, need in zip(grads, needed, strict=False)), *(None,) * 3


class _RolloutGrad(torch.autograd.Function):
    """The five gradients of a rollout; refuse to be differentiated, instead of being wrong."""

    @staticmethod
    def forward(
        grad: Tensor,
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        counter: Tensor,
        states: Tensor,
        flags: Tensor,
        settings: Settings,
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
