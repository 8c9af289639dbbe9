"""A bundle: a JSON file that describes, and a safetensors file that holds the tensors.

The JSON file carries the SHA-256 of the tensor file and of itself. It is replaced first and
remembers its predecessor, so between the two renames the old tensors still load, by the old
description; after the second rename the new ones do. A file that was changed in any other way
is refused.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from fastnca.storage.atomic import write_atomically

FORMAT_VERSION = 2
LARGEST_SIDE = 1 << 16
"""Height and width of a grid, in cells, are at most so large in files and on the command line."""

_READABLE = (1, 2)  # the first has no rules
MAX_JSON_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of the safetensors file, beyond the tensors themselves

Header = dict[str, Any]
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class FileFormatError(ValueError):
    """A file is damaged, or not what it was opened as; the message names the file and the fault."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path}: {fault}")
        self.path = path
        self.fault = fault


@dataclass(frozen=True)
class BundleFormat:
    """Names and meaning of one kind of bundle.

    Attributes:
        kind: what the JSON file must say it is.
        json_name: name of the JSON file.
        tensors_name: name of the safetensors file.
        expected: computes the shapes and dtypes of all tensors from a header, before any is read;
            raises ValueError with the fault if the header is not acceptable.
    """

    kind: str
    json_name: str
    tensors_name: str
    expected: Callable[[Header], Shapes]

    def write(self, directory: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Write a bundle into `directory`, which is made if missing.

        Args:
            directory: where the two files go.
            header: JSON-serialisable description.
            tensors: what `expected(header)` announces.

        Raises:
            OSError: a file cannot be written.
            TypeError: the header is not JSON-serialisable.
        """
        data = save_safetensors(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        )
        description = {
            "format": self.kind,
            "format_version": FORMAT_VERSION,
            **header,
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
            "previous": self._previous(directory),
        }
        description["sha256"] = digest_header(description)
        text = json.dumps(description, indent=2, allow_nan=False) + "\n"
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / self.json_name, text.encode())
        write_atomically(directory / self.tensors_name, data)

    def read(self, directory: Path) -> tuple[Header, dict[str, Tensor]]:
        """Read a bundle; nothing is allocated before sizes and the header's checksum fit.

        Returns:
            The header and the tensors, on the CPU.

        Raises:
            FileFormatError: one of the files is damaged or of another kind.
            FileNotFoundError: one of the files is missing.
        """
        header = self._read_header(directory)
        path = directory / self.tensors_name
        candidates = [header]
        if isinstance(header["previous"], dict):
            candidates.append(header["previous"])
        shapes = [self._expected(directory, candidate) for candidate in candidates]
        data = read_limited(path, max(map(tensor_bytes, shapes)) + MAX_HEADER_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        for candidate, expected in zip(candidates, shapes, strict=True):
            if candidate.get("tensors_sha256") == digest:
                return candidate, parse_tensors(path, data, expected)
        raise FileFormatError(
            path, f"its SHA-256 is not the one in {self.json_name}; the file was changed or damaged"
        )

    def _read_header(self, directory: Path) -> Header:
        """Read and verify the JSON file."""
        path = directory / self.json_name
        try:
            header = json.loads(read_limited(path, MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(path, f"not a JSON file ({error})") from error
        if not isinstance(header, dict) or header.get("format") != self.kind:
            raise FileFormatError(path, f"not a {self.kind} description")
        version = header.get("format_version")
        if version not in _READABLE:
            raise FileFormatError(
                path,
                f"format version {version}, this fastnca reads versions 1 to {FORMAT_VERSION}; "
                "install the fastnca that wrote it",
            )
        if header.get("sha256") != digest_header(header):
            raise FileFormatError(path, "its SHA-256 does not fit; the file was changed or damaged")
        return header

    def _expected(self, directory: Path, header: Header) -> Shapes:
        try:
            return self.expected(header)
        except (ValueError, TypeError, KeyError) as error:
            raise FileFormatError(directory / self.json_name, str(error)) from error

    def _previous(self, directory: Path) -> Header | None:
        """Return the description of the intact bundle that is about to be replaced, if any."""
        try:
            header = self.read(directory)[0]
        except (OSError, FileFormatError):
            return None
        return {key: value for key, value in header.items() if key not in ("previous", "sha256")}


def read_field(header: Header, name: str, low: int, high: int) -> int:
    """Return the integer field `name` of a header.

    Raises:
        ValueError: it is missing, not an integer or not in [low, high].
    """
    value = header.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"field '{name}' must be an integer from {low} to {high}, got {value!r}")
    return value


def read_size(header: Header, name: str = "size") -> tuple[int, int]:
    """Return height and width of a grid: field `name`, one number for both or a list of two.

    Raises:
        ValueError: it is missing or something else, or a side is not in [1, `LARGEST_SIDE`].
    """
    value = header.get(name)
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    match sides:
        case [int(height), int(width)] if all(
            not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE for side in (height, width)
        ):
            return height, width
    raise ValueError(
        f"field '{name}' must be an integer from 1 to {LARGEST_SIDE}, or two of them as "
        f"[height, width], got {value!r}"
    )


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Shapes) -> None:
    """Compare names, shapes and dtypes, and refuse values that are not finite.

    Raises:
        FileFormatError: something differs; the message says what.
    """
    if missing := sorted(expected.keys() - tensors.keys()):
        raise FileFormatError(path, f"tensors are missing: {', '.join(missing)}")
    if unknown := sorted(str(name) for name in tensors.keys() - expected.keys()):
        raise FileFormatError(path, f"unknown tensors: {', '.join(unknown[:5])}")
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise FileFormatError(
                path,
                f"tensor '{name}' must be {dtype} {list(shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}",
            )
        if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(path, f"tensor '{name}' holds NaN or infinite values")


def digest_header(header: Header) -> str:
    """Return the SHA-256 of a header without its own checksum, independent of white space."""
    content = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tensor_bytes(shapes: Shapes) -> int:
    """Return the bytes of all tensors together."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


def read_limited(path: Path, limit: int) -> bytes:
    """Read a file.

    Raises:
        FileFormatError: it is longer than `limit` bytes.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > limit:
        raise FileFormatError(path, f"too large: {size} bytes where at most {limit} can be right")
    with path.open("rb") as file:
        return file.read(limit + 1)


def parse_tensors(path: Path, data: bytes, expected: Shapes) -> dict[str, Tensor]:
    """Decode the content of safetensors file `path`.

    Raises:
        FileFormatError: it holds something else than `expected`.
    """
    try:
        tensors: dict[str, Tensor] = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(path, f"not a safetensors file ({error})") from error
    check_tensors(path, tensors, expected)
    return tensors
