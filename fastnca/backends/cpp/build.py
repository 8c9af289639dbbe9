"""Find a C++ compiler, compile the kernels for this machine's processor, keep what came out.

A library is built at most once per sources, compiler, options and processor; it is then found in
the user's cache directory, `FASTNCA_CACHE_DIR` or `~/.cache/fastnca`. `FASTNCA_CPP=0` in the
environment switches all of this off; `CXX` names another compiler.

The name of a library ends with the SHA-256 digest of its bytes, which is checked before it is
loaded: the system kills a process that runs into the end of a library that was cut short. A file
under its final name is replaced or removed, never written, so processes that use it keep it.
"""

import atexit
import contextlib
import ctypes
import hashlib
import logging
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from fastnca.storage.atomic import sync_directory

SWITCH = "FASTNCA_CPP"
DIRECTORY = "FASTNCA_CACHE_DIR"

_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
_PROCESSOR = ("-march=native", "-mcpu=native")  # the second is what some compilers call it on ARM
_MOST_SECONDS = 300
_TYPES = {torch.float32: "float", torch.float64: "double"}
_HOUR = 3600.0
_MOST_AGE = {  # seconds after which a file of the cache directory is removed
    "rollout-*.so": 60 * 24 * _HOUR,  # since they were last loaded
    ".rollout-*.tmp": _HOUR,  # left by processes that were killed while they compiled
    "tmp????????.so": _HOUR,  # the same, as earlier versions named them
}

_log = logging.getLogger("fastnca")


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message is a reason in one sentence."""


def cpp_reasons(dtype: torch.dtype) -> tuple[str, ...]:
    """List why the compiled kernels for a floating-point type cannot be had; empty if they can.

    The first call of a process builds or loads them.
    """
    return _load(dtype)[1]


def cpp_library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled kernels for a floating-point type.

    Raises:
        BuildError: they cannot be had.
    """
    library, reasons = _load(dtype)
    if library is None:
        raise BuildError(reasons[0])
    return library


@cache
def _load(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, tuple[str, ...]]:
    """Build or find the library, once per process."""
    if os.environ.get(SWITCH) == "0":
        return None, (f"it is switched off by {SWITCH}=0",)
    if dtype not in _TYPES:
        return None, (f"states must be float32 or float64, got {dtype}",)
    try:
        return ctypes.CDLL(str(_build(_TYPES[dtype]))), ()
    except BuildError as error:
        return None, (str(error),)
    except OSError as error:
        return None, (f"the compiled kernels cannot be loaded: {error}",)


def _build(kind: str) -> Path:
    """Return the library for a C++ type, compiled now if it is not there yet."""
    sources = _sources()
    compiler = _compiler()
    options, processor = _options(compiler)
    command = [*compiler, *options, f"-DFASTNCA_TYPE={kind}"]
    digest = hashlib.sha256(repr(command).encode() + processor)
    for source in sorted([*sources.glob("*.h"), *sources.glob("*.cpp")]):
        digest.update(source.name.encode() + source.read_bytes())
    stem = f"rollout-{kind}-{digest.hexdigest()[:24]}"
    directory = _directory()
    library = _find(directory, stem)
    if library is None:
        if not os.access(directory, os.W_OK):
            directory = _other_directory("it cannot be written")
        start = time.perf_counter()
        library = _compile([*command, str(sources / "rollout.cpp")], directory, stem)
        _log.info("compiled %s in %.1f s", library, time.perf_counter() - start)
    _sweep(directory)
    return library


def _find(directory: Path, stem: str) -> Path | None:
    """Return the library that some process left, if it is whole."""
    for library in directory.glob(f"{stem}-*.so"):
        try:
            _check_owner(library)
            if library.stem == f"{stem}-{_digest(library)}":
                with contextlib.suppress(OSError):  # root's library, or a read-only disk
                    os.utime(library)
                return library
            reason = "it is damaged"
        except OSError as error:
            reason = str(error)
        _log.info("compiled kernels are not taken from %s: %s", library, reason)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sweep(directory: Path) -> None:
    """Remove what killed processes left in a directory, and libraries that nobody loads."""
    for pattern, seconds in _MOST_AGE.items():
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > seconds:
                    path.unlink()


def _sources() -> Path:
    """Return the directory of the C++ sources, without importing the Triton kernels beside it."""
    spec = find_spec("fastnca.kernels")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "cpu" / "rollout.cpp").is_file():
            return Path(place) / "cpu"
    raise BuildError("the C++ sources, kernels/cpu, are missing from this installation")


def _compiler() -> list[str]:
    """Return the command of a C++ compiler."""
    if sys.platform == "win32":
        raise BuildError("the C++ kernels are built on Linux and macOS only")
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']} is no command: {error}") from error
    for words in [named] if named else [[name] for name in _COMPILERS]:
        if shutil.which(words[0]):
            return words
    wanted = named[0] if named else ", ".join(_COMPILERS)
    raise BuildError(f"there is no C++ compiler (looked for {wanted})")


def _options(compiler: list[str]) -> tuple[tuple[str, ...], bytes]:
    """Return options that the compiler takes, and what it knows of itself and the processor."""
    said = b""
    for processor in (*((name,) for name in _PROCESSOR), ()):
        options = (*_OPTIONS, *processor)
        found = _run([*compiler, *options, "-dM", "-E", "-x", "c++", "-"])
        if found.returncode == 0:
            return options, found.stdout
        said = said or found.stderr
    raise BuildError(f"the compiler {compiler[0]} does not work: {_last_line(said)}")


def _compile(command: list[str], directory: Path, stem: str) -> Path:
    """Compile a library, which appears whole or not at all, also after a crash."""
    temporary = directory / f".{stem}.{secrets.token_hex(6)}.tmp"
    try:
        found = _run([*command, "-o", str(temporary)])
        if found.returncode != 0:
            raise BuildError(f"the compiler {command[0]} failed: {_last_line(found.stderr)}")
        library = directory / f"{stem}-{_digest(temporary)}.so"
        with temporary.open("rb") as file:
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(temporary, library)
        sync_directory(directory)
        return library
    finally:
        temporary.unlink(missing_ok=True)


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(command, input=b"", capture_output=True, timeout=_MOST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler {command[0]} cannot be run: {error}") from error


def _directory() -> Path:
    """Return a directory for libraries that nobody but this user and root can write into."""
    named = os.environ.get(DIRECTORY)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = Path(named or Path(base, "fastnca")).expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path)
        return path
    except (OSError, RuntimeError) as error:
        return _other_directory(error)


def _check_owner(path: Path) -> None:
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others can write into it")


def _other_directory(reason: Exception | str) -> Path:
    """Return a directory that serves this process, unless the user named the one that cannot."""
    if named := os.environ.get(DIRECTORY):
        raise BuildError(f"{DIRECTORY}={named} cannot be used: {reason}")
    _log.info("compiled kernels are kept for this process only: %s", reason)
    return _temporary()


@cache
def _temporary() -> Path:
    """Return a directory that goes when the process ends."""
    path = tempfile.mkdtemp(prefix="fastnca-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def _last_line(said: bytes) -> str:
    """Return the last line that a compiler said, which is the shortest account of a failure."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
