"""Files: round trips, atomic replacement, damage found."""

import contextlib
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastnca import FileFormatError, NeuralCA
from fastnca.storage.atomic import write_atomically
from tests.helpers import break_call, excite


def make(seed=0, channels=6, hidden=5):
    torch.manual_seed(seed)
    model = excite(NeuralCA(channels, hidden))
    model.metadata = {"size": 20 + seed}
    return model


def assert_same(first, second):
    for (name, a), (_, b) in zip(
        first.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.dtype == b.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, dtype):
    model = make().to(dtype)
    model.save(tmp_path / "a" / "b")
    loaded = NeuralCA.load(tmp_path / "a" / "b", backend="reference")
    assert_same(model, loaded)
    assert loaded.metadata == {"size": 20}
    assert loaded.backend == "reference"
    assert [p.requires_grad for p in loaded.parameters()] == [False, True, True, True, True]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]


def test_loading_draws_no_random_numbers(tmp_path):
    make().save(tmp_path)
    before = torch.get_rng_state()
    NeuralCA.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_subclass_loads_as_itself(tmp_path):
    class Mine(NeuralCA):
        pass

    make().save(tmp_path)
    assert type(Mine.load(tmp_path)) is Mine


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        make().save(tmp_path / "m")
    finally:
        os.umask(before)
    for path in (tmp_path / "m").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_order_of_calls_and_no_leftovers(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*arguments, _name=name, _real=real):
            calls.append(_name)
            return _real(*arguments)

        monkeypatch.setattr(os, name, spy)
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace", "fsync"]  # content, name, directory
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_at_any_call_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch):
    old, new = make(0), make(1, channels=7)
    old.save(tmp_path)
    number, finished = 0, False
    while not finished:
        number += 1
        with monkeypatch.context() as patch:
            break_call(patch, number, ("open", "fsync", "replace"))
            with contextlib.suppress(OSError):
                new.save(tmp_path)
                finished = True
        loaded = NeuralCA.load(tmp_path)
        expected = new if loaded.metadata == new.metadata else old
        assert_same(loaded, expected)
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
        old.save(tmp_path)
    assert number > 8


def test_a_crash_between_the_two_renames_leaves_the_old_model(tmp_path, monkeypatch):
    old, new = make(0), make(1, channels=7)
    old.save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    new.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    loaded = NeuralCA.load(tmp_path)
    assert_same(loaded, old)
    assert loaded.metadata == old.metadata
    make(2).save(tmp_path)  # and the next save works
    assert NeuralCA.load(tmp_path).metadata == {"size": 22}


def test_old_temporary_files_are_swept(tmp_path):
    stale, fresh = tmp_path / ".file.0a.tmp", tmp_path / ".file.0b.tmp"
    stale.write_text("killed")
    fresh.write_text("at work")
    os.utime(stale, (0, 0))
    write_atomically(tmp_path / "file", b"x")
    assert sorted(os.listdir(tmp_path)) == [".file.0b.tmp", "file"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of every kind of model file."""
    directory = tmp_path_factory.mktemp("saved")
    make(0).save(directory)
    torch.save(make(0).state_dict(), directory / "model.pt")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def load_with(directory, saved, name, data):
    for other, content in saved.items():
        (directory / other).write_bytes(data if other == name else content)
    return NeuralCA.load(directory / name if name.endswith(".pt") else directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.pt"])
@given(data=st.data())
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_flipped_bit_is_loaded_silently(tmp_path_factory, saved, name, data):
    content = bytearray(saved[name])
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    directory = tmp_path_factory.mktemp("flip")
    loaded = None
    with contextlib.suppress(FileFormatError):
        loaded = load_with(directory, saved, name, bytes(content))
    if loaded is not None:  # white space, or zip metadata: the model is what was saved
        assert_same(loaded, make(0))
        assert name == "model.pt" or loaded.metadata == {"size": 20}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.pt"])
def test_no_truncation_is_loaded(tmp_path, saved, name):
    content = saved[name]
    for part in range(100):
        cut = content[: len(content) * part // 100]
        with pytest.raises(FileFormatError, match=name):
            load_with(tmp_path, saved, name, cut)


def rewrite(**changes):
    """Change fields of config.json and give it a checksum that fits: a crafted file."""
    from fastnca.storage import bundle

    def change(content):
        header = json.loads(content)
        header.update(changes)
        header["sha256"] = bundle.digest_header(header)
        return json.dumps(header).encode()

    return change


CONFIGS = {
    "not json": (lambda c: b"{", "not a JSON file"),
    "not utf-8": (lambda c: b"\xff\xfe{}", "not a JSON file"),
    "deep nesting": (lambda c: b"[" * 100_000, "not a JSON file"),
    "a list": (lambda c: b"[]", "not a fastnca-model description"),
    "another kind": (rewrite(format="other"), "not a fastnca-model description"),
    "newer": (rewrite(format_version=3), "format version 3, this fastnca reads versions 1 to 2"),
    "huge": (rewrite(rule={"hidden": [10**9]}), "from 1 to 8192, got 1000000000"),
    "text": (rewrite(num_channels="16"), "num_channels' must be an integer"),
    "bool": (rewrite(num_channels=True), "num_channels' must be an integer"),
    "dtype": (rewrite(dtype="float16"), "dtype' must be one of float32, float64"),
    "no rule": (rewrite(rule="growing"), "a rule must be a mapping"),
    "unknown field": (rewrite(rule={"alpha": 1}), "a rule has no field 'alpha'"),
    "metadata": (rewrite(metadata=[]), "metadata' must be an object"),
    "other shape": (rewrite(rule={"hidden": [7]}), "must be torch.float32"),
    "too large": (lambda c: b" " * (1 << 21), "too large"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_configs(tmp_path, saved, name):
    change, words = CONFIGS[name]
    with pytest.raises(FileFormatError, match=words):
        load_with(tmp_path, saved, "config.json", change(saved["config.json"]))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model"):
        NeuralCA.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        NeuralCA.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        NeuralCA.load(tmp_path)


def test_models_that_cannot_be_saved(tmp_path):
    broken = make()
    with torch.no_grad():
        broken.update_net[0].bias[0] = float("inf")
    with pytest.raises(FileFormatError, match="NaN or infinite"):
        broken.save(tmp_path)
    odd = make()
    odd.metadata = {"target": object()}
    with pytest.raises(TypeError, match="JSON"):
        odd.save(tmp_path)
    assert os.listdir(tmp_path) == []
