"""Large tensors in safetensors files, written and read piece by piece.

The format (safetensors' README): the header's length as 8 bytes, little-endian; the header, JSON
with dtype, shape and offsets of each tensor, padded with spaces to 8 bytes; the tensors, without
gaps.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastnca.storage.bundle import FileFormatError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_PIECE = 1 << 26  # bytes copied to the host at once


def encode_tensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Encode tensors as a safetensors file, without a copy of a whole tensor.

    Args:
        tensors: on any device; read when their piece is asked for.

    Yields:
        Consecutive pieces of the file.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.itemsize
        facts = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**facts, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().view(-1)
        step = max(1, _PIECE // flat.itemsize)
        for start in range(0, len(flat), step):
            yield flat[start : start + step].cpu().view(torch.uint8).numpy().data


def read_rows(path: Path, name: str, first: int, target: Tensor) -> None:
    """Read rows of one tensor of a safetensors file into `target`, piece by piece.

    Args:
        path: the file.
        name: the tensor, `[n, ...]`.
        first: number of its first row that is wanted.
        target: `[k, ...]`, filled with rows `first` to `first + k - 1`.

    Raises:
        FileFormatError: there is no such tensor, or not of this shape and dtype.
    """
    try:
        with safe_open(path, "pt") as file:
            rows = file.get_slice(name)
            shape, dtype = list(rows.get_shape()), rows.get_dtype()
            if (
                shape[1:] != list(target.shape[1:])
                or shape[0] < first + len(target)
                or dtype != _NAMES[target.dtype]
            ):
                raise FileFormatError(
                    path,
                    f"tensor '{name}' must hold {target.dtype} "
                    f"{[first + len(target), *target.shape[1:]]}, got {dtype} {shape}",
                )
            step = max(1, _PIECE // max(1, target[:1].numel() * target.itemsize))
            for start in range(0, len(target), step):
                stop = min(start + step, len(target))
                target[start:stop] = rows[first + start : first + stop]
    except (SafetensorError, KeyError) as error:
        raise FileFormatError(path, f"not a safetensors file with '{name}' ({error})") from error
