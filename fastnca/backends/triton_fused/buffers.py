"""The device memory of a rollout: what the forward pass saves, and what the backward pass needs."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fastnca.checks import Parameters
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
class SavedStates:
    """What the forward pass saves for the backward pass.

    Attributes:
        states: `[slots, B, H, W, CP]` float32.
        flags: `[slots, B, rows, runs]` int64, the flags of their cells.
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
        passed: `[2, B, H, W, CP]` float32, gradients that reach the cell itself.
        pairs: `[pair_cells, CP, 2]` operands, gradients that reach its neighbours.
        partials: `[programs, partial_size]` float32, sums of weight gradients.
        scale: `[2]` float32: the inverse of the factor of all gradients; 1 if a result is not
            finite, else 0.
    """

    passed: Tensor
    pairs: Tensor
    partials: Tensor
    scale: Tensor


def allocate_states(state: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Allocate the states and flags of so many slots; the values are undefined."""
    batch, channels, height, width = state.shape
    states = state.new_empty(slots, batch, height, width, padded_channels(channels))
    rows, runs = flag_rows(height), flag_runs(width)
    flags = torch.empty(slots, batch, rows, runs, dtype=torch.int64, device=state.device)
    return states, flags


def allocate_weights(channels: int, parameters: Parameters, precision: str) -> Weights:
    """Allocate packed weights for a state of `channels` channels; the values are undefined."""
    b1 = parameters[1]
    return empty_weights(channels, b1.shape[0], OPERAND_DTYPES[precision], b1.device)


def allocate_backward(saved: SavedStates) -> BackwardBuffers:
    """Allocate the buffers of a backward pass; the values are undefined."""
    states, weights = saved.states, saved.weights
    config = launch_config("backward", saved)
    batch, height, width, channels = states.shape[1:]
    programs = min(count_tiles(batch, height, width, config.tile_height), config.programs)
    return BackwardBuffers(
        states.new_empty(2, batch, height, width, channels),
        weights.packed.new_empty(pair_cells(batch, height, width), channels, 2),
        states.new_empty(programs, partial_size(weights)),
        states.new_empty(2),
    )


def with_memory(weights: Weights, packed: Tensor) -> Weights:
    """Return weights of the same sizes that are packed elsewhere."""
    return replace(weights, packed=packed)


def aligned(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy if the kernels could not load 16 bytes of it at once.

    What this package allocates is aligned; what a hook on saved tensors returns need not be.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def launch_config(direction: str, saved: SavedStates) -> LaunchConfig:
    """Return how the step kernels of a rollout are launched; see `choose_launch`."""
    weights = saved.weights
    packed = weights.packed
    return _choose(direction, weights.channels, weights.hidden, packed.dtype, packed.device)


@lru_cache(maxsize=256)
def _choose(
    direction: str, channels: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> LaunchConfig:
    return choose_launch(direction, channels, hidden, dtype, *device_facts(device))
