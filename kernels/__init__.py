"""The fused Triton kernels: launchers, packed weights, and how to launch.

This package is a leaf: it imports torch, Triton and itself. Equations are in `README.md`.
"""

from .finish import finish_backward, finish_forward
from .gradients import poison, reduce_gradients
from .launch import (
    SINGLE_NETWORK,
    LaunchConfig,
    Rule,
    choose_launch,
    count_tiles,
    device_facts,
    device_guard,
    flag_rows,
    flag_runs,
    pair_cells,
)
from .single_gradient import prepare_backward
from .single_gradient_end import count_rectangles
from .single_step import prepare_forward, single_tiles
from .start import start_backward, start_forward
from .step_backward import step_backward
from .step_forward import step_forward
from .weights import (
    DTYPES,
    OPERAND_DTYPES,
    Weights,
    empty_weights,
    pack_weights,
    padded_channels,
    padded_hidden,
    partial_size,
)

__all__ = [
    "DTYPES",
    "OPERAND_DTYPES",
    "SINGLE_NETWORK",
    "LaunchConfig",
    "Rule",
    "Weights",
    "choose_launch",
    "count_rectangles",
    "count_tiles",
    "device_facts",
    "device_guard",
    "empty_weights",
    "finish_backward",
    "finish_forward",
    "flag_rows",
    "flag_runs",
    "pack_weights",
    "padded_channels",
    "padded_hidden",
    "pair_cells",
    "partial_size",
    "poison",
    "prepare_backward",
    "prepare_forward",
    "reduce_gradients",
    "single_tiles",
    "start_backward",
    "start_forward",
    "step_backward",
    "step_forward",
]
