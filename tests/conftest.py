import importlib.util
import os
import subprocess
import tempfile
import time
from collections import Counter
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


BEGUN = time.monotonic()


def pytest_addoption(parser):
    parser.addoption(
        "--within",
        type=float,
        metavar="MINUTES",
        help="skip tests that have not begun by then; another commit begins with other tests",
    )


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config, items):
    counts = Counter()
    for item in items:
        if mark := item.get_closest_marker("one_in"):
            name = item.nodeid.split("[")[0]
            if counts[name] % mark.args[0]:
                item.add_marker("long")
            counts[name] += 1
    if config.getoption("within") is not None:
        command = ["git", "rev-list", "--count", "HEAD"]
        found = subprocess.run(command, cwd=config.rootpath, capture_output=True, text=True)
        commits = int(found.stdout or 0)
        first = len(items) * (commits * 7 % 16) // 16
        items[:] = items[first:] + items[:first]


def pytest_runtest_setup(item):
    minutes = item.config.getoption("within")
    if minutes is not None and time.monotonic() - BEGUN > 60 * minutes:
        pytest.skip(f"not begun within {minutes:g} minutes")


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
