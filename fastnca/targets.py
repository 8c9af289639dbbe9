"""Target pictures drawn by code: RGBA `[1, 4, H, W]`, colours premultiplied by alpha."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastnca.states import Size, height_and_width


def create_target_circle(
    size: Size = 64,
    *,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw the tutorial's target: an orange disc around the cell at `(H // 2, W // 2)`.

    Its radius is 0.35 of the shorter side.

    Args:
        size: in cells: one number for a square, or `(height, width)`; at least 1.
        batch: number of equal pictures B.
        device: where the picture is made; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[B, 4, H, W]`, RGBA in [0, 1].

    Raises:
        TypeError: the size is neither an int nor a pair.
        ValueError: size or batch is out of range.
    """
    height, width = height_and_width(size)
    if batch < 0:
        raise ValueError(f"a target needs batch >= 0, got {batch}")
    y, x = (torch.arange(side, device=device).float() - side // 2 for side in (height, width))
    inside = torch.sqrt(x[None, :] ** 2 + y[:, None] ** 2) < min(height, width) * 0.35
    color = torch.tensor([1.0, 0.5, 0.0, 1.0], device=device, dtype=dtype)
    return (color[:, None, None] * inside).repeat(batch, 1, 1, 1)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    return (radius < 0.72) & (radius > 0.42)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = 1.45 * x, -1.45 * y + 0.1
    return (x * x + y * y - 0.8) ** 3 - x * x * y**3 < 0


def _star(x: Tensor, y: Tensor) -> Tensor:
    angle = torch.atan2(x, -y)
    fifth = 2 * math.pi / 5
    fold = (angle + fifth / 2).remainder(fifth) - fifth / 2
    # The edge of a pentagram's ray, from its tip at radius 0.8 to the notch at angle pi/5.
    tip, notch = 0.8, 0.8 * math.cos(2 * math.pi / 5) / math.cos(math.pi / 5)
    slope = notch * math.sin(fifth / 2) / (tip - notch * math.cos(fifth / 2))
    radius = torch.hypot(x, y)
    return radius * fold.abs().sin() < slope * (tip - radius * fold.cos())


def _flower(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) < 0.52 + 0.22 * torch.cos(6 * torch.atan2(y, x))


def _leaf(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x - 0.45, y - 0.45) < 0.95) & (torch.hypot(x + 0.45, y + 0.45) < 0.95)


_Shape = Callable[[Tensor, Tensor], Tensor]
_DRAWN: dict[str, tuple[_Shape, tuple[float, float, float]]] = {
    "ring": (_ring, (0.16, 0.47, 0.80)),
    "heart": (_heart, (0.84, 0.15, 0.27)),
    "star": (_star, (0.95, 0.77, 0.06)),
    "flower": (_flower, (0.71, 0.40, 0.86)),
    "leaf": (_leaf, (0.25, 0.66, 0.30)),
}
TARGETS = ("circle", *_DRAWN)
"""Names that `create_target` draws."""

_SAMPLES = 4  # per cell and axis, for smooth edges


def create_target(
    name: str,
    size: Size = 64,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw a target by name, in the middle of the grid, as large as its shorter side allows.

    Args:
        name: one of `TARGETS`; "circle" is the tutorial's, the others have smooth edges.
        size: in cells: one number for a square, or `(height, width)`; at least 1.
        device: where the picture is made; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[1, 4, H, W]`, premultiplied RGBA in [0, 1].

    Raises:
        TypeError: the size is neither an int nor a pair.
        ValueError: the name is unknown or the size out of range.
    """
    if name == "circle":
        return create_target_circle(size, device=device, dtype=dtype)
    if name not in _DRAWN:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    height, width = height_and_width(size)
    inside, color = _DRAWN[name]
    short = min(height, width)

    def axis(side: int) -> Tensor:
        """Return the samples of a side; the shorter one reaches from -1 to 1."""
        samples = torch.arange(side * _SAMPLES, device=device, dtype=dtype) + 0.5
        return samples * (2 / (short * _SAMPLES)) - side / short

    y, x = axis(height), axis(width)
    covered = inside(x[None, :], y[:, None]).to(x.dtype)
    alpha = covered.view(height, _SAMPLES, width, _SAMPLES).mean(dim=(1, 3))
    paint = torch.tensor([*color, 1.0], device=device, dtype=x.dtype)
    return (paint[:, None, None] * alpha)[None]
