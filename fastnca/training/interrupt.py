"""Finish the iteration when someone asks the process to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether, and by which signal, the process was asked to stop.

    Attributes:
        signal_number: the signal, or None while nobody asked.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def by_keyboard(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.signal_number == signal.SIGINT

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt  # asked twice: now
        self.signal_number = number


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM instead of dying of it; the second one interrupts at once.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        number: signal.signal(number, request._receive)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
