"""The fused Triton kernels: launchers, packed weights, and how to launch.

This package is a leaf: it imports torch, Triton and itself. `README.md` says how it works; E1 to
E12 are the equations of `docs/equations.md`.
"""

from .begin import begin_backward, begin_forward
from .end import end_backward, end_forward
from .gradients import nan_fill_if_overflow, reduce_gradients
from .launch import (
    SINGLE_STEP_LIMIT,
    LaunchConfig,
    StepSettings,
    choose_launch,
    count_tiles,
    device_facts,
    device_guard,
    flag_shape,
    plane_size,
)
from .prepare import prepare_rollout
from .rule import MAX_FILTERS, KernelRule, make_rule
from .single_gradient import prepare_backward
from .single_gradient_end import count_rectangles
from .single_step import prepare_forward, single_tiles
from .step_backward import step_backward
from .step_forward import step_forward
from .weights import (
    DTYPES,
    OPERAND_DTYPES,
    Weights,
    empty_weights,
    padded_channels,
    padded_hidden,
)

__all__ = [
    "DTYPES",
    "MAX_FILTERS",
    "OPERAND_DTYPES",
    "SINGLE_STEP_LIMIT",
    "KernelRule",
    "LaunchConfig",
    "StepSettings",
    "Weights",
    "begin_backward",
    "begin_forward",
    "choose_launch",
    "count_rectangles",
    "count_tiles",
    "device_facts",
    "device_guard",
    "empty_weights",
    "end_backward",
    "end_forward",
    "flag_shape",
    "make_rule",
    "nan_fill_if_overflow",
    "padded_channels",
    "padded_hidden",
    "plane_size",
    "prepare_backward",
    "prepare_forward",
    "prepare_rollout",
    "reduce_gradients",
    "single_tiles",
    "step_backward",
    "step_forward",
]
