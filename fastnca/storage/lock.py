"""A lock on a directory, held by one process at a time and given back when it dies."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOCK_NAME = ".lock"


class DirectoryInUseError(OSError):
    """Another process works in the directory."""


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`; it ends with the block, or with the process.

    The lock belongs to an open file, so a file that a killed process left behind locks nobody
    out. Its content is the holder's process number, for the message.

    Raises:
        DirectoryInUseError: another process holds it.
        OSError: the directory cannot be written to.
    """
    path = directory / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _take(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise DirectoryInUseError(
                f"{directory}: process {holder} trains in this directory; wait for it or choose "
                "another directory"
            ) from error
        os.ftruncate(descriptor, 0)
        try:
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, 64, os.SEEK_SET)  # beyond the number, so that others can read it
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
