"""Every reason why the fused path cannot run, one sentence each, and checks of tensors."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec

import numpy
import torch
from torch import Tensor

from fastnca._torch_internals import assume_constant_result
from fastnca.checks import Parameters, check_like, check_memory
from fastnca.rule import Rule

Kind = tuple[torch.Size, torch.dtype, torch.device]

PRECISIONS = ("fp16", "bf16", "ieee")
MAX_CHANNELS = 32
MAX_HIDDEN = 256
MAX_FILTERS = 4
PADDINGS = ("zeros", "circular")
ALIVE = ("both", "none")
MIN_CAPABILITY = (8, 0)

MAX_WIDTH = 1 << 20
"""A tile and its halo span 18 rows of 64 numbers a cell, and offsets within them are 32-bit."""

MIN_TORUS = 3
"""Cells a side; a word of flags holds two cells beyond the border."""

MAX_TORUS_CELLS = 1 << 24
"""The other side of a torus is found by offsets of 32 bits, 64 numbers and two bytes a cell."""

MAX_TILES = 1 << 30
"""Tiles, of eight columns and at least four rows, are numbered in 32 bits."""

_NAMES = ("w1", "b1", "w2", "b2")
_AUTOCAST = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@cache
def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter, which needs no GPU.

    Triton reads its environment variable when a kernel is defined: a process has one answer.
    """
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@assume_constant_result  # torch.compile takes the machine as it finds it while it traces
def fused_reasons(
    device: torch.device | str,
    dtype: torch.dtype,
    channels: int,
    hidden: int,
    precision: str,
) -> list[str]:
    """List the reasons why a rollout cannot run on the fused kernels.

    Args:
        device: where the state lives.
        dtype: type of the state.
        channels: channels C of the state.
        hidden: hidden units of the network.
        precision: "fp16", "bf16" or "ieee".

    Returns:
        One sentence per reason; empty if the rollout can run.
    """
    if not isinstance(device, torch.device):
        device = torch.device(device)
    return list(_reasons(device, dtype, channels, hidden, precision, interpreted()))


def rule_reasons(rule: Rule) -> list[str]:
    """Name the fields of a rule that the kernels do not compute, one sentence each."""
    computed = (
        ("filters", len(rule.filters) <= MAX_FILTERS, f"at most {MAX_FILTERS} filters"),
        ("learn_filters", not rule.learn_filters, "fixed filters"),
        ("padding", rule.padding in PADDINGS, f"padding {' and '.join(PADDINGS)}"),
        ("alive", rule.alive in ALIVE, f"alive {' and '.join(ALIVE)}"),
        ("hidden", len(rule.hidden) == 1, "one hidden layer"),
        ("activation", rule.activation == "relu", "relu"),
        ("clamp", rule.clamp is None, "states without limits"),
        ("step_size", rule.step_size == 1, "a step size of 1"),
    )
    return [
        f"{name}={getattr(rule, name)!r}: the fused kernels compute {what}"
        for name, whether, what in computed
        if not whether
    ]


def operand_precision(precision: str, device_type: str) -> str:
    """Resolve "auto": what autocast asks for, else fp16 where torch itself allows TF32."""
    if precision != "auto":
        return precision
    if torch.is_autocast_enabled(device_type):
        return _AUTOCAST.get(torch.get_autocast_dtype(device_type), "ieee")
    return "fp16" if torch.backends.cudnn.allow_tf32 else "ieee"


@lru_cache(maxsize=256)
def _reasons(
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    hidden: int,
    precision: str,
    interpreted: bool,
) -> tuple[str, ...]:
    """List what `fused_reasons` does."""
    reasons = list(_device_reasons(device, interpreted))
    if dtype != torch.float32:
        reasons.append(f"The fused kernels keep a float32 state, got {dtype}.")
    if channels > MAX_CHANNELS:
        reasons.append(f"The fused kernels take up to {MAX_CHANNELS} channels, got {channels}.")
    if hidden > MAX_HIDDEN:
        reasons.append(f"The fused kernels take up to {MAX_HIDDEN} hidden units, got {hidden}.")
    if precision not in PRECISIONS:
        reasons.append(
            f"The fused kernels have the precisions {', '.join(PRECISIONS)}, got {precision!r}."
        )
    elif precision == "bf16" and interpreted:
        reasons.append("Triton's interpreter multiplies bfloat16 wrongly; use fp16 or ieee.")
    elif not reasons:
        capability = 9 if interpreted else torch.cuda.get_device_capability(device)[0]
        reasons += size_reasons(precision, channels, hidden, capability)
    return tuple(reasons)


def size_reasons(precision: str, channels: int, hidden: int, capability: int) -> list[str]:
    """List the reasons why a network's size is beyond a GPU, one sentence each.

    Args:
        precision: "fp16", "bf16" or "ieee".
        channels: channels C of the state.
        hidden: hidden units of the network.
        capability: major compute capability of the device.

    Returns:
        One sentence per reason.
    """
    if precision == "ieee" and capability in (10, 11):
        return [
            "Triton cannot compile the backward kernel with precision ieee for compute "
            f"capability {capability}; use fp16."
        ]
    wide = channels > 16
    large = hidden > 128
    if wide and large and (precision == "ieee" or capability != 9):
        return [
            f"Weights of {channels} channels and {hidden} hidden units with precision {precision} "
            f"exceed what compute capability {capability} has on chip."
        ]
    if (wide or large) and precision == "ieee" and capability != 9:
        return [
            f"Weights of {channels} channels and {hidden} hidden units with precision ieee exceed "
            f"the shared memory of compute capability {capability}; use fp16."
        ]
    return []


def shape_reasons(batch: int, height: int, width: int, padding: str) -> list[str]:
    """List the reasons why a batch of grids is out of the kernels' range, one sentence each."""
    reasons = []
    if padding == "circular" and (
        min(height, width) < MIN_TORUS or height * (width + 2) > MAX_TORUS_CELLS
    ):
        reasons.append(
            f"The fused kernels take a torus of at least {MIN_TORUS} cells a side and at most "
            f"{MAX_TORUS_CELLS} cells, got {height}x{width}."
        )
    if height < 1 or width < 1:
        reasons.append(f"A grid needs at least one cell, got {height}x{width}.")
    if width > MAX_WIDTH:
        reasons.append(f"The fused kernels take grids up to {MAX_WIDTH} wide, got {width}.")
    if batch * -(-height // 4) * -(-width // 8) > MAX_TILES:
        reasons.append(
            f"A batch of {batch}x{height}x{width} cells has more than {MAX_TILES} tiles; split it."
        )
    return reasons


def interpreter_reasons(triton_version: str, numpy_version: str) -> tuple[str, ...]:
    """List the reasons why these versions cannot interpret kernels, one sentence each."""
    if _numbers(triton_version) < (3, 7) and _numbers(numpy_version) >= (2, 4):
        return (
            f"The interpreter of Triton {triton_version} fails with NumPy {numpy_version}; "
            "install NumPy below 2.4, or Triton 3.7 or newer.",
        )
    return ()


def _numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@lru_cache(maxsize=64)
def _device_reasons(device: torch.device, interpreted: bool) -> tuple[str, ...]:
    """List what is missing in the machine."""
    if find_spec("triton") is None:
        return (
            "Triton is not installed: on Linux `pip install triton`, on Windows `triton-windows`.",
        )
    if interpreted:
        return interpreter_reasons(import_module("triton").__version__, numpy.__version__)
    if device.type != "cuda":
        return (f"The fused kernels run on CUDA devices, and the state is on {device}.",)
    if not torch.cuda.is_available():
        return (f"torch {torch.__version__} sees no CUDA device.",)
    if torch.version.hip is not None:
        return ("The fused kernels are written for CUDA; ROCm has not been tried.",)
    found = torch.cuda.get_device_capability(device)
    if found < MIN_CAPABILITY:
        return (
            f"The fused kernels need compute capability 8.0, and {device} has "
            f"{found[0]}.{found[1]}.",
        )
    return ()


def check_tensors(state: Tensor, parameters: Parameters, rule: Rule, precision: str) -> None:
    """Check that the kernels can run a state and a network.

    Args:
        state: `[B, C, H, W]` float32.
        parameters: weights and biases of the two 1x1 convolutions, of the shapes of `rule` but for
            the width of the hidden layer, float32 on the state's device.
        rule: what a step computes.
        precision: "fp16", "bf16" or "ieee".

    Raises:
        RuntimeError: they cannot; the message holds every reason.
        ValueError: a shape does not fit.
    """
    if state.dim() != 4:
        raise ValueError(f"state must be [B, C, H, W], got {tuple(state.shape)}")
    tensors = (state, *parameters)
    kinds = tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors])
    if reasons := _tensor_reasons(kinds, rule, precision, interpreted()):
        raise RuntimeError("the fused kernels cannot run this rollout: " + " ".join(reasons))
    for name, tensor in zip(("state", *_NAMES), tensors, strict=False):
        check_like(tensor, state, name)
        check_memory(tensor, name)


def check_stored(
    tensors: Mapping[str, tuple[Tensor, Sequence[int], torch.dtype]], device: torch.device
) -> None:
    """Check the arguments of an operator beside state and parameters.

    Args:
        tensors: by name, each with the shape and the dtype that it must have.
        device: where they must be.

    Raises:
        ValueError: something does not fit, or memory does not hold the elements.
    """
    for name, (tensor, shape, dtype) in tensors.items():
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{name} must be {list(shape)} {dtype} on {device}, got {list(tensor.shape)} "
                f"{tensor.dtype} on {tensor.device}"
            )
        check_memory(tensor, name)


@lru_cache(maxsize=256)
def _tensor_reasons(
    kinds: tuple[Kind, ...], rule: Rule, precision: str, interpreted: bool
) -> tuple[str, ...]:
    """List every reason why a state and parameters of these kinds cannot run.

    Raises:
        ValueError: a shape does not fit.
    """
    (shape, dtype, device), *found = kinds
    reasons = rule_reasons(rule)
    if reasons:
        return tuple(reasons)
    batch, channels, height, width = shape
    shapes = tuple(tuple(kind[0]) for kind in found)
    hidden = max(1, *(each[0] for each in shapes[1:2] if each), 1)
    expected = tuple(replace(rule, hidden=(hidden,)).shapes(channels).values())[1:]
    if shapes != expected:
        raise ValueError(
            f"parameters for {channels} channels must have the shapes {expected}, got {shapes}"
        )
    reasons = fused_reasons(device, dtype, channels, hidden, precision)
    reasons += shape_reasons(batch, height, width, rule.padding)
    for name, kind in zip(_NAMES, found, strict=False):
        if kind[1:] != (torch.float32, device):
            reasons.append(f"{name} must be float32 on {device}, got {kind[1]} on {kind[2]}.")
    return tuple(reasons)
