"""Find a C++ compiler, compile the kernels for this machine's processor, keep what came out.

A library is built at most once per sources, compiler, options and processor; it is then found in
the user's cache directory, `FASTNCA_CACHE_DIR` or `~/.cache/fastnca`. `FASTNCA_CPP=0` in the
environment switches all of this off; `CXX` names another compiler.
"""

import atexit
import ctypes
import hashlib
import logging
import os
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

SWITCH = "FASTNCA_CPP"
DIRECTORY = "FASTNCA_CACHE_DIR"

_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
_PROCESSOR = ("-march=native", "-mcpu=native")  # the second is what some compilers call it on ARM
_MOST_SECONDS = 300
_TYPES = {torch.float32: "float", torch.float64: "double"}

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
    directory = _directory()
    library = directory / f"rollout-{kind}-{digest.hexdigest()[:24]}.so"
    if not library.exists():
        start = time.perf_counter()
        _compile([*command, str(sources / "rollout.cpp")], library)
        _log.info("compiled %s in %.1f s", library, time.perf_counter() - start)
    return library


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
    named = shlex.split(os.environ.get("CXX", ""))
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


def _compile(command: list[str], library: Path) -> None:
    """Compile into `library`, which appears whole or not at all."""
    number, name = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(number)
    try:
        found = _run([*command, "-o", name])
        if found.returncode != 0:
            raise BuildError(f"the compiler {command[0]} failed: {_last_line(found.stderr)}")
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(command, input=b"", capture_output=True, timeout=_MOST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler {command[0]} cannot be run: {error}") from error


def _directory() -> Path:
    """Return a directory for libraries that only this user can write into."""
    named = os.environ.get(DIRECTORY)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = Path(named) if named else Path(base).expanduser() / "fastnca"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError("others can write into it")
        if not os.access(path, os.W_OK):
            raise PermissionError("it cannot be written")
        return path
    except (OSError, RuntimeError) as error:
        if named:
            raise BuildError(f"{DIRECTORY}={named} cannot be used: {error}") from error
        _log.info("compiled kernels are kept for this process only: %s", error)
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
