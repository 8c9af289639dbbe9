"""What a rollout keeps on the device: its states for the backward pass, and what that carries."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fastnca.kernels import (
    OPERAND_DTYPES,
    LaunchConfig,
    Weights,
    choose_launch,
    count_tiles,
    device_facts,
    empty_weights,
    flag_rows,
    flag_runs,
    padded_channels,
    pair_cells,
    partial_size,
)

ALIGNMENT = 16
"""Bytes; the widest load of a thread."""


@dataclass(frozen=True)
class Stored:
    """What the forward pass leaves for the backward pass.

    Attributes:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, rows, runs]` int64, with them.
        counter: `[3]` int64: seed, number of the first step, number of steps.
        weights: the packed weights.
    """

    states: Tensor
    flags: Tensor
    counter: Tensor
    weights: Weights


@dataclass(frozen=True)
class Carried:
    """What the backward pass carries from step to step.

    Attributes:
        passed: `[2, B, H, W, CP]` float32, gradients that reach the cell itself.
        pairs: `[pair_cells, CP, 2]` operands, gradients of the Sobel features.
        partials: `[programs, partial_size]` float32, sums of weight gradients.
        scale: `[2]` float32: the inverse of what gradients are multiplied by; 1 if a result is
            not finite, else 0.
    """

    passed: Tensor
    pairs: Tensor
    partials: Tensor
    scale: Tensor


def allocate_states(state: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Allocate stored states and their flags; the values are undefined."""
    batch, channels, height, width = state.shape
    states = state.new_empty(slots, batch, height, width, padded_channels(channels))
    rows, runs = flag_rows(height), flag_runs(width)
    flags = torch.empty(slots, batch, rows, runs, dtype=torch.int64, device=state.device)
    return states, flags


def allocate_weights(parameters: tuple[Tensor, ...], precision: str) -> Weights:
    """Allocate packed weights; the values are undefined."""
    channels, hidden = parameters[2].shape[:2]
    return empty_weights(channels, hidden, OPERAND_DTYPES[precision], parameters[2].device)


def allocate_carried(stored: Stored) -> Carried:
    """Allocate what a backward pass carries; the values are undefined."""
    states, weights = stored.states, stored.weights
    config = launch_config("backward", stored)
    batch, height, width, channels = states.shape[1:]
    programs = min(count_tiles(batch, height, width, config.tile_height), config.programs)
    packed = weights.packed
    return Carried(
        states.new_empty(2, batch, height, width, channels),
        packed.new_empty(pair_cells(batch, height, width), channels, 2),
        states.new_empty(programs, partial_size(weights)),
        states.new_empty(2),
    )


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor` where the kernels may load 16 bytes at once: a copy, if it begins elsewhere.

    What this package allocates begins there; what a hook on saved tensors returns need not.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def launch_config(direction: str, stored: Stored) -> LaunchConfig:
    """Return how the step kernels of a rollout are launched; see `choose_launch`."""
    weights = stored.weights
    packed = weights.packed
    return _choose(direction, weights.channels, weights.hidden, packed.dtype, packed.device)


@lru_cache(maxsize=256)
def _choose(
    direction: str, channels: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> LaunchConfig:
    return choose_launch(direction, channels, hidden, dtype, *device_facts(device))
