"""`fastnca import`: a model that others trained, as a directory of this package."""

import re
from argparse import Namespace
from pathlib import Path

from fastnca.importing import certify_model, choose, read_networks
from fastnca.storage.bundle import FileFormatError


def import_model(arguments: Namespace) -> int:
    """Read one model of a file, or all, certify each by growth, and save it."""
    path: Path = arguments.file
    try:
        networks = read_networks(path)
    except ImportError as error:  # an extra is not installed; the sentence says which
        raise ValueError(f"{path}: {error}") from error
    if arguments.all and arguments.model is not None:
        raise ValueError("--all and --model exclude each other")
    names = list(networks) if arguments.all else [choose(path, networks, arguments.model)]
    refused = 0
    for name in names:
        out = _directory(arguments, name)
        if (out / "config.json").exists() and not arguments.force:
            raise FileExistsError(f"{out} already holds a model; choose another --out, or --force")
        try:
            model, certificate = certify_model(
                path, networks, name, layout=arguments.layout, license=arguments.license
            )
        except FileFormatError as error:
            if len(names) == 1:
                raise
            refused += 1
            print(error)
            continue
        model.save(out)
        print(f"{out}: {certificate}")
    if len(names) == 1:
        print(f"look at it: fastnca grow {out}")
        return 0
    print(f"{len(names) - refused} of {len(names)} models imported")
    return 1 if refused else 0


def _directory(arguments: Namespace, name: str) -> Path:
    """Return where a model is saved."""
    folder = re.sub(r"[^\w.+-]+", "_", name).strip("._")
    if arguments.all:
        root: Path = arguments.out or Path("models") / arguments.file.stem
        return root / (folder or "model")
    return arguments.out or Path("models") / (folder or arguments.file.stem)
