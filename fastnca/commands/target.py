"""The target of a run, by the name that a user gives it."""

from pathlib import Path

import torch
from torch import Tensor

from fastnca.images import load_target, load_texture
from fastnca.states import ALPHA, Size
from fastnca.targets import TARGETS, create_target
from fastnca.textures import TEXTURES, create_texture


def make_target(
    name: str, size: Size, padding: int | None, device: str, texture: bool = False
) -> Tensor:
    """Draw or read a target.

    Args:
        name: one of `TARGETS` or `TEXTURES`, or a picture file.
        size: of the grid in cells: one number for a square, or `(height, width)`.
        padding: empty cells around a picture; see `load_target`.
        device: where it is made.
        texture: True fills the grid with an opaque picture, on white where it has none.

    Returns:
        `[1, 4, H, W]`.

    Raises:
        FileFormatError: the picture cannot be read.
        ValueError: there is no such target and no such file, or a target that has no empty cells
            around it gets a padding.
    """
    drawn = name in TARGETS or name in TEXTURES
    if padding is not None and (drawn or texture):
        reason = f"{name} is drawn without one" if drawn else "a texture fills the grid"
        raise ValueError(f"--target-padding is for picture files, and {reason}")
    if name in TEXTURES:
        return create_texture(name, size, device=device)
    if name in TARGETS:
        target = create_target(name, size, device=device)
        if not texture:
            return target
        rgb = target[:, :ALPHA] + 1 - target[:, ALPHA:]
        return torch.cat([rgb, torch.ones_like(target[:, ALPHA:])], dim=1)
    if not Path(name).is_file():
        names = ", ".join((*TARGETS, *TEXTURES))
        raise ValueError(
            f"there is no picture file {name!r}, and no target of that name: there are {names}"
        )
    if texture:
        return load_texture(name, size, device=device)
    return load_target(name, size, padding, device=device)
