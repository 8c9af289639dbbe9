"""`fastnca grow`, `fastnca regenerate` and `fastnca life`: pictures without training."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastnca.commands.output import picture_paths, save_figure
from fastnca.life import game_of_life_step
from fastnca.module import NeuralCA
from fastnca.pictures import (
    encode_gif,
    plot_life,
    rollout_states,
    to_pixels,
    visualize_growth,
    visualize_regeneration,
)
from fastnca.pictures.render import Pixels, inputs_of, seed_of, trained_size, visible
from fastnca.states import Size, clear_cells, disc, height_and_width, middle_square, rectangle
from fastnca.storage.atomic import write_atomically

GIF_EVERY = 4  # steps from frame to frame
GROW_STEPS = 480
"""Steps of a rollout in pictures: many more than in training, so that it shows what a pattern
becomes and whether it stays that."""

LIFE_PATTERNS = {
    "glider": (".#.", "..#", "###"),
    "blinker": ("###",),
    "r-pentomino": (".##", "##.", ".#."),
    "acorn": (".#.....", "...#...", "##..###"),
}
"""Game of Life patterns by name; # is a living cell."""


MASK_SEED = 0
"""Seed of the random updates in pictures: models are drawn as they were trained."""


def grow(arguments: Namespace) -> int:
    """Draw a saved model growing from its seed."""
    model, size = _load(arguments)
    masks = None if arguments.synchronous else MASK_SEED
    for path in picture_paths(arguments.out, _default_paths(arguments.model, "growth")):
        if path.suffix.lower() == ".png":
            save_figure(visualize_growth(model, size, arguments.steps, mask_seed=masks), path)
        else:
            write_atomically(path, growth_gif(model, size, arguments.steps, masks))
        print(path)
    return 0


def regenerate(arguments: Namespace) -> int:
    """Draw a saved model recovering from damage."""
    model, size = _load(arguments)
    damage = _damage(arguments, size)
    steps = arguments.grow_steps, arguments.steps
    masks = None if arguments.synchronous else MASK_SEED
    for path in picture_paths(arguments.out, _default_paths(arguments.model, "regeneration")):
        if path.suffix.lower() == ".png":
            figure = visualize_regeneration(model, size, *steps, damage=damage, mask_seed=masks)
            save_figure(figure, path)
        else:
            write_atomically(path, regeneration_gif(model, size, steps, damage, masks))
        print(path)
    return 0


def life(arguments: Namespace) -> int:
    """Draw a Game of Life pattern."""
    grid = _pattern(arguments.pattern, arguments.size)
    default = [Path(f"life-{arguments.pattern}.png"), Path(f"life-{arguments.pattern}.gif")]
    for path in picture_paths(arguments.out, default):
        if path.suffix.lower() == ".png":
            save_figure(plot_life(grid, arguments.steps), path)
        else:
            frames = (np.repeat(_black(g), 3, axis=2) for g in _life_grids(grid, arguments.steps))
            write_atomically(path, encode_gif(frames, milliseconds=100))
        print(path)
    return 0


def growth_gif(
    model: NeuralCA, size: Size, steps: int, mask_seed: int | None, scale: int = 4
) -> bytes:
    """Encode a model's growth from its seed."""
    states = rollout_states(model, seed_of(model, size), steps, mask_seed=mask_seed)
    return encode_gif(_frames(model, states), scale=scale)


def regeneration_gif(
    model: NeuralCA, size: Size, steps: tuple[int, int], damage: Tensor, mask_seed: int | None
) -> bytes:
    """Encode the growth of a model, the damage, and its recovery."""

    def states() -> Iterator[Tensor]:
        for state in rollout_states(model, seed_of(model, size), steps[0], mask_seed=mask_seed):
            last = state
            yield state
        damaged = clear_cells(last, damage, inputs_of(model))
        yield from rollout_states(model, damaged, steps[1], mask_seed=mask_seed)

    return encode_gif(_frames(model, states()))


def _frames(model: NeuralCA, states: Iterator[Tensor]) -> Iterator[Pixels]:
    """Yield every fourth state, and the last one, as pixels."""
    step = -1
    for step, state in enumerate(states):
        last = state
        if step % GIF_EVERY == 0:
            yield to_pixels(visible(model, state))
    if step % GIF_EVERY:
        yield to_pixels(visible(model, last))


def load_model(path: Path, backend: str = "auto") -> NeuralCA:
    """Read a model, and say so if it cannot grow."""
    model = NeuralCA.load(path, backend=backend)
    if not any(parameter.any() for parameter in model.update_net[-1].parameters()):
        print(
            f"fastnca: {path}: nothing can grow, because the last layer is zero, as in every "
            "untrained model; train it first",
            file=sys.stderr,
        )
    return model


def _load(arguments: Namespace) -> tuple[NeuralCA, Size]:
    """Read the model; the grid is the one it was trained on unless the user says otherwise."""
    model = load_model(arguments.model, arguments.backend)
    try:
        return model, arguments.size or trained_size(model)
    except ValueError as error:
        raise ValueError(f"{arguments.model}: {error}; say how large with --size") from error


def _default_paths(model: Path, name: str) -> list[Path]:
    """Put pictures beside the model."""
    directory = model if model.is_dir() else model.parent
    return [directory / f"{name}.png", directory / f"{name}.gif"]


def _damage(arguments: Namespace, size: Size) -> Tensor:
    """Return the damaged cells, `[H, W]` bool."""
    _refuse_others(arguments)
    height, width = height_and_width(size)
    if arguments.damage == "rectangle":
        top, left, bottom, right = arguments.box or middle_square(size)
        return rectangle(height, width, (top, left, bottom, right))
    y, x = arguments.center or (height / 2, width / 2)
    halves = [max(side - 1, 1) / 2 for side in (height, width)]  # in cells
    radius = (arguments.radius or min(height, width) / 5) / min(halves)
    center = torch.tensor([[y / halves[0] - 1, x / halves[1] - 1]])
    inside = disc(height, width, center, torch.tensor([radius]))[0]
    if not inside.any():
        raise ValueError(f"the disc at {y}, {x} covers no cell of a {height}x{width} grid")
    return inside


def _refuse_others(arguments: Namespace) -> None:
    """Refuse options of the other kind of damage."""
    kinds = {"box": "rectangle", "center": "disc", "radius": "disc"}
    for name, kind in kinds.items():
        if getattr(arguments, name) is not None and arguments.damage != kind:
            raise ValueError(f"--{name} belongs to --damage {kind}, not to {arguments.damage}")


def _pattern(name: str, size: Size) -> Tensor:
    """Place a pattern in the middle of an empty grid (the glider where the tutorial has it)."""
    rows = LIFE_PATTERNS[name]
    cells = torch.tensor([[float(cell == "#") for cell in row] for row in rows])
    (rows_needed, columns_needed), (height, width) = cells.shape, height_and_width(size)
    free_rows, free_columns = height - rows_needed, width - columns_needed
    if free_rows < 0 or free_columns < 0:
        raise ValueError(
            f"the {name} needs a grid of at least {rows_needed}x{columns_needed}, "
            f"got {height}x{width}"
        )
    top, left = free_rows // 2, free_columns // 2
    if name == "glider":
        top, left = min(5, free_rows), min(5, free_columns)
    grid = torch.zeros(height, width)
    grid[top : top + rows_needed, left : left + columns_needed] = cells
    return grid


def _life_grids(grid: Tensor, steps: int) -> Iterator[Tensor]:
    yield grid
    for _ in range(steps):
        grid = game_of_life_step(grid)
        yield grid


def _black(grid: Tensor) -> Pixels:
    """Show living cells black on white: `[H, W, 1]`."""
    pixels: Pixels = ((1 - grid) * 255).to(torch.uint8)[..., None].numpy()
    return pixels
