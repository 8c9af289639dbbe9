"""Recognise a model whose step is the tutorial's rule and nothing else.

A fast backend replaces the calls of a model's parts by arithmetic on their parameters. It may do so
only where those calls would do what they do in a new `NeuralCA`. So every call looks at all that
Python and torch let a user change: classes and their methods, attributes set on an object, hooks,
filters, and the tensors that are parameters. A model that is not recognised is computed by the
reference operators, which call its parts.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import ref

import torch
import torch.nn as nn
import torch.nn.modules.module as global_hooks
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fastnca.backends.autograd import PLAIN
from fastnca.reference import NeuralCA as Reference
from fastnca.reference import PerceptionModule, sobel_filters

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

_Method = TypeVar("_Method", bound=Callable[..., Any])

PARAMETERS = (
    "update_net.0.weight",
    "update_net.0.bias",
    "update_net.2.weight",
    "update_net.2.bias",
)
"""Names of the parameters of the two 1x1 convolutions."""

_LAYERS = (nn.Conv2d, nn.ReLU, nn.Conv2d)

_methods: dict[str, Any] = {
    "get_alive_mask": Reference.get_alive_mask,
    "_step": Reference._step,
}
"""The methods of a model that are the tutorial's step, as they were when they were defined."""


def the_rule(method: _Method) -> _Method:
    """Register a method, by its name, as one that computes the tutorial's step."""
    _methods[method.__name__] = method
    return method


def _part_methods() -> tuple[Any, ...]:
    """Return the methods that a call of the parts goes through."""
    return (
        nn.Module.__call__,
        nn.Module._call_impl,
        PerceptionModule.forward,
        nn.Sequential.forward,
        nn.Conv2d.forward,
        nn.Conv2d._conv_forward,
        nn.ReLU.forward,
    )


_PART_METHODS = _part_methods()


def overridden(model: "NeuralCA") -> list[str]:
    """Name the methods of the step that the class of `model`, or the object itself, replaces."""
    kind, own = type(model), model.__dict__
    found = (kind.get_alive_mask, kind._step, kind.forward)
    replaced = "get_alive_mask" in own or "_step" in own or "forward" in own
    if found == tuple(_methods.values()) and not replaced:
        return []
    return [
        name
        for name, method in _methods.items()
        if getattr(kind, name) is not method or name in own
    ]


def hooked(module: nn.Module) -> bool:
    """Tell whether calling `module` calls hooks of its own."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def hooked_everywhere() -> bool:
    """Tell whether calling any module calls torch's global hooks."""
    return bool(
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    )


def model_reasons(model: "NeuralCA", tensors: bool = True) -> list[str]:
    """List in what the step of `model` is not the tutorial's rule, one sentence each.

    Hooks of the model itself do not count: whoever calls the model calls them.

    Args:
        model: the model.
        tensors: False leaves shapes, dtypes and devices of the parameters to the caller.

    Returns:
        The differences; empty if the model is recognised.
    """
    reasons = []
    if names := overridden(model):
        reasons.append(f"the model overrides {' and '.join(names)}")
    if _part_methods() != _PART_METHODS:
        reasons.append("a method of torch's modules, or of PerceptionModule, has been replaced")
    if hooked_everywhere():
        reasons.append("torch has global module hooks, which a fused step would not call")
    return reasons + _part_reasons(model, tensors)


def object_reasons(model: "NeuralCA") -> list[str]:
    """List in what `model` differs from a new object of its class, beside its weights.

    Its files cannot describe that.

    Args:
        model: the model.

    Returns:
        The differences, one sentence each.
    """
    reasons = [
        f"{name} is set on the object" for name in overridden(model) if name in model.__dict__
    ]
    if hooked(model):
        reasons.append("the model has hooks")
    return reasons + _part_reasons(model, tensors=True)


def _part_reasons(model: "NeuralCA", tensors: bool) -> list[str]:
    """List in what perception and network of `model` are not those of a new one."""
    reasons = []
    parts, own = model._modules, model.__dict__
    perception, network = parts.get("perception"), parts.get("update_net")
    layers: Any = () if network is None else tuple(network._modules.values())
    if not (
        type(perception) is PerceptionModule
        and "perception" not in own
        and perception.num_channels == model.num_channels
        and _is_sobel(perception._parameters.get("filters"), model.num_channels)
    ):
        reasons.append("perception is not the fixed identity and Sobel filters")
    if not (
        type(network) is nn.Sequential
        and "update_net" not in own
        and tuple(map(type, layers)) == _LAYERS
        and _is_plain(layers[0])
        and _is_plain(layers[2])
    ):
        reasons.append("update_net is not convolution 1x1, ReLU, convolution 1x1, with biases")
    elif tensors and (fault := _tensor_fault(model, layers[0], layers[2])):
        reasons.append(fault)
    for module in (perception, network, *layers):
        if module is not None and _is_changed(module):
            name = next(name for name, each in model.named_modules() if each is module)
            reasons.append(f"{name} has hooks, or attributes in place of methods or parameters")
    return reasons


def _is_plain(layer: nn.Conv2d) -> bool:
    """Tell whether a convolution with a 1x1 kernel is a product with its weight, plus its bias."""
    return bool(
        layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer._parameters.get("weight") is not None
        and layer._parameters.get("bias") is not None
    )


def _is_changed(module: nn.Module) -> bool:
    """Tell whether a part has hooks, or attributes that hide methods of its class or parameters."""
    own = module.__dict__  # one test a name: torch.compile can trace it, and it is the fastest
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_call_impl" in own
        or "_compiled_call_impl" in own
        or "_conv_forward" in own
        or "weight" in own
        or "bias" in own
        or "filters" in own
    )


def _tensor_fault(model: "NeuralCA", first: nn.Conv2d, last: nn.Conv2d) -> str:
    """Say why the parameters are not those of two 1x1 convolutions; empty if they are."""
    channels, hidden = model.num_channels, model.hidden_dim
    parameters = first._parameters, last._parameters
    tensors = [cast(Tensor, p[name]) for p in parameters for name in ("weight", "bias")]
    shapes = (hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,)
    dtype, device = tensors[0].dtype, tensors[0].device
    for tensor, shape in zip(tensors, shapes, strict=True):
        if tensor.shape != shape:
            return f"update_net has shapes other than of {channels} channels, {hidden} hidden units"
        if not (
            type(tensor) in PLAIN
            and tensor.dtype is dtype
            and tensor.device == device
            and tensor.layout is torch.strided
        ):
            return "the parameters of update_net are not ordinary tensors of one dtype and device"
    return ""


def _is_sobel(filters: Tensor | None, channels: int) -> bool:
    """Tell whether `filters` are the fixed ones, `[3*C, 1, 3, 3]`, and get no gradient."""
    if filters is None or filters.requires_grad or type(filters) not in PLAIN:
        return False
    if torch.compiler.is_compiling():
        return _equals_sobel(filters, channels)
    if not _waits(filters) or filters.is_inference():
        return _equals_sobel(filters, channels)
    written = (filters._version, filters.data_ptr(), channels)
    known = _compared.get(id(filters))
    if known is None or known[0]() is not filters or known[1] != written:
        if len(_compared) >= 64:
            _compared.clear()
        equal = _equals_sobel(filters, channels)
        known = _compared[id(filters)] = (ref(filters), written, equal)
    return known[2]


def _waits(filters: Tensor) -> bool:
    """Tell whether a comparison waits for the device."""
    return filters.is_cuda


def _equals_sobel(filters: Tensor, channels: int) -> bool:
    if not torch._C._len_torch_dispatch_stack():
        return torch.equal(filters, _expected_filters(channels, filters.dtype, filters.device))
    with _disable_current_modes():  # a mode would see the comparison, or make fake filters
        return torch.equal(filters, _expected_filters(channels, filters.dtype, filters.device))


# torch.compile takes a model's fixed filters as it finds them while it traces. This is
# torch.compiler.assume_constant_result, which would import the whole compiler here.
vars(_equals_sobel)["_dynamo_marked_constant"] = True

_compared: dict[int, tuple["ref[Tensor]", tuple[int, int, int], bool]] = {}
"""Filters on a GPU, where a comparison waits for the device, by id: compared once per change that
torch counts; it does not count writes through `.data`."""


@lru_cache(maxsize=16)
def _expected_filters(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return sobel_filters().repeat(channels, 1, 1).view(-1, 1, 3, 3).to(device, dtype)
