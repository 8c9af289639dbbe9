"""What each backend cannot do: one sentence per refusal, used by the choice and by its errors."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor

from fastnca.backends import BackendError, requested_backend
from fastnca.fused import fused_reasons
from fastnca.reference import PerceptionModule, sobel_filters

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

PRECISIONS = ("auto", "fp16", "bf16", "ieee")
"""Operand precisions of the fused kernels; "auto" and "ieee" are exact on the other backends."""

_AUTOCAST = {torch.float16: "fp16", torch.bfloat16: "bf16"}

_log = logging.getLogger("fastnca")


def choose_backend(model: "NeuralCA", argument: str, precision: str, state: Tensor) -> str:
    """Choose the backend of one call.

    Args:
        model: the model that is called.
        argument: the model's own choice.
        precision: the model's operand precision.
        state: `[B, C, H, W]`, the input.

    Returns:
        "reference", "torch" or "triton".

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
    name = "triton" if state.is_cuda or fused_only else "torch"
    reasons = backend_reasons(name, model, precision, state)
    if not reasons:
        return name
    if torch.compiler.is_compiling() and not fused_only:
        return "reference"
    if fused_only:
        advice = f"precision='{precision}' exists only there; use precision='auto'."
        raise BackendError(name, reasons, advice)
    _log_once(name, tuple(reasons))
    return "reference"


def backend_reasons(name: str, model: "NeuralCA", precision: str, state: Tensor) -> list[str]:
    """List why backend `name` cannot run `model` on `state`; empty if it can."""
    reasons: list[str] = []
    if name != "reference" and torch.compiler.is_compiling():
        return ["torch.compile traces the reference operators"]
    if name != "triton" and precision in ("fp16", "bf16"):
        reasons.append(f"precision='{precision}' exists only in the fused kernels")
    if name == "triton":
        operands = operand_precision(precision, state.device.type)
        reasons += fused_reasons(
            state.device, state.dtype, model.num_channels, model.hidden_dim, operands
        )
    if name == "torch":
        reasons += active_reasons(state)
    if name != "reference":
        if state.numel() == 0:
            reasons.append("the batch is empty")
        if torch._C._are_functorch_transforms_active():
            reasons.append("torch.func transforms go through the reference operators")
        reasons += model_reasons(model)
    return reasons


def operand_precision(precision: str, device_type: str) -> str:
    """Resolve "auto": what autocast asks for, else fp16 where torch itself allows TF32."""
    if precision != "auto":
        return precision
    if torch.is_autocast_enabled(device_type):
        return _AUTOCAST.get(torch.get_autocast_dtype(device_type), "ieee")
    return "fp16" if torch.backends.cudnn.allow_tf32 else "ieee"


def active_reasons(state: Tensor) -> list[str]:
    """List what about this call keeps it from the active cells of the torch backend."""
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
    if type(model.perception) is not PerceptionModule or not _is_sobel(model.perception.filters):
        reasons.append("perception is not the fixed identity and Sobel filters")
    layers = list(model.update_net)
    if not (
        [type(layer) for layer in layers] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
        and all(_is_pointwise(layer) for layer in layers[::2])
    ):
        reasons.append("update_net is not convolution 1x1, ReLU, convolution 1x1, with biases")
    if any(_has_hooks(module) for module in (model.perception, model.update_net, *layers)):
        reasons.append("a submodule has hooks, which a fused step would not call")
    return reasons


def _is_pointwise(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.bias is not None
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_sobel(filters: Tensor) -> bool:
    """Tell whether `filters` `[3*C, 1, 3, 3]` are the fixed ones and get no gradient."""
    if filters.requires_grad:
        return False
    expected = _expected_filters(filters.shape[0] // 3, filters.dtype, filters.device)
    return torch.equal(filters, expected)


@lru_cache(maxsize=16)
def _expected_filters(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return sobel_filters().repeat(channels, 1, 1).view(-1, 1, 3, 3).to(device, dtype)


@lru_cache(maxsize=64)
def _log_once(name: str, reasons: tuple[str, ...]) -> None:
    _log.info("the reference backend is used, because '%s' cannot: %s", name, "; ".join(reasons))
