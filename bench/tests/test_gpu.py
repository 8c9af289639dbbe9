"""`bench/gpu.sh`: its rehearsal, what it does with parts that fail or hang, and its results."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bench import sections
from bench.gpu import results, run, timing
from bench.gpu.measure import Rows
from bench.gpu.parts import PARTS, Part, _suite
from bench.gpu.results import Row
from bench.results import read_csv

ROOT = Path(__file__).parents[2]
INTERPRETED = not torch.cuda.is_available()
FILES = {"rows.jsonl", "parts.csv", "summary.md", "gpu.tar.gz"}
GPU = {"machine": "NVIDIA H100", "device": "cuda", "cuda": "13.0", "torch": "2.11.0"}
GPU |= {"triton": "3.6.0", "python": "3.12.3", "fastnca": "0.1.0", "commit": "unknown"}


def script(name: str, code: str, limit: float = 30, **options) -> Part:
    """Make a part that runs Python code."""
    command = [sys.executable, "-c", code]
    return Part(name, "", limit, lambda folder, rehearse: [[*command, folder]], **options)


def members(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return {Path(name).name for name in tar.getnames() if name != "gpu"}


@pytest.mark.long
@pytest.mark.skipif(not INTERPRETED, reason="a rehearsal is for machines without a GPU")
def test_the_rehearsal_goes_through_every_part(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--rehearse", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tmp_path /= "out"
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert members(tmp_path / "gpu.tar.gz") == {
        *(f"{name}.log" for name in PARTS),
        *(FILES - {"gpu.tar.gz"}),
    }
    with (tmp_path / "parts.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [line["part"] for line in found] == list(PARTS)
    assert {line["status"] for line in found} == {"passed"}
    rows = results.read_rows(tmp_path / "rows.jsonl")
    kinds = {(row.provider, row.mode) for row in rows}
    for provider in ("tutorial", "compile", "launched", "replayed"):
        assert {(provider, mode) for mode in ("rollout", "rollout+backward", "training")} <= kinds
    for provider in ("texture, launched", "texture, replayed"):
        assert {(provider, mode) for mode in ("rollout", "rollout+backward")} <= kinds
    assert {("launch, table", "forward"), ("launch, table", "backward")} <= kinds
    assert {("launched", "step, host"), ("launched", "step backward, host")} <= kinds
    assert {row.status for row in rows} == {"ok"}
    text = (tmp_path / "summary.md").read_text()
    assert "rehearsal" in text.splitlines()[0]
    assert "Parity" not in text
    with pytest.raises(ValueError, match="rehearsal"):
        results.collect(tmp_path)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    """Return what replaces the parts, and keeps the environment as it is."""

    def put(*made: Part) -> None:
        monkeypatch.setattr(run, "PARTS", {part.name: part for part in made})
        monkeypatch.setattr(os, "environ", dict(os.environ))

    return put


def outcomes(out: Path) -> dict[str, dict[str, str]]:
    return results.read_parts(out / "parts.csv")


def test_everything_is_saved_after_each_part(tmp_path: Path, parts) -> None:
    """The last part looks at what those before it have left in OUTDIR."""
    out = tmp_path / "out"
    look = f"import os, sys, tarfile; names = tarfile.open({str(out / 'gpu.tar.gz')!r}).getnames()"
    look += "; sys.exit(0 if {'gpu/first.log', 'gpu/second.log', 'gpu/made'} <= set(names) else 3)"
    parts(
        script("first", "import sys; open(sys.argv[1] + '/made', 'w')"),
        script("second", "print('no'); raise SystemExit(2)"),
        script("third", look),
    )
    assert run.main([str(out)]) == 1
    found = outcomes(out)
    assert {name: part["status"] for name, part in found.items()} == {
        "first": "passed",
        "second": "failed",
        "third": "passed",
    }
    assert found["second"]["reason"] == "exit status 2"
    assert "| second | failed |" in (out / "summary.md").read_text()
    assert not list(out.glob(".*"))


@pytest.mark.long
def test_a_part_that_hangs_is_killed_with_its_children(tmp_path: Path, parts, monkeypatch) -> None:
    monkeypatch.setattr(run, "GRACE", 0.5)
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(sys.argv[1] + '/child', 'w').write(str(child.pid))\n"
        "print('before', flush=True)\n"
        "time.sleep(600)\n"
    )
    parts(script("hangs", code, limit=3), script("after", "print('after')"))
    assert run.main([str(tmp_path)]) == 1
    assert outcomes(tmp_path)["hangs"]["status"] == "stopped"
    assert outcomes(tmp_path)["after"]["status"] == "passed"
    with tarfile.open(tmp_path / "gpu.tar.gz") as tar:
        log, child = (tar.extractfile(f"gpu/{n}").read().decode() for n in ("hangs.log", "child"))
    assert log.endswith("before\n")
    state = Path(f"/proc/{child}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def test_parts_without_their_tool_and_without_time_are_skipped(tmp_path: Path, parts) -> None:
    missing = script("tool", "raise SystemExit(1)", tool="no-such-profiler")
    parts(missing, script("late", "raise SystemExit(1)"))
    assert run.main([str(tmp_path), "tool", "--minutes", "1"]) == 0
    assert outcomes(tmp_path)["tool"]["reason"] == "no-such-profiler is not installed"
    assert run.main([str(tmp_path), "late", "--minutes", "0.1"]) == 0
    assert outcomes(tmp_path)["late"]["reason"] == "no time was left"


def test_an_unknown_part_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run.main([str(tmp_path), "parity", "races"])
    assert "unknown part races; there are smoke, parity" in capsys.readouterr().err


SUITE = """
import time
import pytest

def test_right():
    pass

def test_wrong():
    assert 1 == 2

@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.skipif(not {hangs}, reason="nothing is to hang")
def test_that_hangs():
    time.sleep(600)
"""


@pytest.fixture
def suite(tmp_path: Path, parts, monkeypatch):
    """Return what makes and runs a part of tests, and returns what became of it."""

    def put(chosen: str, hangs: bool = False, limit: float = 30) -> dict[str, str]:
        (tmp_path / "test_suite.py").write_text(SUITE.format(hangs=hangs))
        monkeypatch.setattr("bench.gpu.parts.TESTS", str(tmp_path))
        parts(Part("suite", "", limit, _suite("suite", ["test_suite.py"], chosen)))
        run.main([str(tmp_path)])
        return outcomes(tmp_path)["suite"]

    return put


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("chosen", "status", "reason", "counts"),
    [
        ("test_right or test_skipped", "passed", "", ("1", "0", "1")),
        ("test_right or test_wrong", "failed", "exit status 1", ("2", "1", "0")),
        ("test_skipped", "failed", "every test was skipped", ("0", "0", "1")),
    ],
    ids=["pass", "fail", "skip"],  # part of the folder's name, which -k looks at, too
)
def test_tests_are_counted(chosen, status, reason, counts, suite) -> None:
    found = suite(chosen)
    assert (found["status"], found["reason"]) == (status, reason)
    assert (found["tests"], found["failures"], found["skips"]) == counts


@pytest.mark.long
def test_a_part_that_is_stopped_has_said_what_failed(suite, tmp_path: Path) -> None:
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        found = suite("test", hangs=True, limit=15)
    finally:
        signal.signal(signal.SIGINT, heard)
    assert (found["status"], found["tests"], found["failures"]) == ("stopped", "2", "1")
    with tarfile.open(tmp_path / "gpu.tar.gz") as tar:
        log, reports = (
            tar.extractfile(f"gpu/{name}").read().decode() for name in ("suite.log", "suite.jsonl")
        )
    assert "assert 1 == 2" in log  # pytest was interrupted, not killed
    lines = [json.loads(line) for line in reports.splitlines()]
    (wrong,) = (line for line in lines if "wrong" in line["test"])
    assert "assert 1 == 2" in wrong["reason"]


def make_run(folder: Path, **status: str) -> list[Row]:
    """Leave what a run on a GPU leaves; parts pass unless they are said not to."""
    rows = [
        Row(provider, mode, batch, 64, 80, rounds=9, **GPU, **numbers)
        for batch in (8, 64)
        for provider, speed in (("tutorial", 1.0), ("replayed", 20.0))
        for mode, numbers in (
            ("rollout", {"milliseconds": 4 / speed, "picoseconds_per_cell_step": 1500 / speed}),
            ("rollout+backward", {"milliseconds": 9.0, "picoseconds_per_cell_step": 3e3 / speed}),
            (
                "training",
                {
                    "milliseconds": 40 / speed,
                    "milliseconds_low": 39 / speed,
                    "milliseconds_high": 42 / speed,
                    "memory_mib": 800 / speed,
                },
            ),
        )
    ]
    rows.append(Row("compile", "training", 64, 64, 80, "failed", "CUDA out of memory", **GPU))
    lines = [json.dumps(asdict(row)) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + '\n{"provider": "cut o')
    found = [
        run.Outcome(name, status.get(name, "passed")) for name in PARTS if status.get(name) != ""
    ]
    with (folder / "parts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(found[0])))
        writer.writeheader()
        writer.writerows(map(asdict, found))
    return rows


def test_rows_of_a_run_are_written_and_shown(tmp_path: Path, monkeypatch) -> None:
    rows = make_run(tmp_path)
    written: list[str] = []
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr("bench.pages.write_text", lambda: written.append("README"))
    assert results.main([str(tmp_path), "--commit", "abc1234"]) == 0
    assert written == ["README"]
    found = read_csv(tmp_path / "gpu-h100.csv", Row)
    assert found == [replace(row, commit="abc1234") for row in rows]
    text = sections.gpu(found, "bench/results/gpu-h100.csv")
    assert "NVIDIA H100, CUDA 13.0, torch 2.11.0, triton 3.6.0" in text
    assert "commit abc1234" in text
    assert "| replayed | 8 | 75 | 150 |" in text
    assert "| replayed | 64 | 2 (1.95 to 2.1) | 20.0 | 40 |" in text
    assert "| compile | 64 | CUDA out of memory |" in text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"parity": "failed"}, "parity failed"),
        ({"smoke": "stopped"}, "smoke stopped"),
        ({"parity": ""}, "parity not run"),
    ],
)
def test_numbers_that_were_not_proved_are_refused(status, said, tmp_path: Path, capsys) -> None:
    make_run(tmp_path, **status)
    assert results.main([str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
    rows, parts = results.read_rows(tmp_path / "rows.jsonl"), outcomes(tmp_path)
    assert f"Parity: **{said}**" in results.summary(rows, parts, rehearse=False)


def test_parts_that_only_measure_need_not_pass(tmp_path: Path) -> None:
    make_run(tmp_path, ncu="failed", offsets="stopped")
    assert results.collect(tmp_path)


def test_a_run_without_rows_is_refused(tmp_path: Path, capsys) -> None:
    assert results.main([str(tmp_path)]) == 1
    assert "has no rows" in capsys.readouterr().err


def test_a_provider_whose_rollout_is_wrong_gets_no_time(tmp_path: Path, monkeypatch) -> None:
    """Nor do its gradients, whose time is what they add to that of the rollout."""
    device = torch.device("cpu")
    rows = Rows(tmp_path / "rows.jsonl", device)
    monkeypatch.setattr(timing, "check", fail)
    weights = timing.make_weights(device)
    timing.measure_provider("launched", 1, timing.REHEARSED, rows, weights, device)
    (row,) = results.read_rows(tmp_path / "rows.jsonl")
    assert (row.mode, row.status, row.milliseconds) == ("rollout", "failed", None)
    assert row.reason == "the result differs"


def fail(*_: object) -> None:
    raise RuntimeError("the result differs")
