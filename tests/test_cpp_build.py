"""How the C++ kernels are compiled, kept, found again, and what happens when they cannot be."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastnca import BackendError, NeuralCA
from fastnca.backends.choose import choose_backend
from fastnca.backends.cpp import build, cpp_reasons, library
from fastnca.commands.parser import main
from tests.helpers import COMPILED

ROOT = Path(__file__).parent.parent
STATE = torch.rand(1, 16, 5, 5)
HOUR = 3600
START = (
    "import torch; from fastnca.backends.cpp import build\n"
    "print(build.cpp_library(torch.float64)._name)"
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forget what was built, so that it is looked for again, in a directory of the test's own."""
    monkeypatch.setenv(build.DIRECTORY, str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield tmp_path / "cache"
    forget()


def forget():
    for function in (build._load, build._temporary, library._library):
        function.cache_clear()


@pytest.fixture
def quick(fresh, monkeypatch, tmp_path):
    """Take a compiler that makes an empty library in no time, and lists where it wrote it."""
    source = tmp_path / "empty.cpp"
    source.write_text("")
    body = (
        'case "$*" in *-dM*) exit 0;; esac\n'
        'for word in "$@"; do last=$word; done\n'
        f'{build._compiler()[0]} -shared -o "$last" {source}\n'
        f'echo "$last" >> {tmp_path}/log\n'
        f"while [ $(wc -l < {tmp_path}/log) -lt ${{AWAITED:-1}} ]; do sleep 0.1; done"
    )
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", body))
    return fresh


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def load():
    """Load the library as a new process would; return its path."""
    forget()
    assert cpp_reasons(torch.float32) == ()
    return Path(build.cpp_library(torch.float32)._name)


def outputs(directory):
    """Return what the compiler of `quick` was told to write."""
    return [Path(line) for line in (directory.parent / "log").read_text().splitlines()]


def age(path, hours):
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))


@pytest.mark.long
@COMPILED
def test_libraries_are_built_once_and_kept(fresh, caplog):
    with caplog.at_level("INFO", logger="fastnca"):
        assert cpp_reasons(torch.float64) == ()
        (built,) = fresh.iterdir()
        assert caplog.text.count("compiled") == 1
        written = built.read_bytes()
        build._load.cache_clear()
        assert cpp_reasons(torch.float64) == ()
    assert caplog.text.count("compiled") == 1
    assert [path.read_bytes() for path in fresh.iterdir()] == [written]
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700


def test_without_a_compiler_auto_is_torch(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level("INFO", logger="fastnca"):
        assert choose_backend(NeuralCA(), "auto", "auto", STATE) == "torch"
    assert "no C++ compiler (looked for no-such-compiler)" in caplog.text
    with pytest.raises(BackendError, match="no C\\+\\+ compiler"):
        NeuralCA(backend="cpp")(STATE)
    assert not list(fresh.parent.iterdir())


BROKEN = {
    "it refuses every option": ("echo bad option >&2; exit 1", "does not work: bad option"),
    "it fails on the sources": (
        'case "$*" in *-dM*) exit 0;; esac; for o in "$@"; do last=$o; done; echo x > "$last"; '
        "echo rollout.cpp: error: no >&2; exit 1",
        "failed: rollout.cpp: error: no",
    ),
    "it makes no library": (
        'case "$*" in *-dM*) exit 0;; esac; for o in "$@"; do last=$o; done; echo x > "$last"',
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_compiler_is_a_reason(fresh, monkeypatch, tmp_path, name):
    body, words = BROKEN[name]
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", body))
    (reason,) = cpp_reasons(torch.float32)
    assert words in reason
    assert choose_backend(NeuralCA(), "auto", "auto", STATE) == "torch"
    assert not list(fresh.glob(".*.tmp"))


def test_a_compiler_with_an_open_quotation_mark_is_a_reason(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '-O2")
    assert cpp_reasons(torch.float32) == ("CXX=g++ '-O2 is no command: No closing quotation",)


def test_it_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    assert choose_backend(NeuralCA(), "auto", "auto", STATE) == "torch"
    with pytest.raises(BackendError, match="switched off by FASTNCA_CPP=0"):
        NeuralCA(backend="cpp").run_steps(STATE, 2)


def test_a_directory_that_others_can_write_into_is_refused(fresh):
    fresh.mkdir()
    fresh.chmod(0o777)
    (reason,) = cpp_reasons(torch.float32)
    assert "others can write into it" in reason


@pytest.mark.long
@COMPILED
def test_without_a_home_the_library_lasts_as_long_as_the_process(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv(build.DIRECTORY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cpp_reasons(torch.float64) == ()
    assert [path.suffix for path in build._temporary().iterdir()] == [".so"]


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "one bit turned": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
}


@COMPILED
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_is_compiled_again(quick, damage, caplog):
    good = load()
    data = good.read_bytes()
    broken = good.with_name("broken")
    broken.write_bytes(damage(data))
    os.replace(broken, good)
    with good.open("rb") as held, caplog.at_level("INFO", logger="fastnca"):
        assert load() == good
        assert held.read() == damage(data)  # the file that others have open is not written
    assert good.read_bytes() == data
    assert len(outputs(quick)) == 2
    assert f"not taken from {good}: it is damaged" in caplog.text


@pytest.mark.long
@COMPILED
def test_a_library_that_was_cut_kills_no_later_process(quick):
    """Without the digest the system does: SIGBUS."""
    for _ in range(2):
        said = subprocess.run([sys.executable, "-c", START], cwd=ROOT, stdout=subprocess.PIPE)
        assert said.returncode == 0
        path = Path(said.stdout.decode().strip())
        path.write_bytes(path.read_bytes()[:5000])


@COMPILED
def test_the_disk_has_a_library_before_its_name(quick, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (events.append("fsync"), fsync(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("replace"), replace(*a)))
    load()
    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.long
@COMPILED
def test_two_processes_may_compile_at_the_same_time(quick, monkeypatch):
    monkeypatch.setenv("AWAITED", "2")  # compilers that are done before one returns
    command = [sys.executable, "-c", START]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    said = {process.communicate(timeout=120)[0].decode().strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert said == {str(path) for path in quick.iterdir()}


@COMPILED
def test_leftovers_of_killed_processes_and_old_libraries_go(quick):
    library = load()
    (killed,) = outputs(quick)
    leftovers = [killed, quick / "tmpabcd_123.so"]
    unused, mine = quick / f"rollout-float-{'0' * 24}.so", quick / "mine.so"
    for path in (*leftovers, unused, mine):
        path.write_bytes(b"")
    load()
    assert set(quick.iterdir()) == {library, *leftovers, unused, mine}
    for path in leftovers:
        age(path, 2)
    for path in (library, unused, mine):
        age(path, 61 * 24)
    load()
    assert set(quick.iterdir()) == {library, mine}
    assert time.time() - library.stat().st_mtime < HOUR


@COMPILED
def test_a_directory_that_cannot_be_written_serves_the_library_in_it(quick, monkeypatch):
    library = load()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert load() == library
    library.unlink()
    forget()
    assert "it cannot be written" in cpp_reasons(torch.float32)[0]
    monkeypatch.delenv(build.DIRECTORY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(quick.parent))
    assert load().parent == build._temporary()


@COMPILED
def test_a_library_that_others_can_write_into_is_compiled_again(quick):
    library = load()
    assert stat.S_IMODE(library.stat().st_mode) == 0o644
    library.chmod(0o664)
    assert load() == library
    assert stat.S_IMODE(library.stat().st_mode) == 0o644
    assert len(outputs(quick)) == 2


@COMPILED
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to others")
def test_the_directory_is_this_user_s_or_that_of_root(quick, monkeypatch):
    library = load()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert load() == library
    assert len(outputs(quick)) == 1
    os.chown(quick, 12346, -1)
    forget()
    assert "others can write into it" in cpp_reasons(torch.float32)[0]


@COMPILED
@pytest.mark.parametrize("name", ["~/there", "there", "."])
def test_the_directory_may_be_in_the_home_or_below_the_working_directory(
    quick, monkeypatch, tmp_path, name
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(build.DIRECTORY, name)
    assert load().parent == tmp_path / ("there" if "there" in name else "")


@COMPILED
def test_info_names_the_library_and_a_backend_that_there_is_not(quick, monkeypatch, capsys):
    monkeypatch.setenv("FASTNCA_BACKEND", "cuda")
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"compiled as {build.cpp_library(torch.float32)._name}\n" in said
    assert f"CXX                {os.environ['CXX']}\n" in said
    assert "FASTNCA_CPP        not set\n" in said
    assert "FASTNCA_BACKEND must be one of auto, reference, torch, cpp, triton, got 'cuda'" in said
