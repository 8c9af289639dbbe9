"""ONNX and Keras files that somebody changed: tensors or a sentence, no crash, no bomb."""

import random
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from fastnca import NeuralCA
from fastnca.exporting.onnx import export_onnx
from fastnca.importing.keras import read_keras
from fastnca.importing.onnx import read_onnx
from tests.foreign_files import KERAS2, KERAS3, archive, hdf5, loop_file, under
from tests.helpers import excite
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.test_mutations import TOKENS, mutate

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


def peak():
    """Return the most memory that this process ever held, in bytes; 0 where nothing says so."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("count", [CHANGES, pytest.param(30 * CHANGES, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ORIGINALS)
def test_changed_files_give_tensors_or_a_sentence(kind, count):
    originals, generator = ORIGINALS[kind](), random.Random(count)
    read = read_onnx if kind == "onnx" else read_keras
    for each in originals:
        assert read(each)
    before, slowest, refused = peak(), 0.0, 0
    for number in range(count):
        data = generator.choice(originals)
        if number % 3 == 0:
            data = mutate(data, generator)
        elif number % 3 == 1:
            data = splice(data, generator.choice(originals), generator)
        else:
            data = change_bytes(data, generator)
        start, fault = time.perf_counter(), None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = read(data)
        except ValueError as error:
            found, fault = {}, error
        slowest = max(slowest, time.perf_counter() - start)
        refused += not found
        assert found or (type(fault) is ValueError and len(str(fault).splitlines()) == 1)
        assert all(each.dtype is torch.float32 for each in found.values())
    assert 0.2 * count < refused < count
    assert slowest < 5
    assert peak() - before < 200 << 20
