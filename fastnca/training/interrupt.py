"""Finish the iteration when someone asks the process to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopNow(KeyboardInterrupt):
    """The process was asked to stop a second time, and leaves everything as it is."""


class StopRequest:
    """Whether, and by which signal, the process was asked to stop.

    Attributes:
        signal_number: the signal, or None while nobody asked.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def obey(self) -> None:
        """Leave, as the signal would have made the process leave.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            SystemExit: 128 and the number of the signal; of SIGTERM if it was another process
                that was asked.
        """
        if self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal_number or signal.SIGTERM))

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise StopNow
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
