"""Picture files as targets."""

import warnings
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastnca.storage.bundle import FileFormatError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Picture formats that are opened; others are refused, whatever Pillow could do with them."""

_MAX_BYTES = 32 << 20
_MAX_PIXELS = 16_000_000


def load_target(
    path: str | PathLike[str],
    size: int = 64,
    padding: int | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Read a picture file as a target: upright, scaled to fit, premultiplied, centred.

    Args:
        path: PNG, JPEG, WebP, GIF (first frame) or BMP, at most 32 MiB and 16 million pixels.
        size: height and width of the grid in cells.
        padding: empty cells that stay on every side; `size // 8` if None. A pattern needs room
            to overshoot while it grows.
        device: where the target is made; torch's default device if None.
        dtype: floating-point type; torch's default dtype if None.

    Returns:
        `[1, 4, size, size]`, RGBA in [0, 1], colours premultiplied by alpha. A picture without
        alpha is opaque.

    Raises:
        FileFormatError: the file is not a picture, is damaged, or is too large.
        FileNotFoundError: there is no such file.
        ValueError: size and padding leave no cell for the picture.
    """
    path = Path(path)
    margin = size // 8 if padding is None else padding
    inner = size - 2 * margin
    if margin < 0 or inner < 1:
        raise ValueError(f"padding {margin} on both sides leaves no cell of a {size}x{size} grid")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture file")
    picture = _open(path)
    scale = inner / max(picture.size)
    fitted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(fitted, Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    pixels = torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)
    pixels = torch.cat([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], dim=-1)
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
                return ImageOps.exif_transpose(picture).convert("RGBA")
    except FileFormatError:
        raise
    except Exception as error:  # each decoder raises its own types on damaged data
        raise FileFormatError(
            path, f"not a picture that can be read ({', '.join(FORMATS)} can)"
        ) from error
