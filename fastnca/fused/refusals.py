"""Derivatives that the fused kernels do not have: refused in a sentence, never wrong."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

Grads = tuple[Tensor | None, ...]


def refuse_forward_mode() -> NoReturn:
    """Refuse forward-mode differentiation."""
    raise NotImplementedError(
        "the triton backend has no forward-mode derivative; use backend='reference'"
    )


def refuse_second() -> NoReturn:
    """Refuse a second derivative."""
    raise NotImplementedError(
        "the triton backend has no second derivatives; use backend='reference'"
    )


def refuse_tangents(tensors: tuple[Tensor, ...]) -> None:
    """Raise where forward-mode differentiation would lose a tangent."""
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        refuse_forward_mode()


class Gradients(torch.autograd.Function):
    """The gradients of a rollout; refuse to be differentiated, by whatever they depend on."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], Grads], *inputs: Tensor) -> Grads:
        """Return what `compute` computes from `inputs`."""
        return compute()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Refuse a second derivative."""
        refuse_second()
