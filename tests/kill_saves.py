"""Kill a trainer while it saves, over and over, and look at what is left each time.

    python -m tests.kill_saves DIRECTORY KILLS POOL_SLOTS

One process imports torch once and forks the victims, which save as fast as they can and report
every checkpoint that was finished. Prints one JSON line: kills, kills that hit a save, checkpoints
that could not be read, resumes from an older checkpoint than the last one reported.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fastnca.training import RunDirectory
from tests.runs import advance, make_trainer


def save_for_ever(directory: Path, slots: int, report: int) -> None:
    """Continue the run, and report the number of every checkpoint that is complete."""
    each = make_trainer(pool_size=slots, size=16, keep=2)
    run = RunDirectory(directory)
    with run.hold():
        if run.has_checkpoints():
            run.resume(each)
        while True:
            advance(each, 1)
            run.save(each)
            os.write(report, f"{each.iteration}\n".encode())


def kill_one(directory: Path, slots: int, delay: float) -> int:
    """Let a victim work for `delay` seconds after its first report; return its last report."""
    reader, writer = os.pipe()
    victim = os.fork()
    if victim == 0:
        os.close(reader)
        try:
            save_for_ever(directory, slots, writer)
        finally:
            os._exit(1)  # only reached by an error: the parent sees that nothing was reported
    os.close(writer)
    first = os.read(reader, 4096)
    assert first, "the victim ended by itself"
    time.sleep(delay)
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    reported = first
    while piece := os.read(reader, 4096):
        reported += piece
    os.close(reader)
    return int(reported.split()[-1])


def main() -> None:
    directory, kills, slots = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    random.seed(0)
    counts = {"kills": kills, "during_save": 0, "unreadable": 0, "older": 0, "leftovers": 0}
    duration = 0.02
    for _ in range(kills):
        last = kill_one(directory, slots, random.uniform(0, 3 * duration))
        counts["during_save"] += bool(list(directory.glob(".ckpt-*.tmp")))
        start = time.perf_counter()
        each = make_trainer(pool_size=slots, size=16)
        run = RunDirectory(directory)
        try:
            with run.hold():
                counts["unreadable"] += bool(run.resume(each).notes)
        except (OSError, ValueError):
            counts["unreadable"] += 1
        counts["older"] += each.iteration < last
        counts["leftovers"] += bool(list(directory.glob(".ckpt-*.tmp")))
        duration = time.perf_counter() - start  # reading takes about as long as writing
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
