"""Runs: exact resume, checkpoints that are kept, skipped and named, one trainer at a time."""

import json
import os
import shutil
import signal

import pytest
import torch

from fastnca import FileFormatError, NeuralCA, create_target_circle, reference
from fastnca.storage import atomic, checkpoints
from fastnca.storage import runs as run_module
from fastnca.storage.lock import DirectoryInUseError, lock_directory
from fastnca.training import CheckpointError, ForcedStop, PoolTrainer, RunDirectory, TrainConfig
from tests.runs import advance, assert_same, make_trainer

RECIPES = {
    "tutorial": {},
    "default generator": {"seed": None},
    "regenerating": {"preset": "regenerating", "damage": 1},
    "growing": {"preset": "growing"},
    "half precision": {"half_pool": True},
    "host memory": {"pool_memory": "host", "preset": "persistent"},
    "micro-batches": {"micro_batches": 2},
}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", RECIPES)
def test_forty_iterations_are_twenty_and_twenty_more(memory_path, name):
    straight, first = make_trainer(**RECIPES[name]), make_trainer(**RECIPES[name])
    torch.manual_seed(4)
    advance(straight, 40)
    torch.manual_seed(4)
    advance(first, 20)
    first.save(memory_path)
    torch.rand(5)
    second = make_trainer(**RECIPES[name])
    second.resume(memory_path)
    assert second.iteration == 20
    if RECIPES[name].get("seed", 1) is not None:
        assert_same(second, first)
    advance(second, 20)
    assert_same(second, straight)


def test_resume_after_every_iteration_and_saving_disturbs_nothing(memory_path):
    straight, saved = make_trainer(), make_trainer(keep=99)
    run = RunDirectory(memory_path)
    for number in range(6):
        advance(straight, 1)
        advance(saved, 1)
        run.save(saved)
        assert_same(saved, straight)
        other = make_trainer()
        other.resume(memory_path)
        assert_same(other, straight)
        assert other.iteration == number + 1
        assert other.run_id == saved.run_id


def test_fit_saves_at_intervals_and_at_the_end(memory_path):
    each = make_trainer(iterations=7, save_interval=3, keep=5)
    run, seen = RunDirectory(memory_path), []
    each.fit(progress=False, run=run, callbacks=[lambda _: seen.append(names(memory_path))])
    assert [len(found) for found in seen] == [0, 0, 0, 1, 1, 1, 2]
    assert names(memory_path) == ["ckpt-00000003", "ckpt-00000006", "ckpt-00000007"]
    assert (memory_path / "latest").read_text() == "ckpt-00000007\n"
    assert not list(memory_path.glob(".ckpt*"))


def names(path):
    return sorted(p.name for p in path.glob("ckpt-*"))


def test_the_newest_and_the_best_are_kept(memory_path):
    each = make_trainer(keep=2)
    run = RunDirectory(memory_path)
    for losses in ([5.0] * 20, [0.1] * 20, [3.0] * 20, [4.0] * 20, [2.0] * 20):
        each.losses += losses
        each.iteration += 20
        run.save(each)
    assert names(memory_path) == ["ckpt-00000040", "ckpt-00000080", "ckpt-00000100"]
    assert (memory_path / "best").read_text() == "ckpt-00000040\n"
    assert (memory_path / "latest").read_text() == "ckpt-00000100\n"


def test_a_checkpoint_is_a_model(memory_path):
    each = make_trainer()
    advance(each, 2)
    each.save(memory_path)
    loaded = NeuralCA.load(memory_path / "ckpt-00000002")
    for name, value in each.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def save_some(path, iterations=(1, 2, 3)):
    """Save after each of `iterations`; return the trainer."""
    each = make_trainer(keep=99)
    for number in iterations:
        advance(each, number - each.iteration)
        each.save(path)
    return each


def test_a_damaged_checkpoint_is_skipped_named_and_set_aside(memory_path):
    save_some(memory_path)
    for number, file in ((3, "pool-00000-of-00001.safetensors"), (2, "manifest.json")):
        path = memory_path / f"ckpt-{number:08d}" / file
        path.write_bytes(path.read_bytes()[:-9])
    each = make_trainer()
    resumed = RunDirectory(memory_path).resume(each)
    assert (each.iteration, resumed.path.name) == (1, "ckpt-00000001")
    assert len(resumed.notes) == 2
    assert "ckpt-00000003/pool-00000-of-00001.safetensors: must have" in resumed.notes[0]
    assert "ckpt-00000002/manifest.json" in resumed.notes[1]
    assert names(memory_path) == ["ckpt-00000001"]
    assert len(list(memory_path.glob("damaged-ckpt-*"))) == 2
    advance(each, 2)
    each.save(memory_path)
    assert_same(each, load(memory_path))


def load(path):
    each = make_trainer()
    each.resume(path)
    return each


def test_without_an_intact_checkpoint_every_fault_is_named(memory_path):
    save_some(memory_path)
    for path in memory_path.glob("ckpt-*"):
        (path / "train.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"no checkpoint is intact.*0003.*0002.*0001"):
        load(memory_path)


def rewrite_manifest(path, **changes):
    """Change fields and give the manifest a checksum that fits: a crafted file."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    manifest["sha256"] = checkpoints.digest_header(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def foreign_shard(path):
    shutil.copy(
        path.parent / "ckpt-00000001" / "pool-00000-of-00001.safetensors",
        path / "pool-00000-of-00001.safetensors",
    )


def swap_files(path):
    (path / "model.safetensors").rename(path / "x")
    (path / "train.safetensors").rename(path / "model.safetensors")
    (path / "x").rename(path / "train.safetensors")


CRAFTED = {
    "foreign shard": (foreign_shard, "SHA-256 is not the manifest's"),
    "swapped files": (swap_files, "must have"),
    "missing shard": (
        lambda p: (p / "pool-00000-of-00001.safetensors").unlink(),
        "missing from the checkpoint",
    ),
    "missing manifest": (lambda p: (p / "manifest.json").unlink(), "not complete"),
    "newer": (lambda p: rewrite_manifest(p, format_version=2), "reads version 1"),
    "another kind": (lambda p: rewrite_manifest(p, format="x"), "not a fastnca-checkpoint"),
    "no files": (lambda p: rewrite_manifest(p, files=[]), "not a list of files"),
    "a path": (
        lambda p: rewrite_manifest(p, files={"../x": {"size": 1, "sha256": ""}}),
        "not a list of files",
    ),
    "not json": (lambda p: (p / "manifest.json").write_text("{"), "not a JSON file"),
    "deep": (lambda p: (p / "manifest.json").write_text("[" * 100_000), "not a JSON file"),
    "huge": (lambda p: (p / "manifest.json").write_text(" " * (1 << 21)), "too large"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_checkpoints_are_refused(memory_path, name):
    save_some(memory_path, (1, 2))
    change, words = CRAFTED[name]
    change(memory_path / "ckpt-00000002")
    each = make_trainer()
    notes = RunDirectory(memory_path).resume(each).notes
    assert each.iteration == 1
    assert words in notes[0]


BAD_FIELDS = {
    "iteration": ({"iteration": -1}, "'iteration' must be an integer"),
    "processes": ({"processes": 0}, "'processes' must be an integer"),
    "dtype": ({"dtype": "int8"}, "saved run has dtype int8"),
    "config": ({"config": 3}, "'config' must be an object"),
    "wrong size": ({"rule": {"hidden": [7]}}, r"hidden \[7\], this one \[6\]"),
    "no rule": ({"rule": 3}, "a rule must be a mapping"),
    "more processes": ({"processes": 2}, "no file|No such file"),
    "moments": ({"optimizer_steps": 0}, "unknown tensors"),
    "optimized": ({"optimized": ["x"]}, "'optimized' must list parameters"),
    "run": ({"run_id": 3}, "'run_id' must be text"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_manifests_that_verify_but_do_not_fit(memory_path, name):
    save_some(memory_path, (1,))
    changes, words = BAD_FIELDS[name]
    rewrite_manifest(memory_path / "ckpt-00000001", **changes)
    with pytest.raises((ValueError, OSError), match=words):
        load(memory_path)


def test_a_directory_belongs_to_one_run(memory_path):
    save_some(memory_path)
    with pytest.raises(FileExistsError, match=r"ckpt-0000000\d belongs to another run"):
        make_trainer().save(memory_path)


def test_what_is_saved_is_not_saved_again(memory_path):
    each = save_some(memory_path)
    manifest = memory_path / "ckpt-00000003" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    each.save(memory_path)
    assert manifest.stat().st_mtime_ns == before
    (memory_path / "ckpt-00000003" / "config.json").unlink()
    each.save(memory_path)  # but a damaged one is
    assert_same(each, load(memory_path))


def test_one_trainer_at_a_time(memory_path):
    each = make_trainer()
    words = f"process {os.getpid()} trains in this"
    with RunDirectory(memory_path).hold(), pytest.raises(DirectoryInUseError, match=words):
        each.save(memory_path)
    each.save(memory_path)
    (memory_path / ".lock").write_text("12345\n")  # of a process that was killed
    load(memory_path)
    with lock_directory(memory_path), pytest.raises(DirectoryInUseError):
        load(memory_path)


def test_leftovers_are_removed_at_the_next_start(memory_path):
    save_some(memory_path)
    (memory_path / ".ckpt-00000009.tmp").mkdir()
    (memory_path / ".ckpt-00000009.tmp" / "pool").write_text("killed")
    load(memory_path)
    assert not list(memory_path.glob(".ckpt*"))


def test_every_file_is_on_the_disk_before_it_counts(memory_path, monkeypatch):
    calls = []
    opened = {}
    for name in ("open", "fsync", "rename", "replace"):
        real = getattr(os, name)

        def spy(first, *arguments, _name=name, _real=real, **options):
            result = _real(first, *arguments, **options)
            if _name == "open":
                opened[result] = os.fspath(first)
            what = opened[first] if _name == "fsync" else os.fspath(first)
            calls.append((_name, what.rsplit("/", 1)[-1]))
            return result

        monkeypatch.setattr(os, name, spy)
    each = make_trainer()
    RunDirectory(memory_path).save(each)
    order = [call for call in calls if call[0] != "open"]
    rename = order.index(("rename", ".ckpt-00000000.tmp"))
    for file in ("pool-00000-of-00001.safetensors", "train.safetensors"):
        assert order.index(("fsync", file)) < order.index(("fsync", "manifest.json"))
    assert [name for name, _ in order[:rename]].count("replace") == 2  # config and weights
    assert order[rename - 2 : rename + 2] == [
        ("fsync", "manifest.json"),
        ("fsync", ".ckpt-00000000.tmp"),
        ("rename", ".ckpt-00000000.tmp"),
        ("fsync", memory_path.name),
    ]
    named = [name for call, name in order[rename:] if call == "replace"]
    assert [name.split(".")[1] for name in named] == ["latest", "best"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_follow_the_umask(memory_path, umask):
    before = os.umask(umask)
    try:
        make_trainer().save(memory_path / "run")
    finally:
        os.umask(before)
    for path in (memory_path / "run").rglob("*"):
        full = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == full & ~umask


def test_places_where_nothing_can_be_saved(memory_path):
    (memory_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        make_trainer().save(memory_path / "file")
    with pytest.raises(OSError, match="file"):
        make_trainer().save(memory_path / "file" / "run")


def test_weights_that_are_not_finite_are_not_saved(memory_path):
    each = save_some(memory_path)
    advance(each, 1)
    with torch.no_grad():
        each.model.update_net[2].bias[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"'update_net\.2\.bias' holds NaN or infinite"):
        each.save(memory_path)
    assert load(memory_path).iteration == 3


def test_a_model_that_no_file_can_hold_is_refused_before_the_first_iteration(memory_path):
    unnamed = make_trainer()
    unnamed.model.metadata = {"target": object()}
    plain = PoolTrainer(reference.NeuralCA(8, 6), create_target_circle(8), TrainConfig())
    for each, words in ((unnamed, "not JSON"), (plain, "got a fastnca.reference.NeuralCA")):
        with pytest.raises(TypeError, match=words):
            each.fit(progress=False, run=RunDirectory(memory_path))
        assert each.iteration == 0


def test_a_run_goes_on_when_it_cannot_save_and_stops_after_three_times(
    memory_path, monkeypatch, capsys
):
    each = make_trainer(iterations=40, save_interval=5)
    run = RunDirectory(memory_path)
    broken = [False]

    def write_file(path, chunks):
        if broken[0]:
            raise OSError(28, "No space left on device")
        return atomic.write_file(path, chunks)

    def watch(result):
        broken[0] = result.iteration in range(8, 13) or result.iteration > 17

    monkeypatch.setattr(run_module, "write_file", write_file)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        each.fit(progress=False, run=run, callbacks=[watch])
    assert each.iteration == 30  # 20, 25 and 30 failed; 10 did, too, but 15 did not
    assert names(memory_path) == ["ckpt-00000005", "ckpt-00000015"]
    said = capsys.readouterr().err
    assert said.count("training goes on") == 3
    assert str(memory_path) in said
    assert "free on that disk" in str(caught.value)
    assert load(memory_path).iteration == 15


@pytest.mark.one_in(4)
@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize("where", ["step", "save"])
@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)],
)
@pytest.mark.parametrize("moment", range(10))
def test_a_signal_at_any_moment_saves_once(
    memory_path, monkeypatch, where, number, error, code, moment
):
    each = make_trainer(iterations=30, save_interval=4, keep=99)
    writes = [0]

    def interrupt(real):
        def call(*arguments, **options):
            writes[0] += 1
            if writes[0] == moment + 1:
                os.kill(os.getpid(), number)
            return real(*arguments, **options)

        return call

    if where == "step":
        monkeypatch.setattr(each.model, "run_steps", interrupt(each.model.run_steps))
    else:
        monkeypatch.setattr(atomic.os, "write", interrupt(os.write))
    with pytest.raises(error) as caught:
        each.fit(progress=False, run=RunDirectory(memory_path))
    if code is not None:
        assert caught.value.code == code
    assert each.iteration < 30
    assert names(memory_path)[-1] == f"ckpt-{each.iteration:08d}"
    assert_same(each, load(memory_path))


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
def test_a_signal_during_the_last_save_is_obeyed_after_it(memory_path, monkeypatch):
    each = make_trainer(iterations=3)
    real = os.write

    def write(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(atomic.os, "write", real)
        return real(*arguments)

    monkeypatch.setattr(atomic.os, "write", write)
    with pytest.raises(SystemExit) as caught:
        each.fit(progress=False, run=RunDirectory(memory_path))
    assert caught.value.code == 143
    assert load(memory_path).iteration == 3


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
def test_asked_twice_it_leaves_at_once(memory_path, monkeypatch):
    each = make_trainer(iterations=30, save_interval=4)
    real, count = os.write, [0]

    def write(*arguments):
        count[0] += each.iteration == 8
        if count[0] in (2, 3):  # in the second checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(atomic.os, "write", write)
    with pytest.raises(ForcedStop):
        each.fit(progress=False, run=RunDirectory(memory_path))
    assert each.iteration == 8
    assert load(memory_path).iteration == 4
