"""What the fused kernels demand of tensors, checked before a launch."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fastnca.backends.triton_fused.support import fused_reasons, interpreted, shape_reasons
from fastnca.checks import check_like, check_memory

_NAMES = ("w1", "b1", "w2", "b2")


def check_tensors(state: Tensor, parameters: tuple[Tensor, ...], precision: str) -> None:
    """Check that the kernels can run a state and a network.

    Args:
        state: `[B, C, H, W]` float32.
        parameters: weight and bias of the two 1x1 convolutions.
        precision: "fp16", "bf16" or "ieee".

    Raises:
        RuntimeError: they cannot; the message holds every reason.
        ValueError: a shape does not fit.
    """
    if state.dim() != 4:
        raise ValueError(f"state must be [B, C, H, W], got {tuple(state.shape)}")
    w1, b1, w2, b2 = parameters
    found = (state.shape, w1.shape, b1.shape, w2.shape, b2.shape)
    types = [(tensor.dtype, tensor.device) for tensor in parameters]
    reasons = _reasons(found, *types, state.dtype, state.device, precision, interpreted())
    if reasons:
        raise RuntimeError("the fused kernels cannot run this rollout: " + " ".join(reasons))
    for name, tensor in zip(("state", *_NAMES), (state, *parameters), strict=True):
        check_like(tensor, state, name)
        check_memory(tensor, name)


def check_stored(
    tensors: Mapping[str, tuple[Tensor, Sequence[int], torch.dtype]], device: torch.device
) -> None:
    """Check what an operator of the fused kernels is given beside state and parameters.

    Args:
        tensors: by name, each with the shape and the dtype that it must have.
        device: where they must be.

    Raises:
        ValueError: something does not fit.
    """
    for name, (tensor, shape, dtype) in tensors.items():
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{name} must be {list(shape)} {dtype} on {device}, got {list(tensor.shape)} "
                f"{tensor.dtype} on {tensor.device}"
            )


@lru_cache(maxsize=256)
def _reasons(
    shapes: tuple[torch.Size, ...],
    w1: tuple[torch.dtype, torch.device],
    b1: tuple[torch.dtype, torch.device],
    w2: tuple[torch.dtype, torch.device],
    b2: tuple[torch.dtype, torch.device],
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
    interpreted: bool,
) -> tuple[str, ...]:
    """List every reason why tensors of these kinds cannot run; raise as `check_tensors` does."""
    batch, channels, height, width = shapes[0]
    hidden = shapes[2][0]
    expected = ((hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,))
    if shapes[1:] != expected:
        raise ValueError(
            f"parameters for {channels} channels must have the shapes {expected}, got "
            f"{tuple(tuple(shape) for shape in shapes[1:])}"
        )
    reasons = fused_reasons(device, dtype, channels, hidden, precision)
    reasons += shape_reasons(batch, height, width)
    for name, kind in zip(_NAMES, (w1, b1, w2, b2), strict=True):
        if kind != (torch.float32, device):
            reasons.append(f"{name} must be float32 on {device}, got {kind[0]} on {kind[1]}.")
    return tuple(reasons)
