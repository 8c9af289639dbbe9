"""Losses of rollouts, for training: what a state is compared with, and how.

rgba.py        mean squared error of RGBA
penalties.py   values out of range, alpha outside of the target
weighted.py    sums of losses
texture.py     distance between textures

A loss is any callable `loss(states, target)`. `states` is a list of the `loss_steps` states that
the recipe asks for, `[B, C, H, W]` each, the last one last; where a trainer ranks states, all are
the same. `target` has a row per sample. It returns one value per sample, `[B]`. Three attributes
are optional: `prepare(target)` maps the targets `[N, ...]` of a run, once, to what the loss
compares with, a tensor with as many rows; `capturable` is true if a CUDA graph may replay the loss,
that is, if it does not wait for the device and no Python value that changes decides what it
computes; `colors` is how many channels, the first ones, the penalty `overflow` of a recipe keeps
in [0, 1] instead of [-1, 1].
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from fastnca.losses.penalties import OverflowLoss
from fastnca.losses.rgba import RGBALoss
from fastnca.losses.texture import TextureLoss
from fastnca.losses.weighted import WeightedSum

Loss = Callable[[Sequence[Tensor], Tensor], Tensor]
"""What `PoolTrainer(loss=...)` takes."""

__all__ = ["Loss", "OverflowLoss", "RGBALoss", "TextureLoss", "WeightedSum"]
