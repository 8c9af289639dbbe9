"""Sums of losses."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class WeightedSum:
    """The sum of several losses, each with a weight.

    Args:
        *terms: pairs of a weight and a loss, for instance
            `WeightedSum((1.0, RGBALoss()), (0.1, OverflowLoss(colors=4)))`.

    Raises:
        ValueError: there is no term.
    """

    def __init__(self, *terms: tuple[float, Callable[[Sequence[Tensor], Tensor], Tensor]]) -> None:
        if not terms:
            raise ValueError("a weighted sum needs at least one pair of a weight and a loss")
        self.terms = terms
        self.capturable = all(getattr(loss, "capturable", False) for _, loss in terms)
        self.colors = max(getattr(loss, "colors", 0) for _, loss in terms)
        self._shapes: list[torch.Size] = []

    def prepare(self, target: Tensor) -> Tensor:
        """Return what the terms compare with, `[N, ...]` each, flattened side by side: `[N, M]`."""
        parts = [prepared(loss, target) for _, loss in self.terms]
        self._shapes = [part.shape[1:] for part in parts]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def __call__(self, states: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the sum for each sample, `[B]`; `target` has rows of what `prepare` returned."""
        parts = target.split([shape.numel() for shape in self._shapes], dim=1)
        pairs = zip(self.terms, parts, self._shapes, strict=True)
        values = [
            weight * loss(states, part.unflatten(1, shape) if len(shape) != 1 else part)
            for (weight, loss), part, shape in pairs
        ]
        return torch.stack(values).sum(0)


def prepared(loss: Any, target: Tensor) -> Tensor:
    """Return what `loss` compares with: its `prepare(target)`, or the target."""
    prepare = getattr(loss, "prepare", None)
    if prepare is None:
        return target
    with torch.no_grad():
        result: Tensor = prepare(target)
    return result
