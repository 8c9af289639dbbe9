"""The target of a run, by the name that a user gives it."""

from pathlib import Path

from torch import Tensor

from fastnca.images import load_target
from fastnca.targets import TARGETS, create_target


def make_target(name: str, size: int, padding: int | None, device: str) -> Tensor:
    """Draw or read a target.

    Args:
        name: one of `TARGETS`, or a picture file.
        size: height and width of the grid in cells.
        padding: empty cells around a picture; see `load_target`.
        device: where it is made.

    Returns:
        `[1, 4, size, size]`.

    Raises:
        FileFormatError: the picture cannot be read.
        ValueError: there is no such target and no such file.
    """
    if name in TARGETS:
        return create_target(name, size, device=device)
    path = Path(name)
    if not path.exists():
        raise ValueError(
            f"--target must be a picture file or one of {', '.join(TARGETS)}, got {path}"
        )
    return load_target(path, size, padding, device=device)
