"""The device memory of a rollout: what the forward pass saves, and what the backward pass needs."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastnca.backends.triton_fused.settings import RolloutSettings, kernel_rule
from fastnca.checks import Parameters
from fastnca.kernels import (
    OPERAND_DTYPES,
    LaunchConfig,
    Weights,
    choose_launch,
    count_tiles,
    device_facts,
    empty_weights,
    flag_shape,
    padded_channels,
    plane_size,
)

ALIGNMENT = 16
"""Bytes; the widest load of a thread."""


@dataclass(frozen=True)
class SavedStates:
    """What the forward pass saves for the backward pass.

    Attributes:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, flag_rows, tile_columns]` int64, the flags of their cells; empty without
            an alive test.
        counter: `[3]` int64: seed, number of the first step, number of steps.
        weights: the packed weights.
    """

    states: Tensor
    flags: Tensor
    counter: Tensor
    weights: Weights

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, flags, counter and packed weights."""
        return self.states, self.flags, self.counter, self.weights.packed


@dataclass(frozen=True)
class BackwardBuffers:
    """What the backward pass hands from step to step.

    Attributes:
        grads: the gradient in two parts: what reaches the cell itself, `[2, B, H, W, CP]` float32,
            and planes of what crosses cells, `[plane_size]` operands.
        partials: `[programs, weights.sums]` float32, sums of weight gradients.
        scale: `[2]` float32: the inverse of the factor of all gradients; 1 if a result is not
            finite, else 0.
    """

    grads: tuple[Tensor, Tensor]
    partials: Tensor
    scale: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both parts of the gradient, sums and scale."""
        return *self.grads, self.partials, self.scale


def allocate_states(state: Tensor, settings: RolloutSettings) -> tuple[Tensor, Tensor]:
    """Allocate the states of a rollout and their flags; the values are undefined."""
    batch, channels, height, width = state.shape
    slots = settings.slots
    states = state.new_empty(slots, batch, height, width, padded_channels(channels))
    words = flag_shape(height, width) if settings.rule.alive == "both" else (0, 0)
    flags = torch.empty(slots, batch, *words, dtype=torch.int64, device=state.device)
    return states, flags


def allocate_weights(channels: int, parameters: Parameters, settings: RolloutSettings) -> Weights:
    """Allocate packed weights for a state of `channels` channels; the values are undefined."""
    b1, rule = parameters[1], kernel_rule(settings.rule, channels)
    dtype = OPERAND_DTYPES[settings.precision]
    return empty_weights(channels, b1.shape[0], rule, dtype, b1.device)


def allocate_backward(saved: SavedStates) -> BackwardBuffers:
    """Allocate the buffers of a backward pass; the values are undefined."""
    states, weights = saved.states, saved.weights
    config = launch_config("backward", saved)
    batch, height, width, channels = states.shape[1:]
    programs = min(count_tiles(batch, height, width, config.tile_height), config.programs)
    planes = plane_size((batch, height, width, channels), weights.rule)
    return BackwardBuffers(
        (states.new_empty(2, batch, height, width, channels), weights.packed.new_empty(planes)),
        states.new_empty(programs, weights.sums),
        states.new_empty(2),
    )


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy if the kernels could not load 16 bytes of it at once.

    What this package allocates is aligned; what a hook on saved tensors returns need not be.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def launch_config(direction: str, saved: SavedStates) -> LaunchConfig:
    """Return how the step kernels of a rollout are launched; see `choose_launch`."""
    weights = saved.weights
    packed, planes = weights.packed, len(weights.rule.planes)
    return _choose(direction, weights.channels, weights.hidden, packed.dtype, packed.device, planes)


@lru_cache(maxsize=256)
def _choose(
    direction: str,
    channels: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
    planes: int,
) -> LaunchConfig:
    return choose_launch(direction, channels, hidden, dtype, *device_facts(device), planes)
