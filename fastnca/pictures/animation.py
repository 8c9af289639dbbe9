"""Animated GIF files."""

import io
from collections.abc import Iterable

from PIL import Image

from fastnca.pictures.render import Pixels


def encode_gif(
    frames: Iterable[Pixels], *, scale: int = 4, milliseconds: int = 50, hold: int = 1000
) -> bytes:
    """Encode frames as an endlessly repeating GIF.

    Args:
        frames: `[H, W, 3]` uint8 each, all of one size, at least one.
        scale: pixels per cell and axis.
        milliseconds: time of a frame; GIF counts in units of 10.
        hold: additional milliseconds of the last frame.

    Returns:
        The content of the file.

    Raises:
        ValueError: there is no frame.
    """
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame)
        size = (picture.width * scale, picture.height * scale)
        pictures.append(picture.resize(size, Image.Resampling.NEAREST))
    if not pictures:
        raise ValueError("an animation needs at least one frame")
    times = [milliseconds] * len(pictures)
    times[-1] += hold
    file = io.BytesIO()
    pictures[0].save(
        file, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0
    )
    return file.getvalue()
