"""Derivatives that the fused kernels do not have: refused in a sentence, never wrong."""

from typing import NoReturn

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
