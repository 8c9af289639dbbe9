"""Faults while saving: kills, full disks, calls that fail, flipped bits, cut files, bad numbers."""

import contextlib
import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from fastnca.storage import atomic
from fastnca.training import CheckpointError, DivergedError, RunDirectory
from tests.helpers import break_call
from tests.runs import advance, assert_same, make_trainer, tensors


def load(path, **options):
    each = make_trainer(**options)
    each.resume(path)
    return each


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forked")
@pytest.mark.parametrize(
    ("kills", "slots"),
    [
        (25, 128),
        pytest.param(200, 128, marks=pytest.mark.full),
        pytest.param(200, 8192, marks=pytest.mark.full),
    ],
    ids=["25 kills, 1 MiB", "200 kills, 1 MiB", "200 kills, 64 MiB"],
)
def test_kills_while_saving_lose_nothing(memory_path, kills, slots):
    command = [sys.executable, "-m", "tests.kill_saves", str(memory_path), str(kills), str(slots)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    counts = json.loads(said.stdout)
    assert counts.pop("during_save") > kills / 10
    assert counts == {"kills": kills, "unreadable": 0, "older": 0, "leftovers": 0}


class Disk:
    """A disk that is full after `room` bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, descriptor, data):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        written = os_write(descriptor, bytes(data)[: self.room])
        self.room -= written
        return written


os_write = os.write


@pytest.fixture
def saved(memory_path):
    """A run with one checkpoint, three iterations ago; its trainer and its directory."""
    each = make_trainer(keep=99)
    advance(each, 2)
    each.save(memory_path / "run")
    advance(each, 3)
    return each, memory_path / "run"


def checkpoint_bytes(path):
    return sum(file.stat().st_size for file in path.iterdir())


@pytest.mark.parametrize("part", range(20))
def test_a_full_disk_leaves_the_checkpoint_before(saved, monkeypatch, part):
    each, path = saved
    room = checkpoint_bytes(path / "ckpt-00000002") * part // 20
    before = tensors(each)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "write", Disk(room).write)
        with pytest.raises(CheckpointError, match=r"ckpt-00000005: not written .*No space left"):
            RunDirectory(path).save(each)
    assert load(path).iteration == 2
    assert not list(path.glob(".ckpt*"))
    for name, value in tensors(each).items():
        assert torch.equal(value, before[name])
    each.save(path)
    assert_same(each, load(path))


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")
@pytest.mark.parametrize("part", range(1, 20, 6))
def test_a_limit_of_the_system_is_a_full_disk(saved, part):
    each, path = saved
    largest = max(file.stat().st_size for file in (path / "ckpt-00000002").iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest * part // 20, before[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            RunDirectory(path).save(each)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load(path).iteration == 2


def test_a_failure_at_any_call_leaves_this_checkpoint_or_the_one_before(saved, monkeypatch):
    each, path = saved
    number, finished, completed = 0, False, 0
    while not finished:
        number += 1
        shutil.rmtree(path / "ckpt-00000005", ignore_errors=True)
        with monkeypatch.context() as patch:
            count = break_call(
                patch, number, ("mkdir", "open", "write", "fsync", "rename", "replace")
            )
            with contextlib.suppress(CheckpointError):
                RunDirectory(path).save(each)
            finished = count[0] < number
        other = load(path)
        if other.iteration == 5:
            completed += 1
            assert_same(other, each)
        else:
            assert other.iteration == 2
        assert not list(path.glob(".ckpt*.tmp"))
    assert number > 40
    assert completed >= 4  # from the rename on, the new one counts


KINDS = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "train.safetensors",
    "pool-00000-of-00001.safetensors",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run with two checkpoints, and the trainers as they were then."""
    path = tmp_path_factory.mktemp("two")
    each = make_trainer(keep=99)
    trainers = []
    for _ in range(2):
        advance(each, 1)
        each.save(path)
        trainers.append(load(path))
    return path, trainers


def damage(two, memory_path, kind, change):
    """Change one file of the newest checkpoint; return what is loaded then."""
    path, trainers = two
    copy = memory_path / "copy"
    shutil.copytree(path, copy)
    file = copy / "ckpt-00000002" / kind
    file.write_bytes(change(bytearray(file.read_bytes())))
    each = make_trainer()
    notes = RunDirectory(copy).resume(each).notes
    shutil.rmtree(copy)
    assert_same(each, trainers[each.iteration - 1])
    if each.iteration == 1:
        assert any(kind in note for note in notes)
    return each.iteration


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_loaded_silently(two, memory_path, kind):
    generator = random.Random(kind)
    intact = 0
    for _ in range(100):

        def flip(content):
            bit = generator.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            return content

        intact += damage(two, memory_path, kind, flip) == 2
    # white space of JSON may turn into other white space, which changes nothing
    assert intact == 0 if kind != "manifest.json" else intact < 20


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", KINDS)
def test_no_truncated_file_is_loaded(two, memory_path, kind):
    for part in range(100):
        cut = damage(
            two, memory_path, kind, lambda content, p=part: content[: len(content) * p // 100]
        )
        assert cut == 1


@pytest.mark.parametrize("name", ["latest", "best"])
def test_the_pointers_are_not_trusted(two, memory_path, name):
    path, trainers = two
    shutil.copytree(path, memory_path / "copy")
    for content in (b"", b"ckpt-00000001\n", b"../../etc\n", b"\xff\x00"):
        (memory_path / "copy" / name).write_bytes(content)
        each = load(memory_path / "copy")
        assert_same(each, trainers[1])
        advance(each, 1)
        each.save(memory_path / "copy")
        shutil.rmtree(memory_path / "copy" / "ckpt-00000003")


POISON = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "huge": 3e38,
    "subnormal": 1e-45,
}


def poison_alpha(each, value):
    each.pool.states[::2, 3] = value


def poison_colour(each, value):
    each.pool.states[::2, 0, 2, 2] = value


def poison_hidden(each, value):
    each.pool.states[::2, 6, 1:4] = value


def poison_gradient(each, value):
    each.model.update_net[0].weight.register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor([0]), value)
    )


@pytest.mark.one_in(20)
@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("poison", [poison_alpha, poison_colour, poison_hidden, poison_gradient])
def test_weights_stay_finite_whatever_is_poisoned(poison, value):
    each = make_trainer(preset="persistent", max_skips=30, repairs=0)
    advance(each, 2)
    poison(each, POISON[value])
    with contextlib.suppress(DivergedError):
        for _ in range(30):
            before = [p.detach().clone() for p in each.model.parameters()]
            if each.step().skipped:
                for a, b in zip(each.model.parameters(), before, strict=True):
                    assert torch.equal(a, b)
    for each_tensor in (*each.model.state_dict().values(), *each.optimizer.good_weights.values()):
        assert torch.isfinite(each_tensor).all()
    moments = [t for state in each.optimizer.adam.state.values() for t in state.values()]
    assert all(torch.isfinite(t).all() for t in moments)
