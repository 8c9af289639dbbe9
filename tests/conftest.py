import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports a kernel

from fastnca.backends.triton_fused.limits import interpreted
from tests.helpers import Grown, load_grown
from tests.interpreter import separate_rows

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    separate_rows()


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.delenv("FASTNCA_BACKEND", raising=False)
    interpreted.cache_clear()  # a test may change the environment
    torch.manual_seed(0)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory that lies in memory where the system has such: thousands of fsyncs are free."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def grown() -> Grown:
    """A model trained for a moment, and states of its pool with living, dying and dead regions."""
    return load_grown()
