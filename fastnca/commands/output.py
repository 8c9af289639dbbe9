"""Write pictures to files, atomically, in the format that the file name asks for."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from fastnca.storage.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".png", ".gif")


def picture_paths(wanted: list[Path] | None, default: list[Path]) -> list[Path]:
    """Return the files to write.

    Args:
        wanted: what the user named, or None.
        default: what is written otherwise.

    Raises:
        ValueError: a name ends neither in .png nor in .gif, or its directory does not exist.
    """
    for path in wanted or []:
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(f"{path}: pictures are written as .png (panels) or .gif (animation)")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no directory {path.parent}")
    return wanted or default


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, 100 pixels per inch."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    write_atomically(path, file.getvalue())
