"""Run the kernels on CUDA if there is a device, else in Triton's interpreter.

Triton decides at import, so the switch is thrown before anything imports the kernels; it is
visible only to the tests of this folder.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import triton

from fastnca.backends.triton_fused.limits import interpreter_reasons

INTERPRETED = not torch.cuda.is_available()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it

with pytest.MonkeyPatch.context() as _patch:
    if INTERPRETED:
        _patch.setenv("TRITON_INTERPRET", "1")
    import fastnca.backends.triton_fused.operators  # noqa: F401
    import tests.kernels.probes  # noqa: F401


def _compile_once(compile_: Any) -> Any:
    """Let parallel test processes wait for each other's kernels instead of compiling them again.

    Triton looks into its cache on disk only before it compiles; the file lock makes the second
    process look when the first is done.
    """
    folder = Path(tempfile.gettempdir(), f"fastnca-compiling-{os.getuid()}")
    folder.mkdir(exist_ok=True)

    def locked(src: Any, *arguments: Any, **options: Any) -> Any:
        with (folder / src.hash()).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return compile_(src, *arguments, **options)

    return locked


if not INTERPRETED:
    triton.compiler.compile = _compile_once(triton.compiler.compile)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        for reason in interpreter_reasons(triton.__version__, numpy.__version__):
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill fresh memory with NaN: a cell that no kernel writes shows up in the comparison.

    Operators of torch's that have no deterministic form on a GPU warn of it.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
