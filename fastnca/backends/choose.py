"""Which backend computes a call, and why not a faster one."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnca._torch_internals import (
    DeviceContext,
    count_dispatch_modes,
    count_function_modes,
    forward_ad,
    function_modes,
    is_wrapped,
    tracing_state,
    transforms_active,
)
from fastnca.backends import BackendError, requested_backend
from fastnca.backends.autograd import PLAIN
from fastnca.backends.base import BACKENDS, Backend, RolloutCall, precision_reasons, register
from fastnca.backends.cpp import Cpp
from fastnca.backends.torch_active import TorchActive
from fastnca.backends.triton_fused import TritonFused
from fastnca.checks import check_state
from fastnca.masks import Updates
from fastnca.recognition import model_reasons

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

PRECISIONS = ("auto", "fp16", "bf16", "ieee")
"""Operand precisions of the fused kernels; "auto" and "ieee" are exact on the other backends."""

_log = logging.getLogger("fastnca")

register(TritonFused())
register(Cpp())
register(TorchActive())


@dataclass(frozen=True)
class Explanation:
    """Which backend computes a model's rollouts, and what kept the faster ones from it.

    Attributes:
        backend: its name.
        refused: the sentences of each faster backend, by its name.
    """

    backend: str
    refused: dict[str, list[str]]

    def __str__(self) -> str:
        lines = [f"{self.backend} computes it"]
        for name, reasons in self.refused.items():
            lines.append(f"{name} does not: {'; '.join(reasons)}")
        return "\n".join(lines)


def choose(model: "NeuralCA", argument: str, call: RolloutCall) -> Backend | None:
    """Choose the backend of one call.

    Args:
        model: the model that is called.
        argument: the model's own choice.
        call: what is to be computed; its parameters are not looked at.

    Returns:
        The backend; None is the reference.

    Raises:
        BackendError: an explicitly requested backend, or precision, cannot run.
        ValueError: the environment variable names no backend.
    """
    name = argument if argument != "auto" else requested_backend(argument)
    if name != "auto":
        return _insist(name, model, call)
    state = call.state
    only: list[Backend] = []
    if call.precision not in ("auto", "ieee"):
        only = [each for each in BACKENDS.values() if call.precision in each.precisions]
    compiling = torch.compiler.is_compiling()
    seen = [] if compiling else _call_reasons(state)
    if not only:
        # the flag, because torch.compile of torch 2.11 takes is_exporting() for true
        if torch.compiler._is_exporting_flag if compiling else seen:
            return None
        if not compiling and (forward_ad._current_level >= 0 or count_dispatch_modes()):
            return None
    refused: list[tuple[str, list[str]]] = []
    common: list[str] | None = None
    for backend in only or BACKENDS.values():
        if not only and state.device.type not in backend.devices:
            continue
        if common is None:
            common = seen or model_reasons(model, call.single)
        reasons = common or backend.refuses(call)
        if not reasons:
            if call.single and state.numel() < backend.least_cells * state.shape[1]:
                return None  # the reference is faster
            if refused and not compiling:
                _log_once(logging.INFO, backend.name, refused[0][0], tuple(refused[0][1]))
            return backend
        refused.append((backend.name, reasons))
    if only:
        advice = f"precision='{call.precision}' exists only there; use precision='auto'."
        raise BackendError(refused[0][0], refused[0][1], advice)
    if refused and not compiling:
        _log_once(logging.WARNING, "reference", refused[-1][0], tuple(refused[-1][1]))
    return None


def choose_backend(
    model: "NeuralCA", argument: str, precision: str, state: Tensor, single: bool = False
) -> str:
    """Return the name of the backend that computes a rollout, or a single step, from `state`.

    Raises:
        BackendError: an explicitly requested backend, or precision, cannot run.
        ValueError: the environment variable names no backend.
    """
    call = RolloutCall(state, (), model.rule, Updates(1), precision, single=single)
    backend = choose(model, argument, call)
    return "reference" if backend is None else backend.name


def explain(model: "NeuralCA", state: Tensor) -> Explanation:
    """Say which backend computes rollouts of `model` from `state`, and why not a faster one.

    Raises:
        BackendError: an explicitly requested backend, or precision, cannot run.
        TypeError, ValueError: the state does not fit the model.
    """
    check_state(state, model)
    name = choose_backend(model, model.backend, model.precision, state)
    asked = requested_backend(model.backend)
    call = RolloutCall(state, (), model.rule, Updates(1), model.precision)
    refused = {}
    for backend in BACKENDS.values():
        if backend.name == name:
            break
        reasons = refusals(backend, model, call)
        if not reasons and asked != "auto":
            reasons = [f"backend='{asked}' was asked for"]
        if not reasons:
            listed = " and ".join(sorted(backend.devices)) or "no"
            reasons = [f"it is taken on {listed} devices; backend='{backend.name}' asks for it"]
        refused[backend.name] = reasons
    return Explanation(name, refused)


def refusals(backend: Backend, model: "NeuralCA", call: RolloutCall) -> list[str]:
    """List why a backend cannot compute a call of a model; empty if it can."""
    seen = [] if torch.compiler.is_compiling() else _call_reasons(call.state)
    return seen or model_reasons(model, call.single) or backend.refuses(call)


def _insist(name: str, model: "NeuralCA", call: RolloutCall) -> Backend | None:
    """Return the backend that was asked for, or refuse."""
    if name == "reference":
        reasons = precision_reasons(call.precision)
    else:
        reasons = refusals(BACKENDS[name], model, call)
    if reasons:
        advice = "Use backend='auto', which takes the fastest backend that can run."
        raise BackendError(name, reasons, advice)
    return BACKENDS.get(name)


def is_observed(state: Tensor) -> bool:
    """Tell whether a transform or a mode of torch is to see, or to replace, every operator."""
    modes = forward_ad._current_level >= 0 or count_dispatch_modes()
    return bool(modes or _call_reasons(state))


def _call_reasons(state: Tensor) -> list[str]:
    """List what about a call, beside model and machine, keeps it from the fast backends."""
    reasons = []
    if transforms_active():
        reasons.append("torch.func transforms go through the reference operators")
    if tracing_state() is not None:
        reasons.append("torch.jit.trace records the reference operators")
    if count_function_modes() and not all(type(mode) is DeviceContext for mode in function_modes()):
        reasons.append("a TorchFunctionMode is active, which sees the reference's functions only")
    if type(state) not in PLAIN:
        reasons.append(f"the state is a {type(state).__name__}, a subclass of torch.Tensor")
    elif is_wrapped(state):
        reasons.append("the state is left over from a transform of torch.func")
    elif state.layout is not torch.strided:
        reasons.append(f"the state has layout {state.layout}, and must be dense")
    if reasons:
        return reasons
    if state.is_meta:
        return ["a state on the meta device has no values"]
    return ["the batch is empty"] if 0 in state.shape else []


@lru_cache(maxsize=64)
def _log_once(level: int, used: str, name: str, reasons: tuple[str, ...]) -> None:
    said = "; ".join(reasons)
    _log.log(level, "the %s backend is used, because '%s' cannot: %s", used, name, said)
