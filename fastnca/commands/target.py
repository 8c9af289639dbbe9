"""The target of a run, by the name that a user gives it."""

from pathlib import Path

from torch import Tensor

from fastnca.images import load_target
from fastnca.states import Size
from fastnca.targets import TARGETS, create_target


def make_target(name: str, size: Size, padding: int | None, device: str) -> Tensor:
    """Draw or read a target.

    Args:
        name: one of `TARGETS`, or a picture file.
        size: of the grid in cells: one number for a square, or `(height, width)`.
        padding: empty cells around a picture; see `load_target`.
        device: where it is made.

    Returns:
        `[1, 4, H, W]`.

    Raises:
        FileFormatError: the picture cannot be read.
        ValueError: there is no such target and no such file, or a drawn target gets a padding.
    """
    if name in TARGETS:
        if padding is not None:
            raise ValueError(
                f"--target-padding is for picture files, and {name} is drawn without one"
            )
        return create_target(name, size, device=device)
    if not Path(name).is_file():
        raise ValueError(
            f"--target must be a picture file or one of {', '.join(TARGETS)}, got {name!r}"
        )
    return load_target(name, size, padding, device=device)
