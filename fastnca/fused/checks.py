"""What the fused kernels demand of tensors, checked before a launch."""

import torch
from torch import Tensor

from fastnca.fused.support import fused_reasons, shape_reasons

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
    batch, channels, height, width = state.shape
    hidden = parameters[1].shape[0]
    found = tuple([parameter.shape for parameter in parameters])
    expected = ((hidden, 3 * channels, 1, 1), (hidden,), (channels, hidden, 1, 1), (channels,))
    if found != expected:
        raise ValueError(
            f"parameters for {channels} channels must have the shapes {expected}, got "
            f"{tuple(tuple(shape) for shape in found)}"
        )
    device = state.device
    reasons = fused_reasons(device, state.dtype, channels, hidden, precision)
    reasons += shape_reasons(batch, height, width)
    for name, parameter in zip(_NAMES, parameters, strict=True):
        if parameter.dtype != torch.float32 or parameter.device != device:
            reasons.append(
                f"{name} must be float32 on {device}, got {parameter.dtype} on {parameter.device}."
            )
    if reasons:
        raise RuntimeError("the fused kernels cannot run this rollout: " + " ".join(reasons))
