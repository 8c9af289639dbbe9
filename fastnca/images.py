"""Picture files as targets."""

import warnings
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from fastnca.states import ALIVE_THRESHOLD, ALPHA, Size, height_and_width
from fastnca.storage.bundle import FileFormatError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Picture formats that are opened; others are refused, whatever Pillow could do with them."""

_MAX_BYTES = 32 << 20
_MAX_PIXELS = 16_000_000
_WHITE = {"L;2": 3, "L;4": 15}
"""Largest sample of the grey PNG depths that Pillow stretches to 255."""


def load_target(
    path: str | PathLike[str],
    size: Size = 64,
    padding: int | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Read a picture file as a target: upright, scaled to fit, premultiplied, centred.

    Args:
        path: PNG, JPEG, WebP, GIF (first frame) or BMP, at most 32 MiB and 16 million pixels.
        size: of the grid in cells: one number for a square, or `(height, width)`.
        padding: empty cells that stay on every side; an eighth of the shorter side if None. A
            pattern needs room to overshoot while it grows.
        device: where the target is made; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[1, 4, H, W]`, RGBA in [0, 1], colours premultiplied by alpha. A picture without
        alpha is opaque. 16-bit samples are reduced to 8 bits; colour profiles are ignored.

    Raises:
        FileFormatError: the file is not a picture, is damaged, is too large, or is too transparent
            for a living cell.
        FileNotFoundError: there is no such file.
        TypeError: the size is neither an int nor a pair.
        ValueError: size and padding leave no cell for the picture.
    """
    path = Path(path)
    height, width = height_and_width(size)
    margin = min(height, width) // 8 if padding is None else padding
    if margin < 0 or min(height, width) <= 2 * margin:
        raise ValueError(
            f"padding {margin} on both sides leaves no cell of a {height}x{width} grid"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture file")
    picture = _open(path)
    scale = min((width - 2 * margin) / picture.width, (height - 2 * margin) / picture.height)
    fitted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(fitted, Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    pixels = torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)
    pixels = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], dim=-1)
    target = pixels.permute(2, 0, 1)[None].contiguous()
    if target[:, ALPHA].max() <= ALIVE_THRESHOLD:
        raise FileFormatError(
            path,
            f"nothing to grow: alpha is at most {ALIVE_THRESHOLD} in each of its {picture.width}x"
            f"{picture.height} cells, and cells live above that; crop it or make it more opaque",
        )
    return target.to(device=device, dtype=dtype or torch.get_default_dtype())


def load_texture(
    path: str | PathLike[str],
    size: Size = 96,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Read a picture file as a texture: upright, scaled to cover the grid, cut to it, on white.

    Args:
        path: as in `load_target`.
        size: of the grid in cells: one number for a square, or `(height, width)`.
        device: where the target is made; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[1, 4, H, W]`, RGBA in [0, 1] with alpha 1.

    Raises:
        FileFormatError: the file is not a picture, is damaged or is too large.
        FileNotFoundError: there is no such file.
        TypeError, ValueError: the size is none.
    """
    path, (height, width) = Path(path), height_and_width(size)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture file")
    picture = _open(path)
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
    target = pixels.permute(2, 0, 1)[None].contiguous()
    return target.to(device=device, dtype=dtype or torch.get_default_dtype())


def _open(path: Path) -> Image.Image:
    """Decode the first frame as RGBA, turned upright by its EXIF orientation."""
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise FileFormatError(path, f"too large for a target: {size} bytes, at most {_MAX_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                pixels = picture.width * picture.height
                if pixels > _MAX_PIXELS:
                    raise FileFormatError(
                        path,
                        f"too large for a target: {picture.width}x{picture.height} pixels, "
                        f"at most {_MAX_PIXELS:,} pixels",
                    )
                return _convert(picture)
    except FileFormatError:
        raise
    except Exception as error:  # each decoder raises its own types on damaged data
        raise FileFormatError(
            path, f"not a picture that can be read ({', '.join(FORMATS)} can)"
        ) from error


def _convert(picture: ImageFile.ImageFile) -> Image.Image:
    """Turn an opened picture upright and convert it to RGBA.

    Pillow clips 16-bit grey instead of scaling it. It also compares the transparent colour of a
    PNG, which has the file's depth, with pixels that it has already converted to 8 bits.
    """
    depth = picture.tile[0][3] if picture.tile else None
    key = picture.info.get("transparency")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("I;16", "I"):  # older versions of Pillow open 16-bit grey as "I"
        values = np.asarray(upright)
        grey = Image.fromarray(np.rint(values / 257).astype(np.uint8))
        opaque = np.full(values.shape, True) if key is None else values != key
        return Image.merge("RGBA", (grey, grey, grey, Image.fromarray(opaque).convert("L")))
    if key is not None and depth in _WHITE:
        upright.info["transparency"] = key * 255 // _WHITE[depth]
    elif key is not None and depth == "RGB;16B":
        upright.info["transparency"] = tuple(value >> 8 for value in key)
    return upright.convert("RGBA")
