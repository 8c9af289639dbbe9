"""State dicts in the files that `torch.save` and safetensors write, with the wrappings of training.

Three containers are read: the zip archive of `torch.save`, its format before torch 1.6 (legacy),
and safetensors. Only the zip archive has checksums.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from fastnca.storage.bundle import FileFormatError, read_limited

LAST_WEIGHT = "update_net.2.weight"
"""The entry that tells a model: its name ends a prefix, its shape holds both sizes."""

_MAX_BYTES = 1 << 28
_CURE = "torch.save(model.state_dict(), path)"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict of the one model in a file, without executing anything from it.

    The state dict may be an entry of a checkpoint's dictionary, and its names may share a prefix
    (`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile, or any other).

    Args:
        path: file of `torch.save` or safetensors, at most 256 MiB.

    Returns:
        The tensors by their names without prefix, dense and on the CPU, `LAST_WEIGHT` among them.

    Raises:
        FileFormatError: the file is damaged, holds no model or several, or more than tensors.
    """
    entries, prefix = _find_model(path, _read(path))
    if prefix.startswith("module."):  # torch.optim.swa_utils.AveragedModel counts beside its module
        entries = {name: value for name, value in entries.items() if name != "n_averaged"}
    tensors, others = {}, []
    for name, value in entries.items():
        if isinstance(name, str) and name.startswith(prefix) and _is_dense(value):
            tensors[name.removeprefix(prefix)] = value
        else:
            others.append(name)
    if others:
        raise FileFormatError(
            path,
            f"beside '{prefix}{LAST_WEIGHT}' only dense tensors of the same model may stand, got "
            f"{_quote(others)}; save the model alone with {_CURE}",
        )
    return tensors


def _find_model(path: Path, loaded: object) -> tuple[dict[Any, Any], str]:
    """Find the dictionary with the model's weights, and the prefix of their names."""
    if not isinstance(loaded, dict):
        raise FileFormatError(path, f"not a state dict but a {type(loaded).__name__}; use {_CURE}")
    inner = [(name, value) for name, value in loaded.items() if isinstance(value, dict)]
    found = [
        (f"{place}: {name}" if place else name, entries, name.removesuffix(LAST_WEIGHT))
        for place, entries in [("", loaded), *inner]
        for name in entries
        if isinstance(name, str) and f".{name}".endswith(f".{LAST_WEIGHT}")
    ]
    if not found:
        raise FileFormatError(
            path,
            f"no '{LAST_WEIGHT}' of a NeuralCA among its entries {_quote(loaded)}; save the "
            f"model's weights with {_CURE}, or read a model of another program with "
            "`fastnca import`",
        )
    if len(found) > 1:
        raise FileFormatError(
            path,
            f"holds several models, {_quote(name for name, _, _ in found)}; save one of them "
            f"alone with {_CURE}",
        )
    [(_, entries, prefix)] = found
    return entries, prefix


def _quote(names: Iterable[object]) -> str:
    """List the first names that a file gives to its entries, shortened."""
    quoted = [repr(name[:60]) if isinstance(name, str) else type(name).__name__ for name in names]
    return ", ".join(quoted[:6]) + (", ..." if len(quoted) > 6 else "")


def _is_dense(value: object) -> TypeGuard[Tensor]:
    """Tell a tensor with ordinary storage from sparse, nested and meta tensors, and all else."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
    )


def _read(path: Path) -> object:
    """Decode a file by the format that its first bytes show."""
    data = read_limited(path, _MAX_BYTES)
    try:
        if data[8:9] == b"{":  # after the length of a safetensors header
            return load_safetensors(data)
        if data.startswith(b"PK\3\4"):
            _check_archive(path, data)
            return _load(data, "cpu")
        return _read_legacy(data)
    except FileFormatError:
        raise
    except Exception as error:  # torch and pickle raise about a dozen types on a damaged file
        if unknown := re.search(r"GLOBAL (\S+)", str(error)):
            raise FileFormatError(
                path,
                f"holds a pickled {unknown[1]}, and nothing but tensors is unpickled because that "
                f"would run code; load it with the program that saved it, and use {_CURE}",
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        fault = reason.partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise FileFormatError(
            path,
            f"damaged, or neither a torch.save file of tensors nor a safetensors file ({fault}); "
            f"save it again with {_CURE}",
        ) from error


def _read_legacy(data: bytes) -> object:
    """Decode a file of `torch.save` before torch 1.6; no storages larger than the file are kept."""
    room = len(data)

    def place(storage: Any, location: str) -> Any:
        nonlocal room
        room -= storage.nbytes()
        if room < 0:  # the memory is reserved but not touched yet
            raise ValueError("its tensors claim more bytes than the file has")
        return storage.fill_(0xFF)  # NaN, should the file have no content for it

    return _load(data, place)


def _load(data: bytes, place: Any) -> object:
    """Unpickle tensors without what torch would say of odd ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), map_location=place, weights_only=True)


def _check_archive(path: Path, data: bytes) -> None:
    """Refuse an archive that is not intact or of unbounded size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
            raise FileFormatError(path, "too large for a model once unpacked")
        damaged = archive.testzip()
    if damaged is not None:
        raise FileFormatError(path, f"damaged: the checksum of {damaged} does not fit")
