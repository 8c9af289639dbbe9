"""How many threads the compiled functions take, and who else runs beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

reserved: ContextVar[int | None] = ContextVar("reserved", default=None)
"""How many threads are left to the compiled functions; None where torch's are theirs."""


def thread_count() -> int:
    """Return how many threads a call of the compiled functions takes."""
    return reserved.get() or torch.get_num_threads()


@contextmanager
def reserved_threads() -> Iterator[None]:
    """Leave torch's threads to the compiled functions, and one to torch's operators.

    After an operator on several threads, OpenMP's threads spin for milliseconds in case there is
    more to do, and take cores from a rollout that follows.
    """
    threads = torch.get_num_threads()
    token = reserved.set(thread_count())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        reserved.reset(token)
