"""Files and archives: which format they have, and the networks in them."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastnca.importing.json_files import read_json
from fastnca.importing.keras import read_keras
from fastnca.importing.network import Network, NoModelError, find_network
from fastnca.importing.onnx import read_onnx
from fastnca.importing.tensorflow import read_checkpoint, read_shard
from fastnca.importing.torch_files import MAX_BYTES, read_torch

_MAX_MEMBERS = 1000
_SHARD = re.compile(r"(.*)\.data-(\d{5})-of-(\d{5})")
_SUFFIXES = (".json", ".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".h5", ".keras", ".onnx")

Siblings = dict[str, bytes]
"""Files that lie together, by name: the others are read where one alone does not say all."""


def read_file(path: Path, data: bytes) -> dict[str, Network]:
    """Read the networks of a file, or of the files in a zip archive.

    Args:
        path: where the file lies; its neighbours are read where a checkpoint consists of several.
        data: its content.

    Returns:
        Networks by name; a network that is alone has the name "".

    Raises:
        NoModelError: no format fits, the file is damaged, or holds no model.
    """
    if _is_archive(data):
        return _read_archive(data)
    found = _SHARD.fullmatch(path.name) or re.fullmatch(r"(.*)\.index", path.name)
    siblings = {path.name: data}
    if found:
        for each in sorted(path.parent.glob("*"))[:_MAX_MEMBERS]:
            if each.name.startswith(found[1] + ".") and each.is_file():
                if each.stat().st_size + sum(map(len, siblings.values())) > MAX_BYTES:
                    raise NoModelError(f"with {each.name} it is too large for a model")
                siblings[each.name] = each.read_bytes()
    return _read_one(path.name, data, siblings)


def _is_archive(data: bytes) -> bool:
    """Tell an archive of files from a model whose format is a zip archive."""
    if not data.startswith(b"PK\3\4"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile raises half a dozen types on a damaged archive
        raise NoModelError(f"a damaged zip archive ({error})") from error
    return not any(name.endswith(("data.pkl", "model.weights.h5")) for name in names)


def _read_archive(data: bytes) -> dict[str, Network]:
    """Read every model of an archive; a format that several of its files hold counts once."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > _MAX_MEMBERS or sum(e.file_size for e in entries) > MAX_BYTES:
                raise NoModelError("an archive too large for models")
            files = {entry.filename: archive.read(entry) for entry in entries}
    except NoModelError:
        raise
    except Exception as error:  # zipfile and zlib raise half a dozen types
        raise NoModelError(f"a damaged zip archive ({error})") from error
    networks: dict[str, Network] = {}
    faults: list[ValueError] = []
    for name in _models_in(files):
        try:
            if _is_archive(files[name]):
                raise NoModelError(f"{name}: an archive in an archive")
            found = _read_one(name, files[name], files)
        except ValueError as error:
            faults.append(error)
            continue
        for key, network in found.items():
            names = [name.rpartition("/")[2], name]  # the whole one if the short one is taken
            names = [re.sub(r"\.(data-.*|index|[A-Za-z0-9]+)$", "", each) for each in names]
            names = ["/".join(filter(None, (each, key))) for each in (*names, name)]
            networks[next(each for each in names if each not in networks)] = network
    if not networks:
        raise faults[0] if faults else NoModelError("an archive without a model")
    return networks if len(networks) > 1 else {"": next(iter(networks.values()))}


def _models_in(files: Siblings) -> Iterator[str]:
    """Yield the names of files that may be models; a checkpoint counts once, by its graph first."""
    yield from (name for name in files if name.lower().endswith(_SUFFIXES))
    for name in files:
        shard = _SHARD.fullmatch(name)
        stem = shard[1] if shard else name.removesuffix(".index")
        if stem == name or f"{stem}.json" in files:
            continue
        if not shard or f"{stem}.index" not in files:
            yield name


def _read_one(name: str, data: bytes, siblings: Siblings) -> dict[str, Network]:
    """Read one file by what its first bytes and its name say."""
    if data.startswith(b"\x89HDF") or name.lower().endswith((".h5", ".hdf5", ".keras")):
        return {"": find_network(read_keras(data), "Keras HDF5")}
    if name.lower().endswith(".onnx"):
        return {"": find_network(read_onnx(data), "ONNX")}
    if found := _SHARD.fullmatch(name):
        index = siblings.get(f"{found[1]}.index")
        return {"": read_shard(data) if index is None else _checkpoint(found[1], index, siblings)}
    if name.endswith(".index"):
        return {"": _checkpoint(name.removesuffix(".index"), data, siblings)}
    if data.startswith((b"PK\3\4", b"\x80")) or data[8:9] == b"{":
        return read_torch(data)
    if data.lstrip()[:1] in (b"{", b"["):
        return read_json(data)
    raise NoModelError(
        "no format that is known: Distill JSON, TensorFlow graph JSON or checkpoint, texture "
        "JSON, torch.save, safetensors, Keras HDF5, ONNX"
    )


def _checkpoint(stem: str, index: bytes, siblings: Siblings) -> Network:
    shards = {}
    for name, data in siblings.items():
        found = _SHARD.fullmatch(name)
        if found and found[1] == stem:
            shards[int(found[2])] = data
    return read_checkpoint(index, shards)
