"""Give the tutorial's class, which draws its masks itself, the masks of `fastnca.update_mask`."""

import contextlib
from collections.abc import Iterable, Iterator
from unittest import mock

import torch
from torch import Tensor


@contextlib.contextmanager
def injected_masks(masks: Iterable[Tensor]) -> Iterator[None]:
    """Let `torch.rand_like(x) < rate` come out as the next of `masks`, in this block.

    Cells that update draw 0, the others 1, so this holds for every rate in (0, 1].

    Args:
        masks: for each step, which cells update, `[B, H, W]` bool, as from
            `fastnca.masks.update_masks`.
            `x` must be `[B, 1, H, W]`.

    Raises:
        RuntimeError: more masks are drawn than were given.
        ValueError: random numbers of another shape are drawn.
    """
    waiting = iter(masks)

    def drawn(like: Tensor) -> Tensor:
        mask = next(waiting, None)
        if mask is None:
            raise RuntimeError("more masks are drawn than were given")
        if mask[:, None].shape != like.shape:
            raise ValueError(
                f"the next mask is for {list(mask[:, None].shape)}, and {list(like.shape)} is drawn"
            )
        return torch.logical_not(mask)[:, None].to(like.dtype)

    with mock.patch.object(torch, "rand_like", drawn):
        yield
