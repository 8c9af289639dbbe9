"""What torch asks of a rollout beside its value: derivatives, and operators to look at.

Derivatives that fast rollouts do not have are refused in a sentence.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastnca._torch_internals import (
    add_batch_dim,
    count_dispatch_modes,
    decrement_vmap_level,
    forward_ad,
    increment_vmap_level,
    is_legacy_batched,
    remove_batch_dim,
    transforms_active,
)
from fastnca.checks import check_memory

Grads = tuple[Tensor | None, ...]

PLAIN = frozenset((Tensor, torch.nn.Parameter))
"""Classes of tensors whose memory is their value."""


def observed(tensors: Sequence[Tensor]) -> bool:
    """Tell whether a rollout must be an operator: whether torch looks at what is computed.

    That is the case for `torch.compile`, transforms of `torch.func`, dispatch modes and
    subclasses of tensors.
    """
    return (
        is_compiling()  # first: the others cannot be traced
        or transforms_active()
        or count_dispatch_modes() > 0
        or not PLAIN.issuperset(map(type, tensors))
    )


def refuse_forward_mode(backend: str) -> NoReturn:
    """Refuse forward-mode differentiation."""
    raise NotImplementedError(
        f"the {backend} backend has no forward-mode derivative; use backend='reference'"
    )


def refuse_tangents(backend: str, tensors: tuple[Tensor, ...]) -> None:
    """Refuse forward-mode differentiation of tensors whose tangent would get lost."""
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        refuse_forward_mode(backend)


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor contiguous in memory, with its own values: views may negate lazily."""
    return tensor.resolve_neg().contiguous()


def check_saved(tensors: Sequence[Tensor], like: Sequence[Any]) -> None:
    """Check tensors that autograd has saved, which hooks may have replaced.

    Args:
        tensors: as they came back.
        like: `kinds` of them as they were saved.

    Raises:
        ValueError: a shape, dtype or device has changed, or memory was given back.
    """
    if kinds(tensors) != like:
        refuse_saved()
    for tensor in tensors:
        check_memory(tensor, "a tensor saved for the backward pass")


def refuse_saved() -> NoReturn:
    """Refuse to differentiate with saved tensors that have been changed."""
    raise ValueError(
        "tensors that a rollout saved for its backward pass came back with another shape, dtype, "
        "device or content; look at torch.autograd.graph.saved_tensors_hooks"
    )


def kinds(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    """Return shape, dtype and device of tensors."""
    return [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def savable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can save: a copy of one that inference mode has made."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return tensor.clone()
    return tensor


def refuse_second(backend: str) -> NoReturn:
    """Refuse a second derivative."""
    raise NotImplementedError(
        f"the {backend} backend has no second derivatives; use backend='reference'"
    )


def first_order_only(
    backend: str, compute: Callable[[Tensor], Grads], grad: Tensor, *inputs: Tensor
) -> Grads:
    """Compute gradients, in a backward pass, such that differentiating them is refused.

    Args:
        backend: whose gradients they are.
        compute: returns them for the gradient of the result.
        grad: the gradient of the result. One that stands for several, as `is_grads_batched=True`
            makes it, is taken apart, and they are computed one after the other.
        inputs: what the gradients depend on, too.
    """
    if is_legacy_batched(grad):
        return _one_by_one(partial(first_order_only, backend, compute), grad, inputs)
    if not torch.is_grad_enabled():  # nobody wants a graph of the gradients
        return compute(grad)
    result: Grads = _FirstOrderOnly.apply(backend, compute, grad, *inputs)
    return result


def _one_by_one(compute: Callable[..., Grads], grads: Tensor, inputs: tuple[Tensor, ...]) -> Grads:
    """Compute gradients for each of several gradients of the result.

    Args:
        compute: returns them for one.
        grads: `vmap`'s stand-in for several, as a vectorized `jacobian` makes it.
        inputs: what the gradients depend on, too.
    """
    level = increment_vmap_level() - 1
    decrement_vmap_level()
    each = remove_batch_dim(grads, level, 0, 0)
    found = [compute(grad, *inputs) for grad in each]
    return tuple(
        None if tensors[0] is None else add_batch_dim(torch.stack(tensors), 0, level)
        for tensors in zip(*found, strict=True)
    )


class _FirstOrderOnly(torch.autograd.Function):
    """Gradients; refuse to be differentiated, by whatever they depend on."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, compute: Callable[[Tensor], Grads], grad: Tensor, *inputs: Tensor
    ) -> Grads:
        ctx.backend = backend
        return compute(grad.detach())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        refuse_second(ctx.backend)
