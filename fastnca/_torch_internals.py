"""Every private name of torch that this package relies on, in one place.

`tests/test_torch_internals.py` shows for each name that it does what is said here. Names are bound
when this module is imported, so a call costs what torch's own costs.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.autograd import forward_ad as forward_ad
from torch.utils._python_dispatch import _disable_current_modes

_Function = TypeVar("_Function", bound=Callable[..., object])

transforms_active = torch._C._are_functorch_transforms_active
"""Whether a transform of `torch.func` is running. No public function tells."""

count_dispatch_modes = torch._C._len_torch_dispatch_stack
"""How many `TorchDispatchMode`s are active. No public function tells."""

is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a transform of `torch.func` has made this tensor, which may outlive the transform. No
public function tells."""

is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
"""Whether a gradient stands for several, as `is_grads_batched=True` of `torch.autograd.grad` makes
it. No public function tells; `remove_batch_dim` and `add_batch_dim` have no public form, either."""

increment_vmap_level = torch._C._vmapmode_increment_nesting
"""Enter a level of the `vmap` that such gradients come from, and return its number."""

decrement_vmap_level = torch._C._vmapmode_decrement_nesting
"""Leave that level, and return the number of the one around it."""

remove_batch_dim = torch._remove_batch_dim
"""Return the tensor in such a gradient: arguments are it, the level, the batch size, the axis."""

add_batch_dim = torch._add_batch_dim
"""Make such a gradient: arguments are the tensor, the axis, the level."""

disable_current_modes = _disable_current_modes
"""Context in which no `TorchDispatchMode` sees operators. No public context does that."""

# `forward_ad._current_level` is read where it is needed, without a call: it is below 0 unless
# forward-mode differentiation is under way. No public function tells.


def assume_constant_result(function: _Function) -> _Function:
    """Let `torch.compile` call a function while it traces, and take the result as a constant.

    This is `torch.compiler.assume_constant_result`, which would import the whole compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def end_allocation(device: int, pool: tuple[int, int]) -> None:
    """End the allocation from the memory pool of a capture, on a CUDA device.

    `torch.cuda.CUDAGraph.capture_end` does it, but up to torch 2.11 not if it fails.

    Raises:
        RuntimeError: it has ended already.
    """
    torch._C._cuda_endAllocateToPool(device, pool)


def release_pool(device: int, pool: tuple[int, int]) -> None:
    """Drop a reference to a memory pool whose allocation was ended with `end_allocation`."""
    torch._C._cuda_releasePool(device, pool)
