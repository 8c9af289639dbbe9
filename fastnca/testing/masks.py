"""Give the tutorial's class, which draws its masks itself, the masks of `fastnca.update_mask`."""

import contextlib
from collections.abc import Iterable, Iterator
from unittest import mock

import torch
from torch import Tensor


@contextlib.contextmanager
def injected_masks(masks: Iterable[Tensor]) -> Iterator[None]:
    """Let `torch.rand_like(x) < rate` come out as the next of `masks` `[B, H, W]` bool.

    Cells that update draw 0, the others 1, so this holds for every rate in (0, 1].
    """
    waiting = iter(masks)

    def drawn(like: Tensor) -> Tensor:
        return torch.logical_not(next(waiting))[:, None].to(like.dtype)

    with mock.patch.object(torch, "rand_like", drawn):
        yield
