"""What each backend cannot do: one sentence per refusal, used by the choice and by its errors."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastnca.backends import BackendError, requested_backend
from fastnca.backends.autograd import PLAIN
from fastnca.backends.cpp import cpp_reasons
from fastnca.backends.triton_fused import fused_reasons
from fastnca.masks import check_seed, check_seed_tensor, draw_seed
from fastnca.recognition import hooked, hooked_everywhere, model_reasons, overridden

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

PRECISIONS = ("auto", "fp16", "bf16", "ieee")
"""Operand precisions of the fused kernels; "auto" and "ieee" are exact on the other backends."""

_FEWEST_CELLS = 2048
"""Below this many cells a single step costs less with the reference operators than the search
for active cells does (`python -m bench.run` measures it)."""

_AUTOCAST = {torch.float16: "fp16", torch.bfloat16: "bf16"}

_log = logging.getLogger("fastnca")


def choose_backend(
    model: "NeuralCA", argument: str, precision: str, state: Tensor, single: bool = False
) -> str:
    """Choose the backend of one call.

    Args:
        model: the model that is called.
        argument: the model's own choice.
        precision: the model's operand precision.
        state: `[B, C, H, W]`, the input.
        single: whether the call is one step; otherwise it is a rollout.

    Returns:
        "reference", "torch", "cpp" or "triton".

    Raises:
        BackendError: an explicitly requested backend, or precision, cannot run.
        ValueError: the environment variable names no backend.
    """
    name = argument if argument != "auto" else requested_backend(argument)
    if name != "auto":
        reasons = backend_reasons(name, model, precision, state, single)
        if reasons:
            advice = "Use backend='auto', which takes the fastest backend that can run."
            raise BackendError(name, reasons, advice)
        return name
    fused_only = precision in ("fp16", "bf16")
    compiling = torch.compiler.is_compiling()
    # the flag, because torch.compile of torch 2.11 takes is_exporting() for true
    exporting = torch.compiler._is_exporting_flag
    if not fused_only and (exporting if compiling else _observers(state)):
        return "reference"
    name = "triton" if state.is_cuda or fused_only else _fastest_elsewhere(state)
    if single and name == "torch" and state.numel() < _FEWEST_CELLS * model.num_channels:
        return "reference"
    reasons = backend_reasons(name, model, precision, state, single)
    if not reasons:
        return name
    if fused_only:
        advice = f"precision='{precision}' exists only there; use precision='auto'."
        raise BackendError(name, reasons, advice)
    if not compiling and not state.is_meta and state.numel() > 0:
        _log_once(logging.WARNING, "reference", name, tuple(reasons))
    return "reference"


def _fastest_elsewhere(state: Tensor) -> str:
    """Return what "auto" would have where there is no GPU: compiled if there is a compiler."""
    if state.device.type != "cpu" or active_reasons(state):
        return "torch"
    reasons = cpp_reasons(state.dtype)
    if not reasons:
        return "cpp"
    if not torch.compiler.is_compiling():
        _log_once(logging.INFO, "torch", "cpp", reasons)
    return "torch"


def backend_reasons(
    name: str, model: "NeuralCA", precision: str, state: Tensor, single: bool = False
) -> list[str]:
    """List why backend `name` cannot run `model` on `state`; empty if it can.

    See `choose_backend` for the arguments.
    """
    compiling = torch.compiler.is_compiling()
    if name == "reference":
        return _precision_reasons(precision)
    if name != "triton" and single and compiling:
        return ["torch.compile traces the reference operators of a single step"]
    if not compiling and (reasons := _call_reasons(state)):
        return reasons
    if state.is_meta:
        return ["a state on the meta device has no values"]
    reasons = []
    if name == "triton":
        device = state.device
        operands = operand_precision(precision, device.type)
        reasons += fused_reasons(
            device, state.dtype, model.num_channels, model.hidden_dim, operands
        )
    else:
        reasons += _precision_reasons(precision) + active_reasons(state)
    if name == "cpp":
        if state.device.type != "cpu":
            reasons.append(f"it runs on a CPU, and the state is on {state.device}")
        elif not reasons:
            reasons += cpp_reasons(state.dtype)
    if state.numel() == 0:
        reasons.append("the batch is empty")
    if not single and hooked(model):
        reasons.append("the model has hooks, which a rollout would not call")
    return reasons + model_reasons(model, tensors=name != "triton")


def _precision_reasons(precision: str) -> list[str]:
    """List what keeps a backend other than triton from an operand precision."""
    if precision in ("fp16", "bf16"):
        return [f"precision='{precision}' exists only in the fused kernels"]
    return []


def _observers(state: Tensor) -> bool:
    """Tell whether a transform or a mode of torch is to see, or to replace, every operator."""
    return bool(
        forward_ad._current_level >= 0 or _len_torch_dispatch_stack() or _call_reasons(state)
    )


def _call_reasons(state: Tensor) -> list[str]:
    """List what about a call, beside model and machine, keeps it from the fast backends."""
    reasons = []
    if _are_functorch_transforms_active():
        reasons.append("torch.func transforms go through the reference operators")
    if _get_tracing_state() is not None:
        reasons.append("torch.jit.trace records the reference operators")
    if _len_torch_function_stack() and not all(
        type(mode) is DeviceContext for mode in _get_current_function_mode_stack()
    ):
        reasons.append("a TorchFunctionMode is active, which sees the reference's functions only")
    if type(state) not in PLAIN:
        reasons.append(f"the state is a {type(state).__name__}, a subclass of torch.Tensor")
    elif is_functorch_wrapped_tensor(state):
        reasons.append("the state is left over from a transform of torch.func")
    elif state.layout is not torch.strided:
        reasons.append(f"the state has layout {state.layout}, and must be dense")
    return reasons


def choose_seed(
    model: "NeuralCA", seed: int | Tensor | None, state: Tensor, backend: str
) -> int | Tensor | None:
    """Return the seed of a rollout's masks, or None where no seeded mask is used.

    Args:
        model: the model that is called.
        seed: what was asked for, an int or a tensor with one integer; None draws one.
        state: the input.
        backend: who computes the rollout.

    Returns:
        The seed. None if every cell updates, or if the reference draws masks step by step: where a
        step calls hooks, and where torch records what a call draws.

    Raises:
        TypeError: the seed is not an integer, or a call of `model` draws masks of its own.
        ValueError: the seed is out of range.
    """
    if own := _own_steps(model):
        if seed is not None and model.training:
            raise TypeError(
                f"{own}, and a seeded rollout would not call it; leave seed=None and use "
                "torch.manual_seed"
            )
        return None
    if seed is None:
        recorded = backend == "reference" and (
            hooked_everywhere() or torch.compiler.is_compiling() or _observers(state)
        )
        return None if recorded else step_seed(model, state)
    if not model.training:
        return None
    if isinstance(seed, Tensor):
        return check_seed_tensor(seed)
    return check_seed(seed)


def step_seed(model: "NeuralCA", state: Tensor) -> int | Tensor | None:
    """Draw a seed from torch's generator, or return None where every cell updates.

    `torch.compile` draws it where the state lives, as a part of the graph.
    """
    if not model.training:
        return None
    if torch.compiler.is_compiling():
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=state.device)
    return draw_seed()


def _own_steps(model: "NeuralCA") -> str:
    """Say why every step of a rollout must call `model`; empty if none must."""
    if "forward" in overridden(model):
        return f"this {type(model).__name__} overrides forward, which draws its own masks"
    if hooked(model):
        return f"this {type(model).__name__} has hooks on its calls"
    return ""


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


# torch.compile takes the machine as it finds it while it traces. This is
# torch.compiler.assume_constant_result, which would import the whole compiler here.
for _function in (fused_reasons, cpp_reasons):
    vars(_function)["_dynamo_marked_constant"] = True


@lru_cache(maxsize=64)
def _log_once(level: int, used: str, name: str, reasons: tuple[str, ...]) -> None:
    said = "; ".join(reasons)
    _log.log(level, "the %s backend is used, because '%s' cannot: %s", used, name, said)
