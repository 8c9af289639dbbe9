"""What each backend cannot do: one sentence per refusal, used by the choice and by its errors."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, cast
from weakref import ref

import torch
import torch.nn as nn
from torch import Tensor

from fastnca.backends import BackendError, requested_backend
from fastnca.cpp import cpp_reasons
from fastnca.fused import fused_reasons
from fastnca.masks import check_seed, draw_seed
from fastnca.reference import PerceptionModule, sobel_filters

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

PRECISIONS = ("auto", "fp16", "bf16", "ieee")
"""Operand precisions of the fused kernels; "auto" and "ieee" are exact on the other backends."""

_AUTOCAST = {torch.float16: "fp16", torch.bfloat16: "bf16"}

_log = logging.getLogger("fastnca")


def choose_backend(
    model: "NeuralCA", argument: str, precision: str, state: Tensor, small: bool = False
) -> str:
    """Choose the backend of one call.

    Args:
        model: the model that is called.
        argument: the model's own choice.
        precision: the model's operand precision.
        state: `[B, C, H, W]`, the input.
        small: whether the reference is faster than "torch", so that "auto" takes it instead.

    Returns:
        "reference", "torch", "cpp" or "triton".

    Raises:
        BackendError: an explicitly requested backend, or precision, cannot run.
        ValueError: the environment variable names no backend.
    """
    name = requested_backend(argument)
    if name != "auto":
        reasons = backend_reasons(name, model, precision, state)
        if reasons:
            advice = "Use backend='auto', which takes the fastest backend that can run."
            raise BackendError(name, reasons, advice)
        return name
    fused_only = precision in ("fp16", "bf16")
    name = "triton" if state.is_cuda or fused_only else _fastest_elsewhere(state)
    if small and name == "torch":
        return "reference"
    reasons = backend_reasons(name, model, precision, state)
    if not reasons:
        return name
    if torch.compiler.is_compiling() and not fused_only:
        return "reference"
    if fused_only:
        advice = f"precision='{precision}' exists only there; use precision='auto'."
        raise BackendError(name, reasons, advice)
    _log_once("reference", name, tuple(reasons))
    return "reference"


def _fastest_elsewhere(state: Tensor) -> str:
    """Return what "auto" would have where there is no GPU: compiled if there is a compiler."""
    if torch.compiler.is_compiling() or state.device.type != "cpu" or active_reasons(state):
        return "torch"
    if reasons := cpp_reasons(state.dtype):
        _log_once("torch", "cpp", reasons)
        return "torch"
    return "cpp"


def backend_reasons(name: str, model: "NeuralCA", precision: str, state: Tensor) -> list[str]:
    """List why backend `name` cannot run `model` on `state`; empty if it can."""
    reasons: list[str] = []
    if name in ("torch", "cpp") and torch.compiler.is_compiling():
        return ["torch.compile traces the reference operators"]
    if name != "reference" and state.is_meta:
        return ["a state on the meta device has no values"]
    if name != "triton" and precision in ("fp16", "bf16"):
        reasons.append(f"precision='{precision}' exists only in the fused kernels")
    if name == "triton":
        operands = operand_precision(precision, state.device.type)
        reasons += fused_reasons(
            state.device, state.dtype, model.num_channels, model.hidden_dim, operands
        )
    if name in ("torch", "cpp"):
        reasons += active_reasons(state)
    if name == "cpp":
        if state.device.type != "cpu":
            reasons.append(f"it runs on a CPU, and the state is on {state.device}")
        elif not reasons:
            reasons += cpp_reasons(state.dtype)
    if name != "reference":
        if state.numel() == 0:
            reasons.append("the batch is empty")
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            reasons.append("torch.func transforms go through the reference operators")
        reasons += model_reasons(model)
    return reasons


def choose_seed(
    model: "NeuralCA", seed: int | Tensor | None, state: Tensor | None
) -> int | Tensor | None:
    """Return the seed of a rollout's masks, or None where no seeded mask is used.

    Args:
        model: the model that is called.
        seed: what was asked for; None draws from torch's default generator.
        state: the input; a seed may then be a tensor, and `torch.compile` draws one where the
            state lives, as a part of the graph. None allows neither.

    Returns:
        The seed.

    Raises:
        TypeError: the seed is not a number, or `model` draws masks of its own.
        ValueError: the seed is out of range.
    """
    if "forward" in model.overridden():
        if seed is not None:
            raise TypeError(
                f"{type(model).__name__} overrides forward, which draws its own masks; "
                "leave seed=None and use torch.manual_seed"
            )
        return None
    if not model.training:
        return None
    if state is not None and isinstance(seed, Tensor):
        return seed
    if state is not None and seed is None and torch.compiler.is_compiling():
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=state.device)
    return draw_seed() if seed is None else check_seed(cast(int, seed))


def operand_precision(precision: str, device_type: str) -> str:
    """Resolve "auto": what autocast asks for, else fp16 where torch itself allows TF32."""
    if precision != "auto":
        return precision
    if torch.is_autocast_enabled(device_type):
        return _AUTOCAST.get(torch.get_autocast_dtype(device_type), "ieee")
    return "fp16" if torch.backends.cudnn.allow_tf32 else "ieee"


def active_reasons(state: Tensor) -> list[str]:
    """List what about this call keeps it from active cells, which torch and cpp work on."""
    reasons = []
    if state.dtype not in (torch.float32, torch.float64):
        reasons.append(f"states must be float32 or float64, got {state.dtype}")
    if torch.is_autocast_enabled(state.device.type):
        reasons.append("autocast is on, and its rounding is that of the reference operators")
    return reasons


def model_reasons(model: "NeuralCA") -> list[str]:
    """List in what the model is no longer the tutorial's rule with its fixed filters."""
    reasons = []
    if overridden := model.overridden():
        reasons.append(f"{type(model).__name__} overrides {' and '.join(overridden)}")
    perception = cast(nn.Module, model._modules["perception"])
    network = cast(nn.Module, model._modules["update_net"])
    filters = perception._parameters.get("filters")
    if type(perception) is not PerceptionModule or filters is None or not _is_sobel(filters):
        reasons.append("perception is not the fixed identity and Sobel filters")
    layers = [layer for layer in network._modules.values() if layer is not None]
    if not (
        len(layers) == 3
        and type(layers[0]) is type(layers[2]) is nn.Conv2d
        and type(layers[1]) is nn.ReLU
        and _is_pointwise(layers[0])
        and _is_pointwise(layers[2])
    ):
        reasons.append("update_net is not convolution 1x1, ReLU, convolution 1x1, with biases")
    for module in (perception, network, *layers):
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        ):
            reasons.append("a submodule has hooks, which a fused step would not call")
            break
    return reasons


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer._parameters["bias"] is not None
    )


def _is_sobel(filters: Tensor) -> bool:
    """Tell whether `filters` `[3*C, 1, 3, 3]` are the fixed ones and get no gradient."""
    if filters.requires_grad:
        return False
    if torch.compiler.is_compiling():
        return _equals_sobel(filters)
    if not _waits(filters) or filters.is_inference():
        return _equals_sobel(filters)
    written = (filters._version, filters.data_ptr())
    known = _compared.get(id(filters))
    if known is None or known[0]() is not filters or known[1] != written:
        if len(_compared) >= 64:
            _compared.clear()
        known = _compared[id(filters)] = (ref(filters), written, _equals_sobel(filters))
    return known[2]


def _waits(filters: Tensor) -> bool:
    """Tell whether a comparison waits for the device."""
    return filters.is_cuda


def _equals_sobel(filters: Tensor) -> bool:
    expected = _expected_filters(filters.shape[0] // 3, filters.dtype, filters.device)
    return torch.equal(filters, expected)


# torch.compile takes the machine and a model's fixed filters as it finds them while it traces. This
# is torch.compiler.assume_constant_result, which would import the whole compiler here.
for _function in (fused_reasons, _equals_sobel):
    vars(_function)["_dynamo_marked_constant"] = True

_compared: dict[int, tuple["ref[Tensor]", tuple[int, int], bool]] = {}
"""Filters on a GPU, where a comparison waits for the device, by id: compared once per change that
torch counts; it does not count writes through `.data`."""


@lru_cache(maxsize=16)
def _expected_filters(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return sobel_filters().repeat(channels, 1, 1).view(-1, 1, 3, 3).to(device, dtype)


@lru_cache(maxsize=64)
def _log_once(used: str, name: str, reasons: tuple[str, ...]) -> None:
    _log.info("the %s backend is used, because '%s' cannot: %s", used, name, "; ".join(reasons))
