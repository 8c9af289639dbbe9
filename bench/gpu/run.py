"""Run the parts one after the other, each within its limit, and save everything after each.

    bash bench/gpu.sh [--rehearse] [--minutes 8] OUTDIR [PART ...]

Logs are written where the parts run; OUTDIR holds four files that are replaced as a whole, so that
whatever happens later, what was found before is there. A part that is stopped is killed with all
of its processes.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from bench.gpu.parts import PARTS, Part
from bench.gpu.results import ROOT, read_rows, summary

FEWEST_SECONDS = 10
"""A part with less time left is not begun."""

GRACE = 5
"""Seconds between asking a part to stop and killing it."""

PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        part: its name.
        status: "passed", "failed", "stopped" at its limit, or "skipped".
        reason: why, if it did not pass.
        seconds: how long it took.
        tests: how many ran, skipped ones left out; 0 if it is not a part of tests.
        failures: how many of them failed.
        skips: how many were skipped.
    """

    part: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    tests: int = 0
    failures: int = 0
    skips: int = 0


def run_part(part: Part, folder: Path, rehearse: bool, seconds: float) -> Outcome:
    """Run one part.

    Args:
        part: the part.
        folder: for its log and its files.
        rehearse: whether it is rehearsed on a CPU.
        seconds: after which it is stopped.
    """
    if part.tool and shutil.which(part.tool) is None and not rehearse:
        return Outcome(part.name, SKIPPED, f"{part.tool} is not installed")
    environment = {**os.environ, **dict(part.environment)}
    started = time.monotonic()
    status, reason = PASSED, ""
    with (folder / f"{part.name}.log").open("w") as log:
        for command in part.commands(str(folder), rehearse):
            log.write(f"+ {' '.join(command)}\n")
            log.flush()
            left = seconds - (time.monotonic() - started)
            code = _run(command, environment, log, left)
            if code is None:
                status, reason = STOPPED, f"stopped after {seconds:.0f} s"
                break
            if code:
                status, reason = FAILED, f"exit status {code}"
                break
    counted = _count(folder / f"{part.name}.jsonl")
    if status == PASSED and counted and counted[0] == 0:
        status, reason = FAILED, "every test was skipped"
    return Outcome(part.name, status, reason, time.monotonic() - started, *counted)


def _hear_interrupts() -> None:
    """Let SIGINT interrupt this process; what a shell runs in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(
    command: list[str], environment: dict[str, str], log: TextIO, seconds: float
) -> int | None:
    """Run a command and return its exit status, None if it had to be stopped.

    It is interrupted first, so that pytest still says what failed.
    """
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        return None
    finally:
        with suppress(ProcessLookupError):  # what a worker has left running
            os.killpg(process.pid, signal.SIGKILL)


def _count(reports: Path) -> tuple[int, ...]:
    """Return run, failed and skipped tests; nothing without the file of `bench.gpu.reports`."""
    if not reports.exists():
        return ()
    found: Counter[str] = Counter()
    for line in reports.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # cut off by a kill
            found[json.loads(line)["outcome"]] += 1
    return found["passed"] + found["failed"], found["failed"], found["skipped"]


def save(folder: Path, out: Path, outcomes: list[Outcome], rehearse: bool) -> None:
    """Write the four files of `out`, each by one rename."""
    rows = read_rows(folder / "rows.jsonl")
    with (folder / "parts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
        writer.writeheader()
        writer.writerows(asdict(outcome) for outcome in outcomes)
    parts = {outcome.part: asdict(outcome) for outcome in outcomes}
    (folder / "summary.md").write_text(summary(rows, parts, rehearse))
    (folder / "rows.jsonl").touch()
    archive = folder.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "gpu")
    for source, name in [
        *((folder / name, name) for name in ("rows.jsonl", "parts.csv", "summary.md")),
        (archive, "gpu.tar.gz"),
    ]:
        partial = out / f".{name}.partial"
        shutil.copyfile(source, partial)
        partial.replace(out / name)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return the number of parts that failed or were stopped."""
    parser = argparse.ArgumentParser(
        prog="bash bench/gpu.sh",
        description="Prove and time the fused kernels on a CUDA GPU.",
        epilog="parts:\n" + "\n".join(f"  {p.name:11} {p.what}" for p in PARTS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUTDIR", help="folder for the results")
    parser.add_argument("parts", nargs="*", metavar="PART", help="all of them by default")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole run; default 8")
    parser.add_argument("--rehearse", action="store_true", help="the same parts on a CPU")
    options = parser.parse_intermixed_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary, "gpu")
        folder.mkdir()
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(temporary, "triton")))
        os.environ |= {
            "FASTNCA_CPP": "0",  # nothing here runs on the C++ backend
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is deterministic with it
            "PYTHONUNBUFFERED": "1",
        }
        if options.rehearse:
            os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        for name in options.parts or PARTS:
            left = deadline - time.monotonic()
            if left < FEWEST_SECONDS:
                outcome = Outcome(name, SKIPPED, "no time was left")
            else:
                outcome = run_part(
                    PARTS[name], folder, options.rehearse, min(left, PARTS[name].limit)
                )
            outcomes.append(outcome)
            save(folder, options.out, outcomes, options.rehearse)
            print(f"{name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.reason}", flush=True)
    print((options.out / "summary.md").read_text())
    return sum(outcome.status in (FAILED, STOPPED) for outcome in outcomes)
