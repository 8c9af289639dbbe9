"""Checks of what a user hands in: one sentence with expected, got, and what to do."""

from torch import Tensor

MOST_WEIGHT = 1e6
"""Active cells are exact while each parameter's Euclidean norm is below this."""


class OutOfRangeError(ArithmeticError):
    """A value is not finite, or so large that a step could overflow.

    There 0·∞ = NaN spreads through cells that are masked out or dead, which active cells do not
    see; the reference operators must be used.
    """


def check_state(state: Tensor, num_channels: int, like: Tensor) -> None:
    """Check a state against a model.

    Args:
        state: what was passed as state.
        num_channels: channels of the model.
        like: a parameter of the model.

    Raises:
        TypeError: the state is not a floating-point tensor, or not of the parameters' dtype.
        ValueError: rank, channel count, grid or device do not fit.
    """
    if not isinstance(state, Tensor):
        raise TypeError(f"state must be a torch.Tensor, got {type(state).__name__}")
    shape = state.shape
    if len(shape) != 4:
        raise ValueError(
            f"state must have shape [batch, {num_channels}, height, width], got "
            f"{list(shape)}; add a batch axis with state[None] if it is a single state"
        )
    _, channels, height, width = shape
    if channels != num_channels:
        raise ValueError(
            f"state must have {num_channels} channels to match the model, got {channels}"
        )
    if height == 0 or width == 0:
        raise ValueError(f"the grid must have at least one cell, got {list(shape[2:])}")
    if state.device != like.device:
        raise ValueError(
            f"state is on {state.device} and the model on {like.device}; move one with .to()"
        )
    if state.dtype != like.dtype:
        raise TypeError(
            f"state is {state.dtype} and the model {like.dtype}; convert one with .to()"
        )


def check_count(value: int, name: str, least: int = 0) -> int:
    """Return `value`.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value
