"""What `fastnca train` delivers: the saved model, its pictures, and what it can do in words."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from fastnca.commands.output import save_figure
from fastnca.commands.show import GROW_STEPS, MASK_SEED, growth_gif, regeneration_gif
from fastnca.commands.watch import draw_pool
from fastnca.pictures import encode_mosaic, plot_loss, visualize_growth, visualize_regeneration
from fastnca.pictures.render import seed_of, visible
from fastnca.report import LARGER, measure_stability, measure_texture, untrained_loss
from fastnca.states import height_and_width, middle_square, rectangle, size_of
from fastnca.storage.atomic import write_atomically
from fastnca.training import EmaTracker, PoolTrainer, growth_loss, healing_loss
from fastnca.training.ema import DAMAGE_STEPS, GROWTH_STEPS, HEALING_STEPS

_SEEDS = 8  # rollouts, each with masks of its own
_MASK_SEED = 1000  # not the masks that the best weights were chosen with
_TEXTURE_STEPS = 160  # of a texture's animation: it covers its grid sooner than a pattern grows
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


def _texture_pictures(trainer: PoolTrainer) -> dict[str, bytes]:
    """Draw a texture beside its target, on a larger grid, and as tiles."""
    model, target = trainer.model, trainer.target
    seed_state = seed_of(model, size_of(target))
    (grown,) = measure_texture(model, seed_state, target, (GROW_STEPS,), runs=1)
    sample, larger = (visible(model, states) for states in grown.states)
    tiles = sample.repeat(1, 1, TILES, TILES)
    return {
        "sample.png": encode_mosaic(torch.stack([target[0], sample[0]]), columns=2, scale=4),
        "larger.png": encode_mosaic(larger, scale=3),
        "tiles.png": encode_mosaic(tiles, scale=2),
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
    model, steps = trainer.model.train(), GROWTH_STEPS[-1]
    target, rate = trainer.target, trainer.config.update_rate
    seed_state = seed_of(model, size_of(target))
    (end,) = measure_texture(model, seed_state, target, (steps,), update_rate=rate)
    height, width = target.shape[-2:]
    return (
        f"  texture loss after {steps} steps (an untrained model has "
        f"{untrained_loss(seed_state, target):.3f}):\n"
        f"    {_shown(end.loss)} on {height}x{width} cells\n"
        f"    {_shown(end.larger)} on {LARGER * height}x{LARGER * width} cells\n"
        f"  values of its states are within {end.largest:.4g} of 0"
    )


def _shown(loss: float) -> str:
    return "not finite: states exploded" if math.isnan(loss) else f"{loss:.4f}"
