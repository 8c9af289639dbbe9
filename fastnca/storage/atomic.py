"""Durable files: a crash, at any moment, leaves the old file or the new one."""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class FileEntry:
    """What a file must be.

    Attributes:
        size: bytes.
        sha256: hexadecimal digest.
    """

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write a new file and wait until the disk has it.

    Its mode follows the umask; an existing file or symbolic link is refused.

    Args:
        path: the file; its directory must exist.
        chunks: the content, piece by piece.

    Raises:
        OSError: writing failed; a part of the file may be there.
    """
    size, digest = 0, hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            size += len(view)
            digest.update(view)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileEntry(size, digest.hexdigest())


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: temporary file beside it, fsync, rename, fsync of the directory.

    The file's mode follows the umask. Temporary files that killed writers of the same path left
    behind more than an hour ago are removed.

    Args:
        path: the file; its directory must exist.
        data: the whole content.

    Raises:
        OSError: writing failed; `path` is untouched.
    """
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write_file(temporary, [data])
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable, where the system can open directories."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove old temporary files of `path`."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _STALE_SECONDS:
                temporary.unlink()
