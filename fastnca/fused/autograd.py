"""The autograd node of a rollout on the fused kernels."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


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
) -> Tensor:
    """Advance a state by several steps on the fused kernels, as one autograd node.

    Under autocast the state, the accumulation and every gradient stay float32; `precision` alone
    chooses the operands.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, 3*C, 1, 1]`,
            `[hidden]`, `[C, hidden, 1, 1]`, `[C]`, float32 on the state's device.
        steps: number of steps, at least 0.
        seed: 64-bit seed of the update masks, an int or a `[]` int64 tensor (which
            `torch.compile` and CUDA graphs need); None updates every cell in every step.
        first_step: number of the first step, at least 0.
        update_rate: probability that a cell updates in a step, in [0, 1].
        precision: "fp16", "bf16" or "ieee", the type of the products' operands.
        checkpoint_every: keep every how manieth state for the backward pass and compute the
            others again; memory against time, the gradients are the same bits.

    Returns:
        `[B, C, H, W]` float32, contiguous.

    Raises:
        NotImplementedError: a tensor carries a tangent of forward-mode differentiation, or a
            second derivative is asked for.
        RuntimeError: the fused path cannot run here; the message says why.
        ValueError: a shape or a number is out of range.
    """
    from fastnca.fused import operators  # noqa: F401  (imports Triton)

    counter = None if seed is None else make_counter(seed, first_step, state.device)
    tensors = (state, *parameters)
    if not torch.compiler.is_compiling():
        _refuse_tangents(tensors)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    settings = (steps, float(update_rate), precision, checkpoint_every)
    result: Tensor = _Rollout.apply(*tensors, counter, settings, keep)[0]
    return result


def make_counter(seed: int | Tensor, first_step: int, device: torch.device) -> Tensor:
    """Return `[2]` int64 on `device`: the seed's 64 bits as a signed number, the first step."""
    if isinstance(seed, Tensor):
        step = torch.full((), first_step, dtype=torch.int64, device=device)
        return torch.stack((seed.to(device), step))
    signed = (seed + 2**63) % 2**64 - 2**63
    return torch.tensor((signed, first_step), dtype=torch.int64).to(device, non_blocking=True)


def _refuse_tangents(tensors: tuple[Tensor, ...]) -> None:
    """Raise where forward-mode differentiation would lose a tangent."""
    duals = (unpack_dual(tensor) for tensor in tensors)
    if any(dual.tangent is not None for dual in duals):
        raise NotImplementedError(
            "the triton backend has no forward-mode derivative; use backend='reference'"
        )


class _Rollout(torch.autograd.Function):
    """Forward: `fastnca::rollout_forward`. Backward: `fastnca::rollout_backward`."""

    @staticmethod
    def forward(
        state: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        counter: Tensor | None,
        settings: tuple[int, float, str, int],
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
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
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
        counter: Tensor | None,
        states: Tensor,
        flags: Tensor,
        settings: tuple[int, float, str, int],
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
        raise NotImplementedError(
            "the triton backend has no second derivatives; use backend='reference'"
        )
