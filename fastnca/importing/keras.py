"""Weights out of a Keras file: HDF5 of Keras 2 and 3, and the `.keras` archive of Keras 3.

Where the variables of a layer lie:

    Keras 3, `.weights.h5`, or `model.weights.h5` within `.keras`   .../layers/conv2d/vars/0 and 1
    Keras 2, a whole model                          model_weights/conv2d/conv2d/kernel:0, bias:0
    Keras 2, weights alone                                        conv2d/conv2d/kernel:0, bias:0

The file is data that somebody else made: nothing in it is run, and no other file is opened. Only
hard links to plain datasets are followed. Datasets in chunks, which Keras does not write, are
refused: only they can be compressed, so that a few bytes become gigabytes.
"""

import io
import math
import zipfile
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 1 << 26
"""The most bytes of all variables together, as float32."""

_REST = 1 << 22  # bytes of a file beside its variables
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 32
_MAX_RANK = 8
_INNER = "model.weights.h5"
_OPTIMIZERS = ("optimizer", "optimizer_weights")  # their variables have the shapes of kernels


class _FaultError(ValueError):
    """What is wrong with a file, in a sentence."""


def read_keras(data: bytes) -> dict[str, Tensor]:
    """Read all floating-point variables of a Keras model.

    Args:
        data: content of the file.

    Returns:
        Each variable as float32 by its path in the file, those of the optimizer left out, in the
        order of names in which numbers count: kernels of convolutions `(kh, kw, in, out)` as
        `[out, in, kh, kw]`; of depthwise ones `(kh, kw, C, K)` as `[C*K, 1, kh, kw]`, filter k of
        channel c being `c*K + k`; of dense layers `(in, out)` as `[out, in]`; others as they are.
        A kernel larger than 1x1 is a depthwise one where its path or the length of its bias says
        so and, where neither says anything, if K is less than C.

    Raises:
        ImportError: there is no `h5py`.
        ValueError: it is no such file, is damaged, refers to other files, has more than 64 MiB of
            variables, or none.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Keras files need h5py: pip install fastnca[keras] ({error})") from error
    try:
        content = _unpack(data)
        with h5py.File(io.BytesIO(content), "r") as file:
            found = _collect(h5py, file)
        if not found:
            raise _FaultError("it holds no floating-point variables")
        return {name: _arrange(name, found) for name in sorted(found, key=_order)}
    except _FaultError as error:
        raise ValueError(f"cannot read the Keras file: {error}") from None
    except Exception as error:  # of h5py, HDF5, zipfile and zlib
        raise ValueError(f"not a Keras file, or a damaged one ({type(error).__name__})") from error


def _unpack(data: bytes) -> bytes:
    """Return the HDF5 file: `data`, or what lies in it if it is a `.keras` archive."""
    limit = MAX_BYTES + _REST
    if len(data) > limit:
        raise _FaultError(f"it has {len(data)} bytes, at most {limit} are read")
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _INNER not in archive.namelist():
            raise _FaultError(f"it is an archive without {_INNER}, which Keras 3 writes")
        with archive.open(_INNER) as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise _FaultError(f"{_INNER} has more than {limit} bytes")
    return content


def _collect(h5py: ModuleType, file: Any) -> dict[str, Tensor]:
    """Return the variables of an HDF5 file as they lie in it."""
    found: dict[str, Tensor] = {}
    seen: set[object] = set()
    left = MAX_BYTES
    waiting = [("", file)]
    links = 0
    while waiting:
        path, group = waiting.pop()
        if path.count("/") >= _MAX_DEPTH:
            raise _FaultError(f"its groups lie more than {_MAX_DEPTH} deep")
        for name in _names(h5py, group):
            links += 1
            if links > _MAX_OBJECTS:
                raise _FaultError(f"it has more than {_MAX_OBJECTS} groups and variables")
            place = f"{path}/{name}".lstrip("/")
            if place in _OPTIMIZERS:
                continue
            child = group[name]
            info = h5py.h5o.get_info(child.id)
            if (key := (info.fileno, info.addr)) in seen:
                raise _FaultError(f"{_quote(place)} is there under a second name")
            seen.add(key)
            if isinstance(child, h5py.Group):
                waiting.append((place, child))
            elif isinstance(child, h5py.Dataset) and child.dtype.kind == "f":
                left -= 4 * _check_dataset(h5py, place, child)
                if left < 0:
                    raise _FaultError(f"its variables take more than {MAX_BYTES >> 20} MiB")
                found[place] = _read(child)
    return found


def _names(h5py: ModuleType, group: Any) -> list[str]:
    """Return the names in a group, whose links are all hard ones."""
    count = len(group)
    if count > _MAX_OBJECTS:
        raise _FaultError(f"it has more than {_MAX_OBJECTS} groups and variables")
    names = []
    for name in group:
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise _FaultError(f"{_quote(name)} is a link to elsewhere, which is not followed")
        names.append(name)
    return names


def _check_dataset(h5py: ModuleType, place: str, dataset: Any) -> int:
    """Return how many numbers a dataset has, all of which lie in the file.

    Raises:
        ValueError: they lie elsewhere, are compressed, or have no shape.
    """
    made = dataset.id.get_create_plist()
    if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
        raise _FaultError(f"{_quote(place)} lies in another file, which is not read")
    if made.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or made.get_nfilters():
        raise _FaultError(
            f"{_quote(place)} is in chunks or compressed, which Keras does not write; "
            "h5repack -f NONE -l CONTI makes it plain"
        )
    if dataset.shape is None or len(dataset.shape) > _MAX_RANK:
        raise _FaultError(f"{_quote(place)} has no shape of at most {_MAX_RANK} sides")
    if dataset.dtype.itemsize > 8:
        raise _FaultError(f"{_quote(place)} holds numbers of more than 64 bits")
    count: int = math.prod(dataset.shape)
    stored = dataset.id.get_storage_size()
    if stored != count * dataset.dtype.itemsize:
        raise _FaultError(f"{_quote(place)} has {stored} bytes where its shape has another number")
    return count


def _read(dataset: Any) -> Tensor:
    """Return the numbers of a checked dataset as float32."""
    values = np.asarray(dataset[()])
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="))).to(torch.float32)


def _arrange(name: str, found: dict[str, Tensor]) -> Tensor:
    """Return a variable as torch has it."""
    value = found[name]
    if value.dim() == 2:
        return value.T.contiguous()
    if value.dim() != 4:
        return value
    height, width, inputs, outputs = value.shape
    if (height, width) != (1, 1) and _is_depthwise(name, found):
        return value.permute(2, 3, 0, 1).reshape(inputs * outputs, 1, height, width).contiguous()
    return value.permute(3, 2, 0, 1).contiguous()


def _is_depthwise(name: str, found: dict[str, Tensor]) -> bool:
    """Tell whether a kernel `(kh, kw, C, K)` has filters of single channels."""
    if "depthwise" in name.lower() or "separable" in name.lower():
        return True
    if any(_order(part)[0][2] == "conv2d" for part in name.split("/")):
        return False
    inputs, outputs = found[name].shape[2:]
    layer = name.rpartition("/")[0]
    biases = [
        each.shape[0]
        for other, each in found.items()
        if other.rpartition("/")[0] == layer and each.dim() == 1
    ]
    if inputs * outputs in biases and outputs not in biases:
        return True
    return outputs not in biases and outputs < inputs


def _order(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts `conv2d_10` behind `conv2d_9`, and `conv2d` before both."""
    key: list[tuple[int, int, str]] = []
    for part in name.split("/"):
        stem, _, number = part.rpartition("_")
        if stem and number.isascii() and number.isdigit():
            key += [(1, 0, stem), (0, int(number[:18]) + 1, "")]
        elif part.isascii() and part.isdigit():
            key += [(0, int(part[:18]), ""), (0, 0, "")]
        else:
            key += [(1, 0, part), (0, 0, "")]
    return key


def _quote(name: str) -> str:
    """Return the beginning of a name of the file, as a message shows it."""
    return repr(str(name)[:60])
