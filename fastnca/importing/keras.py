"""Weights out of a Keras file: HDF5 of Keras 2 and 3, and the `.keras` archive of Keras 3.

Where the variables of a layer lie:

    Keras 3, `.weights.h5`, or `model.weights.h5` within `.keras`   .../layers/conv2d/vars/0 and 1
    Keras 2, a whole model                          model_weights/conv2d/conv2d/kernel:0, bias:0
    Keras 2, weights alone                                        conv2d/conv2d/kernel:0, bias:0

The file is data that somebody else made: nothing in it is run, no other file is opened, and the
HDF5 library reads it in a process of its own, see `fastnca.importing.hdf5`.
"""

import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import zipfile

import torch
from torch import Tensor

from fastnca.importing import hdf5
from fastnca.importing.hdf5 import MAX_BYTES, FaultError

_REST = 1 << 22  # bytes of a file beside its variables
_INNER = "model.weights.h5"
_OPTIMIZERS = ("optimizer", "optimizer_weights")  # their variables have the shapes of kernels
_SECONDS = 60


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
    if importlib.util.find_spec("h5py") is None:
        raise ImportError("Keras files need h5py: pip install fastnca[keras]")
    try:
        found = _read_apart(_unpack(data))
        if not found:
            raise FaultError("it holds no floating-point variables")
    except FaultError as error:
        raise ValueError(f"cannot read the Keras file: {error}") from None
    return {name: _arrange(name, found) for name in sorted(found, key=_order)}


def _unpack(data: bytes) -> bytes:
    """Return the HDF5 file: `data`, or what lies in it if it is a `.keras` archive."""
    limit = MAX_BYTES + _REST
    if len(data) > limit:
        raise FaultError(f"it has {len(data)} bytes, at most {limit} are read")
    if not data.startswith(b"PK"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if _INNER not in archive.namelist():
                raise FaultError(f"it is an archive without {_INNER}, which Keras 3 writes")
            with archive.open(_INNER) as file:
                content = file.read(limit + 1)
    except FaultError:
        raise
    except Exception as error:  # of zipfile and of what decompresses
        raise FaultError(f"it is a damaged archive ({type(error).__name__})") from error
    if len(content) > limit:
        raise FaultError(f"{_INNER} has more than {limit} bytes")
    return content


def _read_apart(data: bytes) -> dict[str, Tensor]:
    """Return the variables of an HDF5 file as they lie in it, read in another process.

    Raises:
        FaultError: the file cannot be read, or the other process crashed, or did not end.
        ImportError: the other process finds no `h5py` that works.
    """
    command = [sys.executable, "-P", hdf5.__file__, *_OPTIMIZERS]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, env=alone)
    except subprocess.TimeoutExpired:
        raise FaultError(f"HDF5 was still reading it after {_SECONDS} seconds") from None
    if done.returncode < 0:
        raise FaultError(f"it is damaged so that HDF5 crashed (signal {-done.returncode})")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if "ImportError" in said or "ModuleNotFoundError" in said:
            raise ImportError(f"Keras files need h5py: pip install fastnca[keras] ({said})")
        raise FaultError(f"HDF5 failed on it ({said[:200]})")
    return _parse_answer(done.stdout)


def _parse_answer(answer: bytes) -> dict[str, Tensor]:
    """Return what the other process wrote, which a damaged file may have made into anything."""
    line, _, numbers = answer.partition(b"\n")
    try:
        said = json.loads(line)
        if "fault" in said:
            raise FaultError(said["fault"])
        values = torch.frombuffer(bytearray(numbers + bytes(4)), dtype=torch.float32)[:-1]
        parts = values.split([math.prod(shape) for shape in said["shapes"].values()])
        named = zip(said["shapes"].items(), parts, strict=True)
        return {name: part.reshape(shape).clone() for (name, shape), part in named}
    except FaultError:
        raise
    except Exception as error:
        raise FaultError(f"HDF5 failed on it ({type(error).__name__})") from error


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
