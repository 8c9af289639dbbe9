"""Derivatives that fast rollouts do not have: refused in a sentence, never wrong."""

from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse_forward_mode(backend: str) -> NoReturn:
    """Refuse forward-mode differentiation."""
    raise NotImplementedError(
        f"the {backend} backend has no forward-mode derivative; use backend='reference'"
    )


def refuse_second(backend: str) -> NoReturn:
    """Refuse a second derivative."""
    raise NotImplementedError(
        f"the {backend} backend has no second derivatives; use backend='reference'"
    )


def first_order_only(
    backend: str, grads: tuple[Tensor | None, ...], inputs: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return gradients such that differentiating them by what they depend on is refused.

    Args:
        backend: whose gradients they are.
        grads: the gradients.
        inputs: what they were computed from.
    """
    result: tuple[Tensor | None, ...] = _FirstOrderOnly.apply(backend, len(inputs), *inputs, *grads)
    return result


class _FirstOrderOnly(torch.autograd.Function):
    """Pass gradients on; refuse to be differentiated, instead of being silently wrong."""

    @staticmethod
    def forward(ctx: Any, backend: str, inputs: int, *tensors: Any) -> tuple[Tensor | None, ...]:
        ctx.backend = backend
        return tuple(None if grad is None else grad.clone() for grad in tensors[inputs:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        refuse_second(ctx.backend)
