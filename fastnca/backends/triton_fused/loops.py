"""The loops over the steps of a rollout, forward and backward, on the fused kernels.

Begin, launch and end are separate functions: a CUDA graph holds the launches alone (`graphs.py`).
"""

import torch
from torch import Tensor

from fastnca import kernels
from fastnca.backends.autograd import Grads, dense
from fastnca.backends.triton_fused.buffers import (
    BackwardBuffers,
    SavedStates,
    allocate_backward,
    allocate_states,
    allocate_weights,
    launch_config,
)
from fastnca.backends.triton_fused.settings import MaskCounter, RolloutSettings
from fastnca.checks import Parameters


def run_forward(
    state: Tensor, parameters: Parameters, counter: Tensor | MaskCounter, settings: RolloutSettings
) -> tuple[Tensor, SavedStates]:
    """Advance a state by all steps of a rollout, launch by launch.

    Args:
        state: `[B, C, H, W]` float32, any strides.
        parameters: weights and biases of the two 1x1 convolutions, float32.
        counter: `[3]` int64 that holds its numbers, or the numbers.
        settings: the steps.

    Returns:
        The last state, `[B, C, H, W]` contiguous, and what the backward pass needs.
    """
    states, flags = allocate_states(state, settings)
    numbers = None
    if isinstance(counter, MaskCounter):
        numbers, counter = counter, torch.empty(3, dtype=torch.int64, device=state.device)
    weights = allocate_weights(state.shape[1], parameters, settings)
    kernels.prepare_rollout(parameters, weights, counter, numbers, flags)
    saved = SavedStates(states, flags, counter, weights)
    begin_forward(state, saved, settings)
    launch_forward(saved, settings)
    return end_forward(state, saved, settings), saved


def begin_forward(state: Tensor, saved: SavedStates, settings: RolloutSettings) -> None:
    """Store the first state in slot 0."""
    threshold = settings.rule.alive_threshold
    kernels.begin_forward(dense(state), saved.states, saved.flags, saved.weights.rule, threshold)


def launch_forward(saved: SavedStates, settings: RolloutSettings) -> None:
    """Launch every step."""
    config = launch_config("forward", saved)
    for step in range(settings.steps):
        slots = settings.slot(step), settings.slot(step + 1)
        _step(saved, slots, step, settings, config)


def end_forward(state: Tensor, saved: SavedStates, settings: RolloutSettings) -> Tensor:
    """Return the last state, contiguous, of the shape of `state`."""
    result = torch.empty_like(state, memory_format=torch.contiguous_format)
    rule, last = saved.weights.rule, settings.last_slot
    kernels.end_forward(saved.states, saved.flags, saved.counter, rule, last, result)
    return result


def run_backward(
    grad: Tensor,
    saved: SavedStates,
    shapes: tuple[torch.Size, ...],
    settings: RolloutSettings,
    needs_state_grad: bool = True,
) -> Grads:
    """Differentiate a rollout, launch by launch.

    Args:
        grad: `[B, C, H, W]` float32, gradient of the last state, any strides.
        saved: what the forward pass saved.
        shapes: shapes of the parameters.
        settings: as in the forward pass.
        needs_state_grad: whether the gradient of the state is wanted.

    Returns:
        Gradients of the state, None if it is not wanted, and of the parameters.
    """
    if grad.numel() == 0:
        return torch.zeros_like(grad), *map(grad.new_zeros, shapes)
    buffers = allocate_backward(saved)
    begin_backward(grad, saved, buffers, settings)
    launch_backward(saved, buffers, settings)
    return end_backward(grad, shapes, saved, buffers, settings, needs_state_grad)


def begin_backward(
    grad: Tensor, saved: SavedStates, buffers: BackwardBuffers, settings: RolloutSettings
) -> None:
    """Store the gradient of the last state, scaled into the range of the operands."""
    grad = dense(grad)
    largest = None
    if settings.precision == "fp16":
        largest = torch.linalg.vector_norm(grad, torch.inf)
    kernels.begin_backward(
        grad, largest, saved.counter, settings.steps, buffers.grads, buffers.scale
    )


def launch_backward(
    saved: SavedStates, buffers: BackwardBuffers, settings: RolloutSettings
) -> None:
    """Launch the derivative of every step, the last step first."""
    config = launch_config("backward", saved)
    for segment in reversed(range(settings.segments)):
        first = segment * settings.checkpoint_every
        last = min(first + settings.checkpoint_every, settings.steps)
        segment_states, offset = saved, 0
        if settings.checkpoint_every > 1:
            segment_states, offset = _recompute(saved, settings, first, last), first
        for step in reversed(range(first, last)):
            kernels.step_backward(
                segment_states.states,
                segment_states.flags,
                buffers.grads,
                saved.weights,
                saved.counter,
                buffers.partials,
                step - offset,
                step,
                settings.step_settings,
                config,
            )


def end_backward(
    grad: Tensor,
    shapes: tuple[torch.Size, ...],
    saved: SavedStates,
    buffers: BackwardBuffers,
    settings: RolloutSettings,
    needs_state_grad: bool,
) -> Grads:
    """Return the gradients of the state, None if it is not wanted, and of the parameters.

    If a value left the range of fp16 on the way, all of them are NaN, so that no partial gradient
    passes for a whole one.
    """
    checked, scale = settings.precision == "fp16", buffers.scale
    grads = tuple(map(buffers.partials.new_empty, shapes))
    kernels.reduce_gradients(buffers.partials, scale, saved.counter, saved.weights, grads, checked)
    state = None
    if needs_state_grad:
        state = torch.empty_like(grad, memory_format=torch.contiguous_format)
        kernels.end_backward(buffers.grads, scale, saved.weights.rule, state, checked)
    if checked:
        kernels.nan_fill_if_overflow(scale, grads if state is None else (state, *grads))
    return state, *grads


def _step(
    saved: SavedStates,
    slots: tuple[int, int],
    step: int,
    settings: RolloutSettings,
    config: kernels.LaunchConfig,
) -> None:
    """Launch one step, from one slot to another."""
    states, flags, weights, counter = saved.states, saved.flags, saved.weights, saved.counter
    told = settings.step_settings
    kernels.step_forward(states, flags, weights, counter, slots, step, told, config)


def _recompute(saved: SavedStates, settings: RolloutSettings, first: int, last: int) -> SavedStates:
    """Compute the states of a segment again, bit for bit, from the one kept at its start."""
    segment = first // settings.checkpoint_every
    steps = last - first
    states = saved.states.new_empty(steps + 1, *saved.states.shape[1:])
    flags = saved.flags.new_zeros(steps + 1, *saved.flags.shape[1:])
    states[0], flags[0] = saved.states[segment], saved.flags[segment]
    flags[steps] = saved.flags[segment + 1]
    config = launch_config("forward", saved)
    segment_states = SavedStates(states, flags, saved.counter, saved.weights)
    for step in range(steps - 1):
        _step(segment_states, (step, step + 1), first + step, settings, config)
    return segment_states
