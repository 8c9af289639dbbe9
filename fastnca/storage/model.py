"""Models as files: the package's own directory format, and the tutorial's `.pt` state dict."""

import json
import zipfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from fastnca.states import ALPHA
from fastnca.storage.bundle import (
    BundleFormat,
    FileFormatError,
    Header,
    Shapes,
    check_tensors,
    read_field,
)

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

    Model = TypeVar("Model", bound=NeuralCA)

_MAX_CHANNELS = 1024
_MAX_HIDDEN = 8192
_MAX_PT_BYTES = 1 << 28
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def model_shapes(channels: int, hidden: int, dtype: torch.dtype) -> Shapes:
    """Return name, shape and dtype of every entry of a model's `state_dict`."""
    return {
        "perception.filters": ((3 * channels, 1, 3, 3), dtype),
        "update_net.0.weight": ((hidden, 3 * channels, 1, 1), dtype),
        "update_net.0.bias": ((hidden,), dtype),
        "update_net.2.weight": ((channels, hidden, 1, 1), dtype),
        "update_net.2.bias": ((channels,), dtype),
    }


def _expected(header: Header) -> Shapes:
    """Compute the shapes that a model's description announces."""
    if not isinstance(header.get("metadata"), dict):
        raise ValueError("field 'metadata' must be an object")
    if header.get("dtype") not in _DTYPES:
        raise ValueError(f"field 'dtype' must be one of {', '.join(_DTYPES)}")
    return model_shapes(*_sizes(header), _DTYPES[header["dtype"]])


def _sizes(header: Header) -> tuple[int, int]:
    channels = read_field(header, "num_channels", ALPHA + 1, _MAX_CHANNELS)
    return channels, read_field(header, "hidden_dim", 1, _MAX_HIDDEN)


MODEL_FORMAT = BundleFormat("fastnca-model", "config.json", "model.safetensors", _expected)


def describe_model(model: "NeuralCA") -> Header:
    """Return what `config.json` says of a model.

    Raises:
        TypeError: it is no NeuralCA, or its metadata is not JSON-serialisable.
        ValueError: its sizes or its dtype have no place in a file.
    """
    from fastnca import __version__
    from fastnca.module import NeuralCA

    if not isinstance(model, NeuralCA):
        kind = type(model)
        raise TypeError(
            f"only a fastnca.NeuralCA can be saved, got a {kind.__module__}.{kind.__qualname__}"
        )
    weight = model.update_net[0].weight
    header = {
        "fastnca_version": __version__,
        "num_channels": model.num_channels,
        "hidden_dim": model.hidden_dim,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "metadata": model.metadata,
    }
    _expected(header)
    json.dumps(header, allow_nan=False)
    return header


def save_model(model: "NeuralCA", path: str | PathLike[str]) -> None:
    """Write `model` into directory `path`; see `NeuralCA.save`."""
    header, tensors = describe_model(model), model.state_dict()
    check_tensors(Path(path), tensors, _expected(header))
    MODEL_FORMAT.write(Path(path), header, tensors)


def load_model(
    kind: "type[Model]", path: str | PathLike[str], *, backend: str, precision: str
) -> "Model":
    """Read a model of class `kind`; see `NeuralCA.load`."""
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL_FORMAT.json_name).is_file():
            raise FileNotFoundError(f"{path}: no {MODEL_FORMAT.json_name} in this directory")
        header, tensors = MODEL_FORMAT.read(path)
        sizes, metadata = _sizes(header), header["metadata"]
    elif path.is_file():
        sizes, tensors = _load_state_dict(path)
        metadata = {}
    else:
        raise FileNotFoundError(f"{path}: no such model directory or file")
    return _build(kind, sizes, tensors, metadata, {"backend": backend, "precision": precision})


def _build(
    kind: "type[Model]",
    sizes: tuple[int, int],
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    options: dict[str, str],
) -> "Model":
    """Make a model around `tensors`, without drawing the random numbers of an initialisation."""
    with torch.device("meta"):
        model = kind(*sizes, **options)  # type: ignore[arg-type]
    model.load_state_dict(tensors, strict=True, assign=True)
    model.metadata = metadata
    return model


def _load_state_dict(path: Path) -> tuple[tuple[int, int], dict[str, Tensor]]:
    """Read a `torch.save(model.state_dict())` file without executing anything from it."""
    size = path.stat().st_size
    if size > _MAX_PT_BYTES:
        raise FileFormatError(path, f"too large for a model: {size} bytes")
    _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise about a dozen types on a damaged file
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(
            path, f"not a state dict that can be read safely ({fault})"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise FileFormatError(path, "not a state dict: expected a dict of tensors")
    return _infer_sizes(path, loaded), dict(loaded)


def _check_archive(path: Path) -> None:
    """Refuse a file that is not an intact zip archive of bounded size."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_PT_BYTES:
                raise FileFormatError(path, "too large for a model once unpacked")
            damaged = archive.testzip()
    except FileFormatError:
        raise
    except Exception as error:  # zipfile raises BadZipFile, NotImplementedError, zlib.error, ...
        raise FileFormatError(
            path, f"neither a model directory nor a torch.save file ({error})"
        ) from error
    if damaged is not None:
        raise FileFormatError(path, f"damaged: the checksum of {damaged} does not fit")


def _infer_sizes(path: Path, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Derive channels and hidden width from the shapes, and check every tensor against them."""
    last = tensors.get("update_net.2.weight")
    if last is None or last.dim() != 4 or last.layout != torch.strided:
        raise FileFormatError(path, "no 'update_net.2.weight' of a NeuralCA among its tensors")
    channels, hidden = last.shape[0], last.shape[1]
    if last.dtype not in _DTYPES.values():
        raise FileFormatError(path, f"weights must be float32 or float64, got {last.dtype}")
    if not (ALPHA < channels <= _MAX_CHANNELS and 1 <= hidden <= _MAX_HIDDEN):
        raise FileFormatError(path, f"{channels} channels, {hidden} hidden units: out of range")
    check_tensors(path, tensors, model_shapes(channels, hidden, last.dtype))
    return channels, hidden
