"""Figures. Every function returns a matplotlib `Figure` of its own and never shows it.

The figures are not registered with pyplot: a notebook shows the returned figure once, a script
calls `figure.savefig(path)`, and nothing has to be closed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch.nn as nn
from torch import Tensor

from fastnca.life import game_of_life_step
from fastnca.pictures.render import inputs_of, rollout_states, seed_of, to_pixels, visible
from fastnca.states import Size, clear_cells, height_and_width, middle_square, rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_BLUE, _GREY = "#0072B2", "#9AA5AD"


def visualize_growth(
    model: nn.Module, size: Size = 64, steps: int = 100, *, mask_seed: int | None = None
) -> "Figure":
    """Show a model growing from its seed, at six moments of a rollout.

    Args:
        model: a Neural CA; its mode and the random state are left alone.
        size: of the grid in cells: one number for a square, or `(height, width)`.
        steps: steps of the rollout, at least 0.
        mask_seed: None updates every cell, as the tutorial's pictures do; a number updates cells
            at random as in training. It fixes the masks, but is not the `seed` of `run_steps`.

    Returns:
        A figure with six panels.
    """
    moments = _moments(steps, 6)
    figure, axes = _panels(1, 6, "NCA Growth from Seed")
    states = list(rollout_states(model, seed_of(model, size), steps, mask_seed=mask_seed))
    for axis, step in zip(axes[0], moments, strict=True):
        _show(axis, visible(model, states[step]), f"Step {step}")
    return figure


def visualize_regeneration(
    model: nn.Module,
    size: Size = 64,
    grow_steps: int = 100,
    regen_steps: int = 100,
    *,
    damage: Tensor | None = None,
    mask_seed: int | None = None,
) -> "Figure":
    """Show a grown state, the same with damage, and five moments of its recovery.

    Args:
        model: a Neural CA; its mode and the random state are left alone.
        size: of the grid in cells: one number for a square, or `(height, width)`.
        grow_steps: steps before the damage, at least 0.
        regen_steps: steps after the damage, at least 0.
        damage: `[H, W]` bool, True where the state is set to zero; the tutorial's central
            square (20 to 43 of 64 cells, scaled) if None.
        mask_seed: as in `visualize_growth`.

    Returns:
        A figure with two rows.
    """
    if damage is None:
        damage = rectangle(*height_and_width(size), middle_square(size))
    *_, grown = rollout_states(model, seed_of(model, size), grow_steps, mask_seed=mask_seed)
    damaged = clear_cells(grown, damage, inputs_of(model))
    moments = _moments(regen_steps, 5)
    figure, axes = _panels(2, 5, "NCA Regeneration After Damage")
    _show(axes[0][0], visible(model, grown), "Fully Grown")
    _show(axes[0][1], visible(model, damaged), "After Damage")
    states = list(rollout_states(model, damaged, regen_steps, mask_seed=mask_seed))
    for axis, step in zip(axes[1], moments, strict=True):
        _show(axis, visible(model, states[step]), f"Regen Step {step}")
    return figure


visualize_regeneration.__test__ = False  # type: ignore[attr-defined]
test_regeneration = visualize_regeneration
"""The tutorial's name of `visualize_regeneration`, marked so that pytest does not collect it."""


def plot_loss(
    losses: Sequence[float],
    title: str = "Training loss",
    label: str = "mean squared error of RGBA",
) -> "Figure":
    """Plot the loss of every iteration and its running median.

    Args:
        losses: of every iteration; values that are not finite leave gaps.
        title: of the figure.
        label: what the losses are.

    Returns:
        A figure with a logarithmic loss axis.
    """
    from matplotlib.figure import Figure

    values = np.asarray(losses, dtype=np.float64)
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    iterations = np.arange(1, len(values) + 1)
    axis.plot(iterations, values, color=_GREY, linewidth=0.8, label="each iteration")
    half = 10
    if len(values) > 2 * half:
        windows = np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1)
        middle = np.array([np.median(w[np.isfinite(w)]) for w in windows if np.isfinite(w).any()])
        if len(middle) == len(windows):
            axis.plot(
                iterations[half:-half], middle, color=_BLUE, label=f"median of {2 * half + 1}"
            )
    axis.set_yscale("log")
    axis.set_xlabel("iteration")
    axis.set_ylabel(label)
    axis.set_title(title)
    axis.grid(alpha=0.3, which="both", linewidth=0.5)
    axis.legend(frameon=False)
    return figure


def plot_life(grid: Tensor, steps: int = 50) -> "Figure":
    """Show a Game of Life grid at five moments.

    Args:
        grid: `[H, W]`, as for `game_of_life_step`.
        steps: steps of the run, at least 0.

    Returns:
        A figure with five panels.
    """
    moments = _moments(steps, 5)
    figure, axes = _panels(1, 5, "Conway's Game of Life")
    grids = [grid.float()]
    for _ in range(steps):
        grids.append(game_of_life_step(grids[-1]))
    for axis, step in zip(axes[0], moments, strict=True):
        axis.imshow(grids[step].cpu().numpy(), cmap="binary", vmin=0, vmax=1)
        axis.set_title(f"Step {step}")
    return figure


def _moments(steps: int, count: int) -> list[int]:
    """Choose `count` evenly spaced steps from 0 to `steps`; 100 steps give the tutorial's."""
    return [round(i * steps / (count - 1)) for i in range(count)]


def _panels(rows: int, columns: int, title: str) -> tuple["Figure", "NDArray[np.object_]"]:
    """Make a figure of empty panels without axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * columns, 3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(title)
    return figure, axes


def _show(axis: "Axes", state: Tensor, title: str) -> None:
    axis.imshow(to_pixels(state), interpolation="nearest")
    axis.set_title(title)
