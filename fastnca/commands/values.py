"""Values of options: text that a user types, checked and read; what is wrong is one sentence."""

import argparse

from fastnca.states import Size
from fastnca.storage.bundle import LARGEST_SIDE

CELLS = "cells: 64, or HEIGHTxWIDTH such as 40x72"

_MOST = 2**31 - 1


def as_count(text: str) -> int:
    """Read a whole number, at least 0."""
    return _whole(text, 0)


def as_positive(text: str) -> int:
    """Read a whole number, at least 1."""
    return _whole(text, 1)


def as_port(text: str) -> int:
    """Read the number of a port; 0 takes one that is free."""
    return _whole(text, 0, 2**16 - 1)


def as_size(text: str) -> Size:
    """Read the size of a grid in cells: one number, or height and width."""
    sides = text.split("x")
    if len(sides) > 2 or not all(sides):
        raise argparse.ArgumentTypeError(f"must be {CELLS}, got {text!r}")
    height, width = (_whole(side, 1, LARGEST_SIDE) for side in (sides[0], sides[-1]))
    return height if height == width else (height, width)


def _whole(text: str, least: int, most: int = _MOST) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise argparse.ArgumentTypeError(f"must be {bound}, got {text}")
    return value


def as_length(text: str) -> float:
    """Read a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def as_device(text: str) -> str:
    """Read the name of a device that computes here; "auto" is a GPU if there is one."""
    import torch

    from fastnca.distributed import local_device

    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    text = local_device(text)
    try:
        torch.zeros((), device=torch.device(text)).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:
        fault = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use device {text!r}: {fault}") from error
    return text
