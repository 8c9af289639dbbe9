"""States as pixels, and the states that a picture needs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from numpy.typing import NDArray
from torch import Tensor

from fastnca.states import Size, get_visible_state, make_seed_state, texture_rgba
from fastnca.storage.bundle import read_size

Pixels = NDArray[np.uint8]

DEFAULT_SIZE = 64, 64
"""Height and width in cells of the grid for a model that does not say its own."""


def to_pixels(state: Tensor) -> Pixels:
    """Show the visible part of one state on white.

    Colours are premultiplied by alpha, as in every target of this package, so a pixel is
    `1 - alpha + rgb`.

    Args:
        state: `[1, C, H, W]` with at least the four channels RGBA.

    Returns:
        `[H, W, 3]` uint8.
    """
    rgba = get_visible_state(state)[0].detach().float().cpu().nan_to_num(0.0)
    rgb = (1 - rgba[3:] + rgba[:3]).clamp(0, 1)
    pixels: Pixels = (rgb.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return pixels


def visible(model: nn.Module, states: Tensor) -> Tensor:
    """Return `states` `[B, C, H, W]` with RGBA in their first four channels, as `to_pixels` takes.

    A model whose metadata says so is a texture, whose colours are its first three channels + 0.5.
    """
    facts: dict[str, Any] = getattr(model, "metadata", {})
    return texture_rgba(states) if facts.get("visible") == "texture" else states


def seed_of(model: nn.Module, size: Size) -> Tensor:
    """Return the seed `[1, C, H, W]` that `model` was trained from, on its device."""
    facts: dict[str, Any] = getattr(model, "metadata", {})
    return make_seed_state(
        next(model.parameters()).detach(),
        int(getattr(model, "num_channels", 16)),
        size,
        start=str(facts.get("start", "cell")),
        fill_hidden=bool(facts.get("fill_hidden", False)),
        inputs=inputs_of(model),
    )


def trained_size(model: nn.Module) -> tuple[int, int]:
    """Return height and width of the grid that a model says it was trained on.

    Raises:
        ValueError: it says something else.
    """
    facts: dict[str, Any] = getattr(model, "metadata", {})
    return read_size(facts) if "size" in facts else DEFAULT_SIZE


def inputs_of(model: nn.Module) -> int:
    """Return how many channels of a model's states, the last ones, are inputs of its rule."""
    return int(getattr(getattr(model, "rule", None), "inputs", 0))


def rollout_states(
    model: nn.Module, state: Tensor, steps: int, *, mask_seed: int | None = None
) -> Iterator[Tensor]:
    """Iterate over the states after 0, 1, ... `steps` steps, without gradient.

    Works on any module that maps a state to the next one. Its mode and torch's random state are
    put back at the end.

    Args:
        model: called once per step.
        state: `[B, C, H, W]`.
        steps: number of steps, at least 0.
        mask_seed: None updates every cell (eval mode, as the tutorial's pictures do); a number
            updates cells at random as in training, reproducibly. The masks are those that calls of
            the model draw from torch's generator, not those of `run_steps(seed=mask_seed)`.

    Yields:
        `[B, C, H, W]`.
    """
    training = model.training
    generator = None if mask_seed is None else torch.Generator().manual_seed(mask_seed)
    yield state
    for _ in range(steps):
        model.train(generator is not None)
        try:
            state = _step(model, state, generator)
        finally:
            model.train(training)
        yield state


@torch.no_grad()
def _step(model: nn.Module, state: Tensor, generator: torch.Generator | None) -> Tensor:
    """Advance by one step; in training mode with random numbers of `generator`'s own.

    Cells update at the rate that the model was trained with, if its metadata says one.
    """
    facts: dict[str, Any] = getattr(model, "metadata", {})
    rate = [float(facts["update_rate"])] if "update_rate" in facts else []
    if generator is None:
        result: Tensor = model(state)
        return result
    devices = [state.device] if state.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(torch.randint(0, 2**62, (), generator=generator)))
        result = model(state, *rate)
    return result
