"""Any rule's steps, written a second time: tables of neighbours, sums over taps, masks given.

It shares no code with `fastnca`: what a step computes stands in `step`, from top to bottom. Plain
torch in float64, so that autograd differentiates it. Weights are a state dict's.
"""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

ACTIVATIONS = {
    "relu": lambda x: torch.where(x > 0, x, 0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, x.clamp(max=0).exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + (-x).exp()),
    "tanh": lambda x: 1 - 2 / ((2 * x).exp() + 1),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
}


def along(position: int, size: int, padding: str) -> int | None:
    """Return the cell that stands for `position`, -1 to `size`, in a line; None is no cell."""
    if 0 <= position < size:
        return position
    first = position < 0
    return {
        "zeros": None,
        "circular": size - 1 if first else 0,
        "reflect": 1 if first else size - 2,
        "replicate": 0 if first else size - 1,
    }[padding]


@cache
def table(height: int, width: int, padding: str) -> Tensor:
    """Return the number of every cell's nine neighbours, `[9, H*W]`; `H*W` is no cell."""

    def cell(y: int | None, x: int | None) -> int:
        return height * width if y is None or x is None else y * width + x

    rows = [
        [
            cell(along(y + dy, height, padding), along(x + dx, width, padding))
            for y in range(height)
            for x in range(width)
        ]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    return torch.tensor(rows)


def around(values: Tensor, padding: str, beyond: float) -> Tensor:
    """Return the nine neighbours' values of `[B, C, H, W]`: `[B, C, 9, H*W]`."""
    batch, channels, height, width = values.shape
    nowhere = values.new_full((batch, channels, 1), beyond)
    return torch.cat((values.flatten(2), nowhere), 2)[:, :, table(height, width, padding)]


def alive(cells: Tensor, rule) -> Tensor:
    """Return which cells have alpha above the threshold around them (E2): `[B, 1, H, W]` bool."""
    wraps = "circular" if rule.padding == "circular" else "zeros"
    nine = around(cells[:, 3:4].detach(), wraps, float("-inf"))
    return (nine > rule.alive_threshold).any(2).view_as(cells[:, 3:4])


def update(state: Tensor, rule, weights: Mapping[str, Tensor]) -> Tensor:
    """Return what the network proposes for every cell (E1, E3): `[B, C - inputs, H, W]`."""
    channels = state.shape[1]
    taps = weights["perception.filters"].view(channels, -1, 9)
    x = torch.einsum("bctn,ckt->bckn", around(state, rule.padding, 0.0), taps).flatten(1, 2)
    for layer in range(len(rule.hidden) + 1):
        name = f"update_net.{2 * layer}"
        x = torch.einsum("oi,bin->bon", weights[f"{name}.weight"][:, :, 0, 0], x)
        last = layer == len(rule.hidden)
        if rule.final_bias or not last:
            x = x + weights[f"{name}.bias"][:, None]
        if not last:
            x = ACTIVATIONS[rule.activation](x)
    return x.unflatten(2, state.shape[2:])


def step(state: Tensor, rule, weights: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Advance `[B, C, H, W]`; the cells of `mask` `[B, H, W]` bool update."""
    mask = mask[:, None]
    cells, inputs = state.split((state.shape[1] - rule.inputs, rule.inputs), 1)
    new = cells + rule.step_size * update(state, rule, weights)
    if rule.clamp is not None:
        low, high = rule.clamp
        new = torch.where(new < low, low, torch.where(new > high, high, new))
    new = torch.where(mask, new, cells)  # E5
    lives = torch.ones_like(mask)
    if rule.alive in ("before", "both"):
        lives = lives & alive(cells, rule)  # E6
    if rule.alive in ("after", "both"):
        lives = lives & alive(new, rule)  # E7
    return torch.cat((torch.where(lives, new, 0), inputs), 1)


def rollout(state: Tensor, rule, weights: Mapping[str, Tensor], masks: Tensor) -> Tensor:
    """Advance `[B, C, H, W]` by one step per mask of `[T, B, H, W]` bool."""
    for mask in masks:
        state = step(state, rule, weights, mask)
    return state
