"""Checks of what a user hands in: one sentence with expected, got, and what to do."""

import torch
from torch import Tensor

from fastnca.rule import TUTORIAL, Rule

Parameters = tuple[Tensor, ...]
"""The tensors that a step computes with, as `fastnca.recognition.parameters_of` orders them."""

MOST_WEIGHT = 1e6
"""Active cells are exact while each parameter's Euclidean norm is below this."""


class OutOfRangeError(ArithmeticError):
    """A value is not finite, or so large that a step could overflow.

    There 0·∞ = NaN spreads through cells that are masked out or dead, which active cells do not
    see; the reference operators must be used.
    """


def check_state(state: Tensor, num_channels: int, like: Tensor, padding: str = "zeros") -> None:
    """Check a state against a model.

    Args:
        state: what was passed as state.
        num_channels: channels of the model.
        like: a parameter of the model.
        padding: what lies beyond the border.

    Raises:
        TypeError: the state is not a floating-point tensor, or not of the parameters' dtype.
        ValueError: rank, channel count, grid or device do not fit.
    """
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
    if padding == "reflect" and (height == 1 or width == 1):
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
    if state.dim() != 4:
        raise ValueError(f"state must be [batch, channels, height, width], got {list(state.shape)}")
    if state.numel() == 0:
        raise ValueError(f"state must have at least one cell, got {list(state.shape)}")
    rule.check_channels(state.shape[1])
    if state.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"state must be float32 or float64, got {state.dtype}")
    first = 0 if rule.learn_filters else 1
    hidden = rule.hidden
    if len(hidden) == 1 and len(parameters) > 1 - first and parameters[1 - first].numel() > 0:
        hidden = (parameters[1 - first].shape[0],)
    shapes = list(rule.shapes(state.shape[1], hidden).values())[first:]
    found = [tuple(parameter.shape) for parameter in parameters]
    if found != shapes:
        raise ValueError(
            f"parameters for {state.shape[1]} channels must have the shapes "
            f"{', '.join(str(list(shape)) for shape in shapes)}, got "
            f"{', '.join(str(list(shape)) for shape in found)}"
        )
    check_memory(state, "state")
    for parameter in parameters:
        check_like(parameter, state, "a parameter")
        check_memory(parameter, "a parameter")


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
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # operators find what is in it
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
