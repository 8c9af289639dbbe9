"""Checks of what a user hands in: one sentence with expected, got, and what to do."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnca._torch_internals import is_wrapped
from fastnca.rule import TUTORIAL, Rule

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

Parameters = tuple[Tensor, ...]
"""The tensors that a step computes with, as `fastnca.recognition.parameters_of` orders them."""

MOST_WEIGHT = 1e6
"""Active cells are exact while each parameter's Euclidean norm is below this."""


class OutOfRangeError(ArithmeticError):
    """A value is not finite, or so large that a step could overflow.

    There 0·∞ = NaN spreads through cells that are masked out or dead, which active cells do not
    see; the reference operators must be used.
    """


def check_state(state: Tensor, model: "NeuralCA") -> None:
    """Check a state against a model.

    Raises:
        TypeError: the state is not a floating-point tensor, or not of the parameters' dtype.
        ValueError: rank, channel count, grid or device do not fit.
    """
    num_channels = model.num_channels
    perception = model._modules.get("perception")  # faster than the attributes
    like: Tensor | None = None if perception is None else perception._parameters.get("filters")
    if like is None:
        filters = getattr(getattr(model, "perception", None), "filters", None)
        like = filters if isinstance(filters, Tensor) else next(model.parameters(), state)
    if not isinstance(state, Tensor):
        raise TypeError(f"state must be a torch.Tensor, got {type(state).__name__}")
    shape = state.shape
    if len(shape) != 4:
        raise ValueError(
            f"state must have shape [batch, {num_channels}, height, width], got "
            f"{list(shape)}; add a batch axis with state[None] if it is a single state"
        )
    _, channels, height, width = shape
    if isinstance(channels, Tensor):  # torch.jit.trace records every comparison of a size
        return
    if channels != num_channels:
        raise ValueError(
            f"state must have {num_channels} channels to match the model, got {channels}"
        )
    if height == 0 or width == 0:
        raise ValueError(f"the grid must have at least one cell, got {list(shape[2:])}")
    if model.rule.padding == "reflect" and (height == 1 or width == 1):
        raise ValueError(f"padding='reflect' needs at least 2 cells a side, got {list(shape[2:])}")
    if state.device != like.device:
        raise ValueError(
            f"state is on {state.device} and the model on {like.device}; move one with .to()"
        )
    if state.dtype != like.dtype:
        raise TypeError(
            f"state is {state.dtype} and the model {like.dtype}; convert one with .to()"
        )


def check_rollout(state: Tensor, parameters: Parameters, rule: Rule = TUTORIAL) -> None:
    """Check that a state and parameters fit each other, for arithmetic on their memory.

    Args:
        state: must be `[B, C, H, W]` float32 or float64, of as many channels as the rule reads and
            at least one cell.
        parameters: must have the shapes of `Rule.shapes`, and the state's dtype and device.
        rule: what a step computes; the width of a single hidden layer is not looked at.

    Raises:
        TypeError: a dtype or a layout does not fit.
        ValueError: a shape or a device does not fit.
    """
    shape, dtype, device = state.shape, state.dtype, state.device
    if len(shape) != 4 or shape[1] < rule.least_channels:
        raise ValueError(
            f"state must be [batch, at least {rule.least_channels} channels, height, width], got "
            f"{list(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"state must have at least one cell, got {list(shape)}")
    if rule.padding == "reflect" and 1 in shape[2:]:
        raise ValueError(f"padding='reflect' needs at least 2 cells a side, got {list(shape[2:])}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state must be float32 or float64, got {dtype}")
    features = shape[1] * len(rule.filters)
    found: list[tuple[int, ...]] = []
    for parameter in parameters:
        found.append(tuple(parameter.shape))
    expected: list[tuple[int, ...]] = [(features, 1, 3, 3)] if rule.learn_filters else []
    hidden: tuple[int, ...] = rule.hidden
    if len(hidden) == 1 and len(found) > len(expected) and math.prod(found[len(expected)]) > 0:
        hidden = (found[len(expected)][0],)
    before = features
    for width in hidden:
        expected += [(width, before, 1, 1), (width,)]
        before = width
    own = shape[1] - rule.inputs
    expected += [(own, before, 1, 1), (own,)] if rule.final_bias else [(own, before, 1, 1)]
    if found != expected:
        raise ValueError(
            f"parameters for {shape[1]} channels must have the shapes "
            f"{', '.join(str(list(each)) for each in expected)}, got "
            f"{', '.join(str(list(each)) for each in found)}"
        )
    for tensor in (state, *parameters):
        if tensor.dtype is not dtype or tensor.layout is not torch.strided:
            check_like(tensor, state, "a parameter" if tensor is not state else "state")
        if tensor.device != device:
            check_like(tensor, state, "a parameter")
        if is_wrapped(tensor):
            continue  # operators find what is in it
        needed = (tensor.storage_offset() + tensor.numel()) * tensor.itemsize
        if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() < needed:
            check_memory(tensor, "state" if tensor is state else "a parameter")


def check_like(tensor: Tensor, like: Tensor, name: str) -> None:
    """Check that a tensor is dense and has the dtype and device of `like`.

    Raises:
        TypeError: the dtype or the layout differs.
        ValueError: the device differs.
    """
    if tensor.dtype != like.dtype or tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor of {like.dtype}, got {tensor.dtype} ({tensor.layout})"
        )
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")


def check_devices(*tensors: Tensor) -> None:
    """Check that tensors are on one device.

    An operator whose tensors are partly on the meta device would be taken for a fake one, whose
    result is memory that nobody has written.

    Raises:
        ValueError: they are not.
    """
    if len({tensor.device for tensor in tensors}) > 1:
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise ValueError(f"the tensors of a rollout must be on one device, got {devices}")


def check_memory(tensor: Tensor, name: str) -> None:
    """Check that the memory of a tensor holds its elements, as that of resized storages need not.

    Raises:
        ValueError: it does not.
    """
    if is_wrapped(tensor):  # operators find what is in it
        return
    count, found = tensor.numel(), tensor.untyped_storage().nbytes()
    if count and not tensor.is_contiguous():
        ends = zip(tensor.shape, tensor.stride(), strict=True)
        count = 1 + sum((size - 1) * stride for size, stride in ends)
    needed = (tensor.storage_offset() + count) * tensor.itemsize
    if count and found < needed:
        raise ValueError(
            f"{name} {list(tensor.shape)} needs {needed} bytes, and its storage has {found}; was "
            "the storage resized?"
        )


def check_count(value: int, name: str, least: int = 0) -> int:
    """Return `value`.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_steps(first_step: int, steps: int) -> None:
    """Check the numbers of consecutive steps, which are counted in 64 bits.

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is below 0 or beyond 2⁶³ - 1.
    """
    check_count(steps, "steps")
    check_count(first_step, "first_step")
    if first_step + steps >= 2**63:
        raise ValueError(
            f"steps are numbered up to 2**63 - 1, got {steps} steps from number {first_step} on"
        )
