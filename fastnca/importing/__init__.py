"""Import models that others trained and published, certified by growth.

files.py         which format a file has, archives
json_files.py    Distill's 8-bit JSON, TensorFlow graphs, texture JSON
tensorflow.py    checkpoints: index and shards
torch_files.py   torch.save and safetensors, state dicts and modules, without running their code
keras.py         Keras 2 and 3 (extra "keras"); hdf5.py reads in a process of its own
onnx.py          ONNX (extra "onnx")
protobuf.py      numbers as protobuf has them
network.py       the update network among the tensors of a file
layouts.py       in which order the first layer's columns may be
growth.py        which of them lives
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch

from fastnca.importing.files import read_file
from fastnca.importing.growth import SIZE, Certificate, build, certify
from fastnca.importing.network import Network, NoModelError
from fastnca.importing.torch_files import MAX_BYTES
from fastnca.module import NeuralCA
from fastnca.storage.bundle import FileFormatError, read_limited

__all__ = ["Certificate", "certify_model", "import_model", "read_networks"]


def import_model(
    path: str | PathLike[str],
    *,
    layout: str = "auto",
    name: str | int | None = None,
    license: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
) -> NeuralCA:
    """Read a model that another program trained, and certify by growth that it is read aright.

    The formats are Distill's 8-bit JSON, TensorFlow graph JSON and checkpoints, texture JSON,
    files of `torch.save` (state dicts and whole modules; nothing in them is executed),
    safetensors, Keras HDF5 and ONNX, also in a zip archive. What a cell perceives, in which order,
    is not in these files: the model is grown for 128 steps under every layout in question, and
    read in the one under which it lives.

    Args:
        path: the file, at most 64 MiB.
        layout: "auto", or the layout that the model must live in: "interleaved", "blocks", with
            the order of the filters if it is another, as in "blocks:identity,sobel_y,sobel_x".
        name: which model of a file with several, by name or by number from 0.
        license: under which the weights were published; saved with the model as a note.
        backend: as in `NeuralCA`.
        precision: as in `NeuralCA`.

    Returns:
        The model on the CPU, float32, in training mode. Its `metadata` say where it is from, the
        file's SHA-256, and the layout.

    Raises:
        FileFormatError: the file is damaged, holds several models and no name was given, or one
            that no rule expresses; or the model does not live, or lives in several layouts.
        FileNotFoundError: there is no such file.
        ImportError: the format needs an extra that is not installed.
        ValueError: the layout is none.
    """
    networks = read_networks(path)
    chosen = choose(Path(path), networks, name)
    model, _ = certify_model(
        path,
        networks,
        chosen,
        layout=layout,
        license=license,
        backend=backend,
        precision=precision,
    )
    return model


def read_networks(path: str | PathLike[str]) -> dict[str, Network]:
    """Read the networks of a file by their names; one that is alone has the name "".

    Raises:
        FileFormatError, FileNotFoundError, ImportError: as `import_model`.
    """
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(path, "a directory; give the file, or load it with NeuralCA.load")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.device("cpu"):
            data = read_limited(path, MAX_BYTES)
            digest = hashlib.sha256(data).hexdigest()
            found = read_file(path, data)
            return {name: replace(network, sha256=digest) for name, network in found.items()}
    except FileFormatError:
        raise
    except (ValueError, MemoryError, RecursionError) as error:
        raise FileFormatError(path, str(error) or type(error).__name__) from error


def choose(path: Path, networks: Mapping[str, Network], name: str | int | None) -> str:
    """Return the name of the model that is meant.

    Raises:
        FileFormatError: there is none of that name, or several and none was named.
    """
    names = list(networks)
    if name is None and len(names) == 1:
        return names[0]
    if name in networks:
        return str(name)
    if name is not None and str(name).isdecimal() and int(name) < len(names):
        return names[int(name)]
    shown = ", ".join(each or "(its only one)" for each in names[:8])
    shown += f", ... ({len(names)} models)" if len(names) > 8 else ""
    fault = "holds several models" if name is None else f"holds no model {name!r}"
    raise FileFormatError(path, f"{fault}; choose by name or number from {shown}")


def certify_model(
    path: str | PathLike[str],
    networks: Mapping[str, Network],
    name: str,
    *,
    layout: str = "auto",
    license: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
) -> tuple[NeuralCA, Certificate]:
    """Make the model `name` of a file, and say how clearly its layout was chosen.

    Raises:
        FileFormatError, ValueError: as `import_model`.
    """
    path, network = Path(path), networks[name]
    options = {"backend": backend, "precision": precision}
    try:
        with torch.device("cpu"):
            certificate = certify(network, layout)
            chosen = certificate.chosen
            model = build(network, chosen.layout, chosen.family, **options)
    except NoModelError as error:
        raise FileFormatError(path, f"{name}: {error}" if name else str(error)) from error
    family = chosen.family
    model.metadata = {
        "size": SIZE,
        "imported_from": path.name + (f": {name}" if name else ""),
        "imported_format": network.source,
        "imported_sha256": network.sha256,
        "layout": str(chosen.layout),
    }
    if license is not None:
        model.metadata["license"] = license
    if family.fill_hidden:
        model.metadata["fill_hidden"] = True
    if family.start != "cell":
        model.metadata["start"] = family.start
    if family.is_texture:
        model.metadata["visible"] = "texture"
    return model, certificate
