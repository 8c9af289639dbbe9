"""Derivatives that fast rollouts do not have: refused in a sentence, never wrong."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

Grads = tuple[Tensor | None, ...]


def refuse_forward_mode(backend: str) -> NoReturn:
    """Refuse forward-mode differentiation."""
    raise NotImplementedError(
        f"the {backend} backend has no forward-mode derivative; use backend='reference'"
    )


def refuse_tangents(backend: str, tensors: tuple[Tensor, ...]) -> None:
    """Refuse forward-mode differentiation of tensors whose tangent would get lost."""
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        refuse_forward_mode(backend)


def refuse_second(backend: str) -> NoReturn:
    """Refuse a second derivative."""
    raise NotImplementedError(
        f"the {backend} backend has no second derivatives; use backend='reference'"
    )


def first_order_only(backend: str, compute: Callable[[], Grads], *inputs: Tensor) -> Grads:
    """Compute gradients, in a backward pass, such that differentiating them is refused.

    Args:
        backend: whose gradients they are.
        compute: returns them.
        inputs: what they depend on.
    """
    if not torch.is_grad_enabled():  # nobody wants a graph of the gradients
        return compute()
    result: Grads = _FirstOrderOnly.apply(backend, compute, *inputs)
    return result


class _FirstOrderOnly(torch.autograd.Function):
    """Gradients; refuse to be differentiated, by whatever they depend on."""

    @staticmethod
    def forward(ctx: Any, backend: str, compute: Callable[[], Grads], *inputs: Tensor) -> Grads:
        ctx.backend = backend
        return compute()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        refuse_second(ctx.backend)
