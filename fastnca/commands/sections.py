"""The sections of `fastnca report` that measure a model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastnca.commands.result import TILES
from fastnca.commands.show import MASK_SEED
from fastnca.module import NeuralCA
from fastnca.pictures import encode_mosaic, rollout_states
from fastnca.pictures.render import visible
from fastnca.report import (
    Picture,
    Recovery,
    Section,
    Stability,
    Table,
    TextureQuality,
    untrained_loss,
)
from fastnca.report.measure import EXPLODED, GROW_STEPS
from fastnca.states import clear_cells, height_and_width, middle_square, rectangle, size_of

_GROWTH = (0, 10, 20, 30, 40, 60, 80, 100)
_HEALING = (0, 10, 20, 40, 60, 100, 200)
_WIDTH = 120  # pixels of a state's longer side in a row


def growth_section(model: NeuralCA, seed_state: Tensor, target: Tensor) -> Section:
    """Show a pattern growing, and its target."""
    states = list(rollout_states(model, seed_state, _GROWTH[-1], mask_seed=MASK_SEED))
    shown = torch.cat([states[step] for step in _GROWTH])
    steps = ", ".join(map(str, _GROWTH))
    return Section(
        "Growth",
        "",
        [
            Picture(_strip(visible(model, shown)), f"from the seed, after {steps} steps"),
            Picture(_strip(target), "the target"),
        ],
    )


def regeneration_section(model: NeuralCA, recovery: Sequence[Recovery], runs: int) -> Section:
    """Show recovery from damage."""
    *some, last = recovery[0].moments
    return Section(
        "Regeneration",
        f"A state grown for {GROW_STEPS} steps, the same right after the damage, and "
        f"{', '.join(map(str, some))} and {last} steps later. The losses are medians of {runs} "
        "rollouts.",
        [
            Table(
                ("damage", "loss before", "right after", f"{last} steps later"),
                [
                    (each.name, *map(_number, (each.before, each.after, each.recovered)))
                    for each in recovery
                ],
            ),
            *(Picture(_strip(visible(model, each.states)), each.name) for each in recovery),
        ],
    )


def stability_section(stability: Sequence[Stability], runs: int) -> Section:
    """Show what is left after many steps."""
    return Section(
        "Stability",
        f"{runs} rollouts from the seed with random updates. A rollout has exploded when a value "
        f"is not finite or beyond ±{EXPLODED:g}; it is dead when it has not and no cell lives. "
        "Living cells are those of the rollouts that have not exploded, relative to the target's.",
        [
            Table(
                ("steps", "median loss", "living cells", "dead", "exploded"),
                [
                    (
                        f"{each.steps:,}",
                        _number(each.loss),
                        "none left" if math.isnan(each.alive) else f"{each.alive:.2f} x",
                        f"{each.dead:.0%}",
                        f"{each.exploded:.0%}",
                    )
                    for each in stability
                ],
            )
        ],
    )


def texture_sections(
    model: NeuralCA,
    seed_state: Tensor,
    target: Tensor,
    quality: Sequence[TextureQuality],
    runs: int,
) -> list[Section]:
    """Show a texture beside its target, larger, as tiles, growing, healing, and after long.

    Args:
        model: the model.
        seed_state: `[1, C, H, W]`, of the grid it was trained on.
        target: `[1, 4, H, W]`.
        quality: what `measure_texture` returned for `texture_grids`.
        runs: rollouts that were measured.
    """
    first, last = quality[0], quality[-1]
    states = list(rollout_states(model, seed_state, _GROWTH[-1], mask_seed=MASK_SEED))
    growing = torch.cat([states[step] for step in _GROWTH])
    size = size_of(seed_state)
    cells = rectangle(*height_and_width(size), middle_square(size))
    damaged = clear_cells(states[-1], cells, model.rule.inputs)
    healing = list(rollout_states(model, damaged, _HEALING[-1], mask_seed=MASK_SEED))
    healed = torch.cat([healing[step] for step in _HEALING])
    tiles = visible(model, states[-1]).repeat(1, 1, TILES, TILES)
    sizes = [f"{state.shape[2]}x{state.shape[3]}" for state in first.states]
    return [
        Section(
            "Texture",
            f"The target, and what grew in {first.steps:,} steps from cells that were all alike.",
            [
                Picture(_side_by_side(target, visible(model, first.states[-1])), "target, sample"),
                Picture(encode_mosaic(tiles, scale=2), f"{TILES}x{TILES} seamless tiles"),
            ],
        ),
        Section(
            "Growth",
            "",
            [Picture(_strip(visible(model, growing)), f"after {_listed(_GROWTH)} steps")],
        ),
        Section(
            "Healing",
            "A rectangle in the middle is set to zero.",
            [Picture(_strip(visible(model, healed)), f"{_listed(_HEALING)} steps later")],
        ),
        Section(
            "Stability",
            f"Texture loss of {runs} rollouts; that of an untrained model is "
            f"{_number(untrained_loss(seed_state, target))}. A rollout has exploded when a value "
            f"is not finite or beyond ±{EXPLODED:g}.",
            [
                Table(
                    ("steps", *(f"loss, {size}" for size in sizes), "largest value", "exploded"),
                    [
                        (
                            f"{each.steps:,}",
                            *map(_number, (*each.losses, each.largest)),
                            f"{each.exploded:.0%}",
                        )
                        for each in quality
                    ],
                ),
                Picture(
                    _side_by_side(target, visible(model, last.states[-1])),
                    f"target, sample after {last.steps:,} steps",
                ),
            ],
        ),
    ]


def _side_by_side(*pictures: Tensor) -> bytes:
    return encode_mosaic(torch.cat([each[:, :4] for each in pictures]), columns=2, scale=2)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))


def _strip(states: Tensor) -> bytes:
    """Show states in one row, each about as large as the next one on the page."""
    scale = max(1, _WIDTH // max(states.shape[2:]))
    return encode_mosaic(states, columns=len(states), scale=scale)


def _number(value: float) -> str:
    return f"{value:#.3g}" if math.isfinite(value) else "not finite"
