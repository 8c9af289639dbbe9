"""Recognise a model whose step is what its rule says and nothing else.

A fast backend replaces the calls of a model's parts by arithmetic on their parameters, and a file
describes a model by its rule. Both may be done only where those calls would do what they do in a
new `NeuralCA` with that rule. So every call looks at all that Python and torch let a user change:
classes and their methods, attributes set on an object, hooks, filters, and the tensors that are
parameters. A model that is not recognised is computed by the reference operators, which call its
parts, and is not saved.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn as nn
import torch.nn.modules.module as global_hooks
from torch import Tensor

from fastnca._torch_internals import count_dispatch_modes
from fastnca.backends.autograd import PLAIN
from fastnca.checks import Parameters
from fastnca.fixed_filters import expected_filters, has_filters
from fastnca.reference import ACTIVATIONS, PerceptionModule
from fastnca.reference import NeuralCA as Reference
from fastnca.rule import Rule

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

_Method = TypeVar("_Method", bound=Callable[..., Any])

_methods: dict[str, Any] = {
    "get_alive_mask": Reference.get_alive_mask,
    "_step": Reference._step,
}
"""The methods of a model that are its step, as they were when they were defined."""


def the_rule(method: _Method) -> _Method:
    """Register a method, by its name, as one that computes the step of the model's rule."""
    _methods[method.__name__] = method
    return method


_PART_METHODS = tuple(
    (kind, name, getattr(kind, name))
    for kind, name in (
        (nn.Module, "__call__"),
        (nn.Module, "_call_impl"),
        (PerceptionModule, "forward"),
        (nn.Sequential, "forward"),
        (nn.Conv2d, "forward"),
        (nn.Conv2d, "_conv_forward"),
        *((kind, "forward") for kind in ACTIVATIONS.values()),
    )
)
"""Methods that a call of the parts goes through, as torch and the reference define them."""


def overridden(model: "NeuralCA") -> list[str]:
    """Name the methods of the step that the class of `model`, or the object itself, replaces."""
    return [
        name
        for name, method in _methods.items()
        if getattr(type(model), name) is not method or name in model.__dict__
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


def model_reasons(model: "NeuralCA", single: bool = True, called: bool = True) -> list[str]:
    """List in what the step of `model` is not what its rule says, one sentence each.

    Args:
        model: the model.
        single: whether somebody calls the model, and with it its hooks; a rollout would not.
        called: whether what torch and Python do in every call counts: global hooks, and methods
            that were replaced in torch's own classes. A file is not called.

    Returns:
        The differences; empty if the model is recognised.
    """
    kind, own, parts = type(model), model.__dict__, model._modules
    reasons = []
    found = (kind.get_alive_mask, kind._step, kind.forward)
    if (
        found != tuple(_methods.values())
        or "get_alive_mask" in own
        or "_step" in own
        or "forward" in own
    ):
        reasons.append(_describe_overridden(overridden(model)))
    for part, name, method in _PART_METHODS if called else ():
        if getattr(part, name) is not method:
            reasons.append("a method of torch's modules, or of PerceptionModule, has been replaced")
            break
    if called and (
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    ):
        reasons.append("torch has global module hooks, which a fused step would not call")
    perception, network = parts.get("perception"), parts.get("update_net")
    layers: Any = () if network is None else tuple(network._modules.values())
    if "perception" in own or "update_net" in own:
        reasons.append("perception or update_net is an attribute that hides a module")
    if fault := _perception_fault(model, perception):
        reasons.append(fault)
    if fault := _network_fault(model, network, layers):
        reasons.append(fault)
    for module in (None if single else model, perception, network, *layers):
        if module is None:
            continue
        state = module.__dict__  # one test a name: torch.compile traces it, and it is the fastest
        if (
            state["_forward_hooks"]
            or state["_forward_pre_hooks"]
            or state["_backward_hooks"]
            or state["_backward_pre_hooks"]
        ):
            reasons.append(f"{_name(model, module)} has hooks, which a rollout would not call")
        elif module is not model and (
            "forward" in state
            or "_call_impl" in state
            or "_compiled_call_impl" in state
            or "_conv_forward" in state
            or "weight" in state
            or "bias" in state
            or "filters" in state
        ):
            said = "has attributes in place of methods or parameters"
            reasons.append(f"{_name(model, module)} {said}")
    return reasons


def undescribed(model: "NeuralCA") -> list[str]:
    """List in what `model` is not what its rule and its weights say, one sentence each.

    Its files cannot describe that.
    """
    return model_reasons(model, single=False, called=False)


def parameters_of(model: "NeuralCA") -> Parameters:
    """Return the tensors that a recognised model computes with.

    Returns:
        The filters `[K*C, 1, 3, 3]` if the rule learns them; then of each layer the weight
        `[after, before, 1, 1]` and, but for a last one without, the bias `[after]`.
    """
    modules = model._modules  # faster than attributes
    layers: Any = modules["update_net"]._modules.values()  # type: ignore[union-attr]
    found = []
    for layer in list(layers)[::2]:
        named = layer._parameters
        found.append(named["weight"])
        if named["bias"] is not None:
            found.append(named["bias"])
    if model.rule.learn_filters:
        found.insert(0, modules["perception"]._parameters["filters"])  # type: ignore[union-attr]
    return tuple(found)


def parameter_names(rule: Rule, num_channels: int) -> list[str]:
    """Name the tensors of `parameters_of` as a `state_dict` does."""
    first = 0 if rule.learn_filters else 1
    return list(rule.shapes(num_channels))[first:]


def _describe_overridden(names: list[str]) -> str:
    said = f"the model overrides {' and '.join(names)}"
    if "get_alive_mask" in names:
        return f"{said}; Rule(alive=..., alive_threshold=...) says which cells live"
    return f"{said}; the fields of its Rule say what a step computes"


def _name(model: nn.Module, part: nn.Module) -> str:
    """Return what a part of a model is called."""
    if part is model:
        return "the model"
    names: list[str] = [name for name, each in model.named_modules() if each is part]
    return names[0]


def _perception_fault(model: "NeuralCA", perception: nn.Module | None) -> str:
    """Say why a perception is not that of the model's rule; empty if it is."""
    rule = model.rule
    if type(perception) is not PerceptionModule:
        return (
            f"perception is a {type(perception).__name__}, which no rule describes; "
            "Rule(filters=..., learn_filters=..., padding=...) says what a cell perceives"
        )
    if perception.padding != rule.padding:
        return f"perception pads with {perception.padding!r}; use Rule(padding=...)"
    filters = perception._parameters.get("filters")
    if perception.num_channels != model.num_channels or filters is None:
        return f"perception is not of {model.num_channels} channels"
    if type(filters) not in PLAIN:
        return "perception.filters is not an ordinary tensor"
    if rule.learn_filters:
        if filters.shape == (model.num_channels * len(rule.filters), 1, 3, 3):
            return ""
        return f"perception.filters has another shape than {len(rule.filters)} filters per channel"
    if filters.requires_grad:
        return "perception.filters has a gradient; use Rule(learn_filters=True)"
    if filters.is_cuda or torch.compiler.is_compiling() or count_dispatch_modes():
        equal = has_filters(filters, model.num_channels, rule)
    else:
        equal = torch.equal(
            filters, expected_filters(model.num_channels, rule, filters.dtype, filters.device)
        )
    if not equal:
        return "perception.filters are not those of the rule; use Rule(filters=...)"
    return ""


def _network_fault(
    model: "NeuralCA", network: nn.Module | None, layers: tuple[nn.Module, ...]
) -> str:
    """Say why a network is not that of the model's rule; empty if it is."""
    rule = model.rule
    widths = (
        model.num_channels * len(rule.filters),
        *rule.hidden,
        model.num_channels - rule.inputs,
    )
    if type(network) is not nn.Sequential or len(layers) != 2 * len(rule.hidden) + 1:
        return (
            f"update_net is not the {len(rule.hidden) + 1} convolutions 1x1 of the rule, with an "
            "activation between them; Rule(hidden=...) gives the layers"
        )
    activation = ACTIVATIONS[rule.activation]
    for layer in layers[1::2]:
        if type(layer) is not activation or (
            activation is not nn.ReLU and repr(layer) != repr(activation())
        ):
            return (
                f"update_net has {layer!r} where the rule has {activation.__name__}; use "
                "Rule(activation=...)"
            )
    perception = model._modules.get("perception")
    like: Tensor | None = None
    if rule.learn_filters and perception is not None:
        like = perception._parameters.get("filters")
    for number, (before, after) in enumerate(pairwise(widths)):
        layer = layers[2 * number]
        if type(layer) is not nn.Conv2d or not (
            layer.stride == (1, 1)
            and layer.padding == (0, 0)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
        ):
            return f"update_net[{2 * number}] is not a convolution 1x1; use Rule(hidden=...)"
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        has_bias = number < len(rule.hidden) or rule.final_bias
        if (bias is not None) is not has_bias:
            return (
                f"update_net[{2 * number}] has {'a' if bias is not None else 'no'} bias; "
                "Rule(final_bias=...) says whether the last layer has one"
            )
        for tensor, shape in ((weight, (after, before, 1, 1)), (bias, (after,))):
            if tensor is None and tensor is bias and not has_bias:
                continue
            if tensor is None or tensor.shape != shape:
                return (
                    f"update_net[{2 * number}] is not {before} to {after} channels; num_channels "
                    "and Rule(filters=..., hidden=..., inputs=...) give the sizes"
                )
            like = tensor if like is None else like
            if not (
                type(tensor) in PLAIN
                and tensor.dtype is like.dtype
                and tensor.device == like.device
                and tensor.layout is torch.strided
            ):
                return "the parameters of update_net are not ordinary tensors of one dtype, device"
    return ""
