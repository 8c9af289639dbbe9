"""Files that someone else made: whatever is changed in them, only the documented errors come."""

import contextlib
import io
import random
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastnca import FileFormatError, NeuralCA, load_target
from fastnca.commands.parser import _parse
from fastnca.commands.train import _config
from tests.helpers import excite

COUNT = 2000
FILES = ("config.json", "model.safetensors", "model.pt", "run.toml")
PICTURES = ("png", "jpg", "webp", "gif", "bmp")
KINDS = (*FILES, *PICTURES)

CONFIG = """
target = "heart"
size = 32
preset = "regenerating"
iterations = 200
learning_rate = 2e-3
milestones = [100, 150]
clamp_loss = false
pool_size = 128
seed = 7
"""

TOKENS = (
    *(b"0", b"-1", b"1e999", b"999999999999999999999", b"18446744073709551616", b"0x7fffffff"),
    *(
        b"true",
        b"null",
        b"nan",
        b'""',
        b"[]",
        b"{}",
        b"[[[[[[[[",
        b'"\\u0000"',
        b"\xff\xfe",
        b"\x00",
    ),
    *(b"__import__('os')", b"../../etc/passwd", b"1" * 5000, b"2020-01-01", b"inf"),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Content of one intact file of every kind."""
    path = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    model = excite(NeuralCA(6, 5))
    model.metadata = {"size": 12, "target": "circle"}
    model.save(path)
    torch.save(model.state_dict(), path / "model.pt")
    (path / "run.toml").write_text(CONFIG)
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    for suffix in PICTURES:
        picture.save(path / f"p.{suffix}")
    return {kind: next(path.glob(f"*{kind}")).read_bytes() for kind in KINDS}


def mutate(content, generator):
    """Change a file in one to four random ways."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(data) + 1)
        length = generator.choice((1, 2, 4, 8, 100))
        way = generator.randrange(8)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << generator.randrange(8)
        elif way == 1:
            data[at : at + length] = generator.randbytes(length)
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            del data[at:]
        elif way == 4:
            data[at:at] = data[at : at + length] * generator.choice((1, 3, 50))
        elif way == 5:
            data[at : at + generator.choice((0, length))] = generator.choice(TOKENS)
        elif way == 6:  # a number in binary formats: a length, an offset
            value = generator.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63))
            data[at : at + 8] = value.to_bytes(8, generator.choice(("little", "big")))
        else:
            data[at:at] = generator.randbytes(length)
    return bytes(data)


def open_file(kind, data, originals, directory):
    """Open a changed file as a user would."""
    if kind in ("config.json", "model.safetensors"):
        for name in ("config.json", "model.safetensors"):
            (directory / name).write_bytes(data if name == kind else originals[name])
        NeuralCA.load(directory)
        return
    path = directory / f"file.{kind.rsplit('.', 1)[-1]}"
    path.write_bytes(data)
    if kind == "model.pt":
        NeuralCA.load(path)
    elif kind == "run.toml":
        read_config(path)
    else:
        load_target(path, 24)


def read_config(path):
    """Read options; a value that argparse refuses is a usage error with exit code 2."""
    complaint, code, said = io.StringIO(), 2, ""
    try:
        with contextlib.redirect_stderr(complaint):
            _config(_parse(["train", "--config", str(path)]))
    except FileFormatError:
        raise
    except SystemExit as error:
        code = error.code
    except (ValueError, TypeError) as error:
        said = str(error)
    assert code == 2
    assert len(said.splitlines()) <= 1
    assert not complaint.getvalue() or "usage: " in complaint.getvalue()


def peak():
    """Return the most memory that this process ever held, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("count", [COUNT, pytest.param(10 * COUNT, marks=pytest.mark.full)])
def test_changed_files_raise_the_documented_errors_only(originals, memory_path, count):
    generator = random.Random(count)
    refused, slowest = dict.fromkeys(KINDS, 0), 0.0
    has_peak = Path("/proc/self/clear_refs").exists()
    if has_peak:
        reset_peak()
        before = peak()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        data = mutate(originals[kind], generator)
        start, fault = time.process_time(), None
        try:
            open_file(kind, data, originals, memory_path)
        except FileFormatError as error:
            fault = str(error)
        slowest = max(slowest, time.process_time() - start)
        refused[kind] += fault is not None
        assert fault is None or str(memory_path) in fault
    assert slowest < 2
    if has_peak:
        assert peak() - before < 500 << 20
    share = count / len(KINDS)
    for kind in ("config.json", "model.safetensors", "model.pt"):
        assert refused[kind] > 0.9 * share
    assert all(refused.values())


def test_the_unchanged_files_open(originals, memory_path):
    for kind in KINDS:
        open_file(kind, originals[kind], originals, memory_path)
