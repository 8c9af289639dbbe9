"""Checkpoints: directories that are complete and intact, or do not count.

A checkpoint is written into a hidden directory beside its place. When every file is on the disk,
`manifest.json` follows with all sizes and SHA-256 digests, then the directory gets its name,
`ckpt-00001200`, by one rename, then the file `latest` names it. A reader trusts manifests only:
it takes the newest checkpoint that verifies.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastnca.storage.atomic import FileEntry, sync_directory, write_atomically, write_file
from fastnca.storage.bundle import (
    MAX_JSON_BYTES,
    FileFormatError,
    Header,
    digest_header,
    read_limited,
)

FORMAT = "fastnca-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"
_NAME = re.compile(r"ckpt-(\d{8,})")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PIECE = 1 << 22


def checkpoint_path(directory: Path, iteration: int) -> Path:
    """Return the place of the checkpoint after `iteration` iterations."""
    return directory / f"ckpt-{iteration:08d}"


def staging_path(directory: Path, iteration: int) -> Path:
    """Return where a checkpoint is written before it counts."""
    return directory / f".ckpt-{iteration:08d}.tmp"


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, intact or not, newest first."""
    if not directory.is_dir():
        return []
    found = [(int(m[1]), p) for p in directory.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def clear_staging(directory: Path) -> None:
    """Remove what killed writers left behind."""
    for path in directory.glob(".ckpt-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def publish(staging: Path, target: Path, header: Header, files: Mapping[str, FileEntry]) -> None:
    """Make the files in `staging` a checkpoint.

    Args:
        staging: holds `files`, each on the disk already.
        target: the checkpoint's place; one that is there and not intact is replaced.
        header: JSON-serialisable description.
        files: name, size and digest of every file.

    Raises:
        OSError: a call failed; no other checkpoint is touched.
    """
    manifest: Header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **header,
        "files": {name: asdict(entry) for name, entry in files.items()},
    }
    manifest["sha256"] = digest_header(manifest)
    text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    write_file(staging / MANIFEST, [text.encode()])
    sync_directory(staging)
    if target.exists():
        shutil.rmtree(target)
    os.rename(staging, target)
    sync_directory(target.parent)
    write_atomically(target.parent / LATEST, f"{target.name}\n".encode())


def read_manifest(path: Path) -> Header:
    """Read the manifest of checkpoint `path`, without looking at the other files.

    Raises:
        FileFormatError: it is missing, damaged, or of another version.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise FileFormatError(file, "missing: the checkpoint is not complete")
    try:
        manifest = json.loads(read_limited(file, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(file, f"not a JSON file ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FileFormatError(file, f"not a {FORMAT} manifest")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise FileFormatError(
            file,
            f"format version {manifest.get('format_version')}, this fastnca reads version "
            f"{FORMAT_VERSION}; install the fastnca that wrote it",
        )
    if manifest.get("sha256") != digest_header(manifest):
        raise FileFormatError(file, "its SHA-256 does not fit; the file was changed or damaged")
    return manifest


def verify(path: Path) -> Header:
    """Compare every file of checkpoint `path` with its manifest.

    Returns:
        The manifest.

    Raises:
        FileFormatError: a file is missing, damaged, or not what the manifest says.
    """
    manifest = read_manifest(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(n, e) for n, e in files.items()):
        raise FileFormatError(path / MANIFEST, "field 'files' is not a list of files")
    for name, entry in files.items():
        _verify_file(path / name, FileEntry(entry["size"], entry["sha256"]))
    return manifest


def newest_intact(directory: Path) -> tuple[Path, Header, list[FileFormatError]]:
    """Find the newest checkpoint that verifies.

    Returns:
        Its path, its manifest, and what was wrong with each newer one.

    Raises:
        FileFormatError: none of the checkpoints is intact.
        FileNotFoundError: there is none.
    """
    faults: list[FileFormatError] = []
    for path in list_checkpoints(directory):
        try:
            return path, verify(path), faults
        except FileFormatError as error:
            faults.append(error)
    if not faults:
        raise FileNotFoundError(f"{directory}: no saved run (ckpt-...) here")
    raise FileFormatError(
        directory, "no checkpoint is intact: " + "; ".join(str(fault) for fault in faults)
    )


def prune(directory: Path, keep: int, spare: str | None) -> None:
    """Remove all but the `keep` newest checkpoints and the one named `spare`."""
    for path in list_checkpoints(directory)[keep:]:
        if path.name != spare:
            # hidden first, so that a kill leaves no half checkpoint with a valid name
            hidden = path.with_name(f".{path.name}.tmp")
            with contextlib.suppress(OSError):
                os.rename(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def hash_file(path: Path) -> FileEntry:
    """Read a file once and return its size and digest."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            digest.update(piece)
    return FileEntry(size, digest.hexdigest())


def _is_entry(name: str, entry: Any) -> bool:
    return (
        _FILE_NAME.fullmatch(name) is not None
        and isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
    )


def _verify_file(path: Path, expected: FileEntry) -> None:
    if not path.is_file():
        raise FileFormatError(path, "missing from the checkpoint")
    size = path.stat().st_size
    if size != expected.size:
        raise FileFormatError(path, f"must have {expected.size} bytes, has {size}")
    if hash_file(path) != expected:
        raise FileFormatError(path, "its SHA-256 is not the manifest's; it was changed or damaged")
