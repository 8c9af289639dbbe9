"""ONNX and Keras files that somebody changed: tensors or a sentence, no crash, no bomb."""

import contextlib
import random
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastnca import NeuralCA
from fastnca.exporting.onnx import export_onnx
from fastnca.importing import keras
from fastnca.importing.hdf5 import FaultError, read_datasets
from fastnca.importing.keras import _unpack, read_keras
from fastnca.importing.onnx import read_onnx
from tests.foreign_files import KERAS2, KERAS3, archive, hdf5, loop_file, under
from tests.helpers import excite
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.test_mutations import TOKENS, mutate

ROOT = Path(__file__).parent.parent
CHANGES = 600


def splice(data, other, generator):
    """Put a piece of another file into a file."""
    at, start = generator.randrange(len(data)), generator.randrange(len(other))
    piece = other[start : start + generator.choice((1, 8, 64, 512))]
    return data[:at] + piece + data[at + generator.choice((0, len(piece))) :]


def change_bytes(data, generator):
    """Change a few bytes in place: small changes reach further into a reader than large ones."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at, token = generator.randrange(len(data)), generator.choice((*TOKENS, b"\x00" * 8))
        changed[at : at + 8] = generator.choice((generator.randbytes(1), token[:8]))
    return bytes(changed)


ORIGINALS = {
    "onnx": lambda: [export_onnx(excite(NeuralCA(6, 5))), loop_file("inside")[0]],
    "keras": lambda: [
        hdf5(under("layers", KERAS3)),
        hdf5(under("layers", KERAS3), libver="latest"),
        hdf5(under("model_weights", KERAS2)),
    ],
    "archive": lambda: [
        archive(hdf5(KERAS2), compression=zipfile.ZIP_DEFLATED),
        archive(hdf5(KERAS2)),
    ],
}


def change(originals, number):
    """Return a changed file, always the same for the same number."""
    generator = random.Random(number)
    data = generator.choice(originals)
    if number % 3 == 0:
        return mutate(data, generator)
    if number % 3 == 1:
        return splice(data, generator.choice(originals), generator)
    return change_bytes(data, generator)


def peak():
    """Return the most memory that this process ever held, in bytes; 0 where nothing says so."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def try_changes(read, originals, numbers):
    """Read changed files; return how many were refused."""
    before, slowest, refused = peak(), 0.0, 0
    for number in numbers:
        data, fault = change(originals, number), None
        print(number, flush=True)  # the last one that is seen is the one that crashed
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = read(data)
        except ValueError as error:
            found, fault = {}, error
        slowest = max(slowest, time.perf_counter() - start)
        refused += fault is not None
        assert fault is None or len(str(fault).splitlines()) == 1
        assert fault is None or type(fault) in (ValueError, FaultError)
        assert all(isinstance(each, torch.Tensor | np.ndarray) for each in found.values())
        assert all(str(each.dtype).endswith("float32") for each in found.values())
    assert slowest < 5
    assert peak() - before < 200 << 20
    return refused


COUNTS = pytest.mark.parametrize(
    "count", [CHANGES, pytest.param(30 * CHANGES, marks=pytest.mark.full)]
)


@COUNTS
def test_a_changed_onnx_file_gives_tensors_or_a_sentence(count):
    refused = try_changes(read_onnx, ORIGINALS["onnx"](), range(count))
    assert 0.2 * count < refused < count


@COUNTS
def test_a_changed_archive_gives_hdf5_or_a_sentence(count):
    """What is in it is not read; HDF5 has a test of its own."""

    def read(data):
        try:
            _unpack(data)
        except FaultError as error:
            raise ValueError(str(error)) from error
        return {}

    refused = try_changes(read, ORIGINALS["archive"](), range(count))
    assert 0.2 * count < refused < count


def read_in_worker(first, count):
    """Read changed HDF5 files in this process, which may crash."""
    refused = try_changes(read_datasets, ORIGINALS["keras"](), range(first, count))
    print("refused", refused)


@pytest.mark.long
@COUNTS
def test_a_changed_hdf5_file_gives_arrays_or_a_sentence(count):
    """Where HDF5 itself crashes, which it may in a process of its own, `read_keras` says so."""
    first, refused = 0, 0
    while first < count:
        code = f"from tests.test_import_mutations import *; read_in_worker({first}, {count})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        assert done.returncode <= 0, done.stderr
        said = done.stdout.split()
        if done.returncode == 0:
            refused += int(said[-1])
            break
        crashed = int(said[-1])
        with contextlib.suppress(ValueError):
            read_keras(change(ORIGINALS["keras"](), crashed))
        first = crashed + 1
    assert first or 0.2 * count < refused < count


def test_some_changed_files_from_outside():
    originals = ORIGINALS["keras"]() + ORIGINALS["archive"]()
    faults = 0
    for number in range(9):
        try:
            assert read_keras(change(originals, number))
        except ValueError as error:
            faults += str(error).startswith("cannot read the Keras file: ")
    assert faults > 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "HDF5 crashed"),
        ("import time; time.sleep(60)", "still reading it after 1 seconds"),
        ("raise RuntimeError('oh no')", "oh no"),
        ("print('rubbish')", "HDF5 failed on it"),
        ('print(\'{"shapes": {"a": [1000000]}}\')', "HDF5 failed on it"),
        ("print('{\"shapes\": 3}')", "HDF5 failed on it"),
        ("print('[]')", "HDF5 failed on it"),
    ],
)
def test_a_library_that_fails_is_a_wrong_file(code, said, tmp_path, monkeypatch):
    """A damaged file can do anything to the other process, and nothing to this one."""
    (tmp_path / "hdf5.py").write_text(code)
    monkeypatch.setattr(keras.hdf5, "__file__", str(tmp_path / "hdf5.py"))
    monkeypatch.setattr(keras, "_SECONDS", 1 if "sleep" in code else 60)
    with pytest.raises(ValueError, match=said):
        read_keras(ORIGINALS["keras"]()[0])


def test_a_library_that_cannot_be_imported_is_said(tmp_path, monkeypatch):
    (tmp_path / "hdf5.py").write_text("import h5py_that_is_not_there")
    monkeypatch.setattr(keras.hdf5, "__file__", str(tmp_path / "hdf5.py"))
    with pytest.raises(ImportError, match=r"pip install fastnca\[keras\]"):
        read_keras(ORIGINALS["keras"]()[0])


@pytest.mark.long
def test_the_other_process_may_take_a_gigabyte_and_no_more():
    if sys.platform != "linux":
        pytest.skip("memory is limited on Linux only")
    code = (
        "from fastnca.importing.hdf5 import _limit_memory\n"
        "_limit_memory()\n"
        "bytearray(800 << 20)\n"
        "try: bytearray(1200 << 20)\n"
        "except MemoryError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "refused\n"
