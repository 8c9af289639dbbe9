"""Every private name of torch that this package relies on, in one place.

`tests/test_torch_internals.py` shows for each of them that it does what is said here. Names are
bound when this module is imported, so a call costs what torch's own costs. Four values are read as
attributes where they are needed, because they change and a call would cost more:

    forward_ad._current_level           below 0 unless forward-mode differentiation is under way
    torch.compiler._is_exporting_flag   whether `torch.export` traces; the public `is_exporting`
                                        is constantly true while `torch.compile` of torch 2.11 does
    Tensor._version                     number of writes into a tensor's memory
    torch.nn.modules.module._global_*   the hooks that every module calls, four mappings

No public name tells any of them.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.overrides
import torch.utils._device
import torch.utils._python_dispatch
from torch.autograd import forward_ad as forward_ad

_Function = TypeVar("_Function", bound=Callable[..., object])

transforms_active = torch._C._are_functorch_transforms_active
"""Return whether a transform of `torch.func` is running. No public function does."""

count_dispatch_modes = torch._C._len_torch_dispatch_stack
"""Return how many `TorchDispatchMode`s are active. No public function does."""

count_function_modes = torch._C._len_torch_function_stack
"""Return how many `TorchFunctionMode`s are active. No public function does."""

function_modes = torch.overrides._get_current_function_mode_stack
"""Return the active `TorchFunctionMode`s. No public function does."""

DeviceContext = torch.utils._device.DeviceContext
"""The `TorchFunctionMode` of `torch.set_default_device`. It has no public name."""

disable_modes = torch.utils._python_dispatch._disable_current_modes
"""A context in which no `TorchDispatchMode` sees operators. There is no public one."""

tracing_state = torch._C._get_tracing_state
"""Return what `torch.jit.trace` records into, None outside of it. `torch.jit.is_tracing` tells it,
too, and warns that it is deprecated."""

is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
"""Return whether a transform of `torch.func` has made a tensor, which may outlive the transform.
No public function does."""

is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
"""Return whether a gradient stands for several, as `torch.autograd.grad(is_grads_batched=True)`
makes it. No public function does."""

increment_vmap_level = torch._C._vmapmode_increment_nesting
"""Enter a level of the `vmap` that makes such gradients; return its number. Nothing public does."""

decrement_vmap_level = torch._C._vmapmode_decrement_nesting
"""Leave that level; return the number of the one around it. Nothing public does."""

remove_batch_dim = torch._remove_batch_dim
"""Return the tensor in such a gradient: arguments are it, the level, the batch size and the axis.
Nothing public does."""

add_batch_dim = torch._add_batch_dim
"""Make such a gradient: arguments are the tensor, the axis and the level. Nothing public does."""

REBUILD_TENSOR = (("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"))
"""What the pickles of `torch.save` call for a tensor, with a storage, an offset, a size and
strides. The names stand in files, and no public function reads those of unknown classes."""

REBUILD_PARAMETER = (
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
)
"""What they call for a parameter, with a tensor."""


def assume_constant_result(function: _Function) -> _Function:
    """Let `torch.compile` call a function while it traces, and take the result as a constant.

    The public `torch.compiler.assume_constant_result` imports the whole compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def end_allocation(device: int, pool: tuple[int, int]) -> None:
    """End the allocation from the memory pool of a capture, on a CUDA device.

    The public `torch.cuda.CUDAGraph.capture_end` does it, but up to torch 2.11 not if it fails.

    Raises:
        RuntimeError: it has ended already.
    """
    torch._C._cuda_endAllocateToPool(device, pool)


def release_pool(device: int, pool: tuple[int, int]) -> None:
    """Drop a reference to a memory pool after `end_allocation`. Nothing public does."""
    torch._C._cuda_releasePool(device, pool)
