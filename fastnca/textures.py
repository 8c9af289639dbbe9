"""Texture targets drawn by code: opaque RGBA pictures `[1, 4, H, W]` that tile the plane.

A material has a scale in cells: a larger picture shows more of it, not a larger copy. Two seeds
give two samples of one material. Every picture is periodic in both directions, as a state with
circular padding is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

_Size = tuple[int, int]
_Colour = tuple[float, float, float]


def create_texture(
    name: str,
    size: int | tuple[int, int] = 96,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw a sample of a material.

    It is computed on the CPU in float64, from uniform numbers of a generator of its own.

    Args:
        name: one of `TEXTURES`.
        size: height and width in cells, or `(height, width)`, each at least 1.
        seed: which sample, in [0, 2⁶³).
        device: where the picture is put; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[1, 4, H, W]`, RGBA in [0, 1] with alpha 1.

    Raises:
        TypeError: size or seed is not an int.
        ValueError: the name is unknown, or size or seed out of range.
    """
    if name not in _DRAWN:
        raise ValueError(f"texture must be one of {', '.join(TEXTURES)}, got {name!r}")
    shape = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(shape) != 2 or any(not isinstance(n, int) or isinstance(n, bool) for n in shape):
        raise TypeError(f"size must be an int or (height, width), got {size!r}")
    if min(shape) < 1:
        raise ValueError(f"a texture needs a size of at least 1, got {size!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    dtype = dtype or torch.get_default_dtype()
    device = device or torch.get_default_device()
    with torch.device("cpu"):
        rgb = _DRAWN[name]((shape[0], shape[1]), torch.Generator().manual_seed(seed))
        picture = torch.cat([rgb.clamp(0, 1), torch.ones_like(rgb[:1])])[None]
    return picture.to(device=device, dtype=dtype)


def _cheetah(size: _Size, generator: Generator) -> Tensor:
    """Dark, irregular spots on fur that is paler in some places."""
    warp = [_smooth(size, generator, 0.06) for _ in range(2)]
    radius = 2.2 + 2.0 * _uniform(_count(size, 10.5), generator)
    distance, radius = _nearest(size, 10.5, 0.75, generator, radius, warp)
    spot = torch.sigmoid(2.2 * (radius - distance))
    tone = 0.5 + 0.3 * _smooth(size, generator, 0.03)
    fur = _blend(tone, (0.80, 0.54, 0.23), (0.96, 0.79, 0.50))
    return _blend(spot, fur, (0.17, 0.10, 0.07))


def _zebra(size: _Size, generator: Generator) -> Tensor:
    """Stripes that bend, fork and end: the phase of noise of nearly one wavelength."""
    wave = _wave(size, generator, 0.085, 0.014, 0.4)
    power = wave.abs().square()
    stripe = wave.real / (power + 0.08 * power.mean() + 1e-12).sqrt()
    stripe = stripe + 0.2 * _smooth(size, generator, 0.03)
    tone = 0.5 + 0.3 * _smooth(size, generator, 0.025)
    cream = _blend(tone, (0.90, 0.80, 0.64), (0.99, 0.97, 0.90))
    return _blend(torch.sigmoid(5.0 * stripe), cream, (0.10, 0.08, 0.11))


def _coral(size: _Size, generator: Generator) -> Tensor:
    """Ridges that wind in every direction, as those of a brain coral."""
    y, x = _frequencies(size)
    ring = torch.exp(-(((torch.hypot(x, y) - 0.075) / 0.012) ** 2) / 2)
    height = _filter(_uniform(size, generator) - 0.5, ring).real
    height = height / (height.square().mean().sqrt() + 1e-12)
    height = height + 0.2 * _smooth(size, generator, 0.03)
    low = _blend(torch.sigmoid(3.0 * height), (0.27, 0.09, 0.27), (0.93, 0.47, 0.42))
    return _blend(torch.sigmoid(3.0 * (height - 1.1)), low, (1.00, 0.84, 0.68))


_Drawer = Callable[[_Size, Generator], Tensor]
_DRAWN: dict[str, _Drawer] = {"cheetah": _cheetah, "zebra": _zebra, "coral": _coral}
TEXTURES: tuple[str, ...] = tuple(_DRAWN)
"""Names that `create_texture` draws."""


def _blend(share: Tensor, low: _Colour | Tensor, high: _Colour | Tensor) -> Tensor:
    """Mix two colours, or pictures `[3, H, W]`, by `share` `[H, W]` of the second: `[3, H, W]`."""
    first, second = (
        each if isinstance(each, Tensor) else torch.tensor(each, dtype=share.dtype)[:, None, None]
        for each in (low, high)
    )
    return first + share.clamp(0, 1) * (second - first)


def _uniform(size: _Size, generator: Generator) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _wave(size: _Size, generator: Generator, center: float, width: float, spread: float) -> Tensor:
    """Draw periodic complex noise whose spectrum is a piece of a Gaussian ring.

    Args:
        size: height and width.
        generator: source of the white noise that is filtered.
        center: radius of the ring in cycles per cell.
        width: standard deviation across the ring.
        spread: standard deviation of the direction around the x axis, in radians.

    Returns:
        `[H, W]` complex128. It has hardly any negative frequency along x, so its angle is a phase.
    """
    y, x = _frequencies(size)
    ring = torch.exp(-(((torch.hypot(x, y) - center) / width) ** 2) / 2)
    sector = torch.exp(-((torch.atan2(y, x) / spread) ** 2) / 2)
    return _filter(_uniform(size, generator), ring * sector)


def _smooth(size: _Size, generator: Generator, width: float) -> Tensor:
    """Draw periodic noise `[H, W]` of expected mean 0 and variance 1.

    Its spectrum is a Gaussian with a standard deviation of `width` cycles per cell.
    """
    y, x = _frequencies(size)
    low = torch.exp(-((torch.hypot(x, y) / width) ** 2) / 2)
    # uniform numbers in [0, 1) have variance 1/12
    white = 12**0.5 * (_uniform(size, generator) - 0.5)
    return _filter(white, low / low.square().mean().sqrt()).real


def _frequencies(size: _Size) -> tuple[Tensor, ...]:
    """Return the frequencies along y and x of a discrete Fourier transform, each `[H, W]`."""
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in size]
    return torch.meshgrid(*axes, indexing="ij")


def _filter(picture: Tensor, response: Tensor) -> Tensor:
    """Multiply the spectrum of a periodic `[H, W]` picture by `response`: `[H, W]` complex."""
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(picture) * response)
    return filtered


def _count(size: _Size, spacing: float) -> _Size:
    """Return how many rows and columns of points lie `spacing` apart."""
    return max(1, round(size[0] / spacing)), max(1, round(size[1] / spacing))


def _nearest(
    size: _Size,
    spacing: float,
    jitter: float,
    generator: Generator,
    values: Tensor,
    warp: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Find the nearest points of a jittered grid on a torus (Worley, SIGGRAPH 1996).

    Args:
        size: height and width.
        spacing: mean distance of rows and columns of points.
        jitter: share of the spacing within which a point moves.
        generator: source of the points.
        values: a value for each point, of shape `_count(size, spacing)`.
        warp: how far the places of the picture move along y and x before the search.

    Returns:
        `[H, W]`, the distance of the nearest point, and its value.
    """
    counts = _count(size, spacing)
    points = [0.5 + jitter * (_uniform(counts, generator) - 0.5) for _ in range(2)]
    places = torch.meshgrid(*[torch.arange(n).double() + 0.5 for n in size], indexing="ij")
    # places in units of the grid, in which point (i, j) lies at (i, j) + points[:, i, j]
    scale = [n / count for n, count in zip(size, counts, strict=True)]
    y, x = ((p + w) / s for p, w, s in zip(places, warp, scale, strict=True))
    distances, found = [], []
    for step in range(25):
        row, column = y.floor().long() + step // 5 - 2, x.floor().long() + step % 5 - 2
        index = row % counts[0], column % counts[1]
        to_y, to_x = y - row - points[0][index], x - column - points[1][index]
        distances.append(torch.hypot(to_y * scale[0], to_x * scale[1]))
        found.append(values[index])
    distance, nearest = torch.stack(distances).min(dim=0)
    return distance, torch.stack(found).gather(0, nearest[None])[0]
