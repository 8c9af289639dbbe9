"""The floating-point datasets of an HDF5 file that somebody else made.

The HDF5 library is written in C, and releases of it before 2.0 crash on damaged files. So this
module is a program as well, which needs neither torch nor this package:

    python hdf5.py < FILE

writes a line of JSON, either `{"shapes": {path: shape}}` or `{"fault": sentence}`, and after the
first the numbers of all datasets in that order as little-endian float32. `fastnca.importing.keras`
runs it: a crash, a hang and a bomb end this process and not the caller's.

Only hard links to plain datasets are followed, so that no other file is opened. Datasets in chunks
are refused: only they can be compressed, so that a few bytes become gigabytes.
"""

import io
import json
import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 26
"""The most bytes of all datasets together, as float32."""

Arrays = dict[str, NDArray[np.float32]]

_MEMORY = 1 << 30  # bytes beyond what the program needs for itself
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 32
_MAX_RANK = 8


class FaultError(ValueError):
    """What is wrong with a file, in a sentence."""


def read_datasets(data: bytes, skip: tuple[str, ...] = ()) -> Arrays:
    """Read all datasets of floating-point numbers, in this process.

    Args:
        data: content of the file.
        skip: paths that are left out, with what lies below.

    Returns:
        Each as float32 by its path, without a slash in front.

    Raises:
        FaultError: the file is damaged, refers to other files or has too much in it.
        ImportError: there is no `h5py`.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return _collect(h5py, file, skip)
    except FaultError:
        raise
    except Exception as error:  # of h5py and of HDF5
        kind = type(error).__name__
        raise FaultError(f"it is no HDF5 file, or a damaged one ({kind})") from error


def _collect(h5py: ModuleType, file: Any, skip: tuple[str, ...]) -> Arrays:
    """Walk through the groups of a file."""
    found: Arrays = {}
    seen: set[object] = set()
    left, links, waiting = MAX_BYTES, 0, [("", file)]
    while waiting:
        path, group = waiting.pop()
        if path.count("/") >= _MAX_DEPTH:
            raise FaultError(f"its groups lie more than {_MAX_DEPTH} deep")
        links += len(group)
        if links > _MAX_OBJECTS:
            raise FaultError(f"it has more than {_MAX_OBJECTS} groups and datasets")
        for name in group:
            place = f"{path}/{name}".lstrip("/")
            if place in skip:
                continue
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise FaultError(f"{_quote(place)} is a link to elsewhere, which is not followed")
            child = group[name]
            info = h5py.h5o.get_info(child.id)
            if (key := (info.fileno, info.addr)) in seen:
                raise FaultError(f"{_quote(place)} is there under a second name")
            seen.add(key)
            if isinstance(child, h5py.Group):
                waiting.append((place, child))
            elif isinstance(child, h5py.Dataset) and child.dtype.kind == "f":
                left -= 4 * _check_dataset(h5py, place, child)
                if left < 0:
                    raise FaultError(f"its numbers take more than {MAX_BYTES >> 20} MiB")
                with np.errstate(all="ignore"):
                    found[place] = np.asarray(child[()]).astype("<f4")
    return found


def _check_dataset(h5py: ModuleType, place: str, dataset: Any) -> int:
    """Return how many numbers a dataset has, all of which lie in the file.

    Raises:
        FaultError: they lie elsewhere, may be compressed, are too wide, or have no shape.
    """
    made = dataset.id.get_create_plist()
    if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
        raise FaultError(f"{_quote(place)} lies in another file, which is not read")
    if made.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or made.get_nfilters():
        raise FaultError(
            f"{_quote(place)} is in chunks or compressed, which Keras does not write; "
            "h5repack -f NONE -l CONTI makes it plain"
        )
    if dataset.shape is None or len(dataset.shape) > _MAX_RANK:
        raise FaultError(f"{_quote(place)} has no shape of at most {_MAX_RANK} sides")
    width = dataset.dtype.itemsize
    if width > 8:
        raise FaultError(f"{_quote(place)} holds numbers of more than 64 bits")
    count: int = math.prod(dataset.shape)
    stored = dataset.id.get_storage_size()
    if stored != count * width:
        raise FaultError(f"{_quote(place)} has {stored} bytes where its shape has {count * width}")
    return count


def _limit_memory() -> None:
    """Let this process take `_MEMORY` more than it has, where the system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, now + _MEMORY))
    except (ImportError, OSError, ValueError):
        return


def _main(skip: tuple[str, ...]) -> None:
    """Be the program."""
    import h5py  # noqa: F401 - before the limit counts

    _limit_memory()
    try:
        arrays = read_datasets(sys.stdin.buffer.read(), skip)
    except FaultError as error:
        sys.stdout.write(json.dumps({"fault": str(error)}) + "\n")
        return
    shapes = {name: array.shape for name, array in arrays.items()}
    sys.stdout.buffer.write(json.dumps({"shapes": shapes}).encode() + b"\n")
    for array in arrays.values():
        sys.stdout.buffer.write(array.tobytes())


def _quote(name: str) -> str:
    """Return the beginning of a path of the file, as a message shows it."""
    return repr(name[:60])


if __name__ == "__main__":
    _main(tuple(sys.argv[1:]))
