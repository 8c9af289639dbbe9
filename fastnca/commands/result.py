"""What `fastnca train` delivers: the saved model, its pictures, and what it can do in words."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnca.commands.output import save_figure
from fastnca.commands.show import GROW_STEPS, MASK_SEED, growth_gif, regeneration_gif
from fastnca.commands.watch import draw_pool
from fastnca.module import NeuralCA
from fastnca.pictures import encode_mosaic, plot_loss, visualize_growth, visualize_regeneration
from fastnca.pictures.render import seed_of, visible
from fastnca.report import measure_stability, measure_texture, untrained_loss
from fastnca.states import height_and_width, middle_square, rectangle, size_of
from fastnca.storage.atomic import write_atomically
from fastnca.training import EmaTracker, PoolTrainer, growth_loss, healing_loss
from fastnca.training.ema import DAMAGE_STEPS, GROWTH_STEPS, HEALING_STEPS

_SEEDS = 8  # rollouts, each with masks of its own
_MASK_SEED = 1000  # not the masks that the best weights were chosen with
_TEXTURE_STEPS = 160  # of a texture's animation: it covers its grid sooner than a pattern grows
LARGER = 2
"""How many times as high and wide as its target a texture is drawn."""

TILES = 3
"""How often a texture is repeated in each direction to show that it tiles."""


def facts(trainer: PoolTrainer, arguments: Namespace) -> dict[str, Any]:
    """Return what is saved with a model, beside its weights."""
    config, size = trainer.config, size_of(trainer.seed_state)
    known = {
        "size": size if isinstance(size, int) else list(size),
        "fill_hidden": config.fill_hidden,
        "target": arguments.target,
        "preset": arguments.preset,
    }
    known |= {} if config.start == "cell" else {"start": config.start}
    known |= {} if config.update_rate == 0.5 else {"update_rate": config.update_rate}
    return known | ({"visible": "texture"} if config.loss == "texture" else {})


def save_result(trainer: PoolTrainer, best: EmaTracker, arguments: Namespace, out: Path) -> None:
    """Write the model with the best weights; with the last ones if no others grow."""
    if math.isinf(best.loss):
        best.evaluate(trainer)
    iteration = trainer.iteration
    if math.isfinite(best.loss):
        trainer.model.load_state_dict(best.weights)
        iteration = best.iteration
    trainer.model.metadata = {**facts(trainer, arguments), "iterations": iteration}
    trainer.model.save(out)


def draw_result(trainer: PoolTrainer, out: Path) -> list[str]:
    """Draw what the model became; return the names of the files."""
    model, size = trainer.model, size_of(trainer.seed_state)
    figures = {"growth.png": visualize_growth(model, size, GROW_STEPS, mask_seed=MASK_SEED)}
    pictures = {"pool.png": draw_pool(trainer)}
    if trainer.config.loss == "texture":
        pictures["growth.gif"] = growth_gif(model, size, _TEXTURE_STEPS, MASK_SEED, scale=2)
        pictures |= _texture_pictures(trainer)
    else:
        steps = DAMAGE_STEPS, HEALING_STEPS
        damage = rectangle(*height_and_width(size), middle_square(size))
        figures["regeneration.png"] = visualize_regeneration(
            model, size, *steps, damage=damage, mask_seed=MASK_SEED
        )
        pictures["growth.gif"] = regeneration_gif(model, size, steps, damage, MASK_SEED)
    figures["loss.png"] = plot_loss(trainer.losses, label=loss_label(trainer.config.loss))
    for name, figure in figures.items():
        save_figure(figure, out / name)
    for name, content in pictures.items():
        write_atomically(out / name, content)
    return [*figures, *pictures]


def loss_label(loss: str) -> str:
    """Say what a recipe's loss is, for the axis of a plot."""
    return "texture loss" if loss == "texture" else "mean squared error of RGBA"


def texture_grids(model: NeuralCA, target: Tensor) -> list[Tensor]:
    """Return seeds `[1, C, H, W]` of the grids that a texture is measured on.

    One is half as high and wide as its target, one is as large.
    """
    height, width = target.shape[-2:]
    return [seed_of(model, (max(1, height // part), max(1, width // part))) for part in (2, 1)]


def _texture_pictures(trainer: PoolTrainer) -> dict[str, bytes]:
    """Draw a texture beside its target, on a larger grid, and as tiles."""
    model, target = trainer.model, trainer.target
    height, width = target.shape[-2:]
    sizes = (height, width), (LARGER * height, LARGER * width), trainer.seed_state.shape[-2:]
    seeds = [seed_of(model, (size[0], size[1])) for size in sizes]
    (grown,) = measure_texture(model, seeds, target, (GROW_STEPS,), runs=1)
    sample, larger, tile = (visible(model, state) for state in grown.states)
    beside = torch.cat([target, sample])
    return {
        "sample.png": encode_mosaic(beside, columns=2, scale=2),
        "larger.png": encode_mosaic(larger, scale=2),
        "tiles.png": encode_mosaic(tile.repeat(1, 1, TILES, TILES), scale=3),
    }


def describe_quality(trainer: PoolTrainer, best: EmaTracker) -> str:
    """Say in plain words what the saved model does.

    Args:
        trainer: the run, whose model has the best weights.
        best: which ones those are.
    """
    first = f"the saved model is the average of the weights up to iteration {best.iteration}\n"
    if trainer.config.loss == "texture":
        return first + _describe_texture(trainer)
    model, steps = trainer.model.train(), GROWTH_STEPS[-1]
    rate = trainer.config.update_rate
    measured = trainer.seed_state, trainer.target, (steps,)
    (end,) = measure_stability(model, *measured, runs=_SEEDS, update_rate=rate)
    living = round(_SEEDS * (1 - end.dead - end.exploded))
    growth = growth_loss(model, trainer.task, _MASK_SEED)
    healing = healing_loss(model, trainer.task, _MASK_SEED)
    return first + (
        f"  mean squared error of RGBA (an empty grid has {trainer.target.square().mean():.3f}):\n"
        f"    {growth:.4f} grown from the seed, over {GROWTH_STEPS[0]} to {steps} steps\n"
        f"    {healing:.4f} healed, {HEALING_STEPS} steps after a square was cut out\n"
        f"  {living} of {_SEEDS} seeds live for {steps} steps"
    )


def _describe_texture(trainer: PoolTrainer) -> str:
    model, target = trainer.model.train(), trainer.target
    steps, rate = GROWTH_STEPS[-1], trainer.config.update_rate
    seeds = texture_grids(model, target)
    (end,) = measure_texture(model, seeds, target, (steps,), update_rate=rate)
    lines = [
        f"  texture loss after {steps} steps (an untrained model has "
        f"{untrained_loss(seeds[0], target):.3f}):"
    ]
    for seed, loss in zip(seeds, end.losses, strict=True):
        shown = "not finite: states exploded" if math.isnan(loss) else f"{loss:.4f}"
        lines.append(f"    {shown} on {seed.shape[2]}x{seed.shape[3]} cells")
    return "\n".join([*lines, f"  values of its states are within {end.largest:.4g} of 0"])
