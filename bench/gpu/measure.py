"""Times and memory of runs on a GPU, and the file that their rows are appended to."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu.results import WHERE, Row
from bench.machine import describe
from bench.runners import Timed
from bench.timing import Clock
from fastnca.backends.triton_fused import release_graphs

SECONDS = 1.0
FEWEST, MOST = 3, 30
"""Rounds; they end when `SECONDS` have passed."""


class Rows:
    """Appends rows to a file, each as soon as it is known."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._where = asdict(describe(device, False)) | {"cuda": torch.version.cuda or ""}

    def add(self, **values: object) -> None:
        """Write a row, and print it."""
        where = {name: self._where[name] for name in WHERE}
        row = asdict(Row(**values, **where))  # type: ignore[arg-type]
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(values), flush=True)


def measure(clock: Clock, timed: Timed, warm_ups: int, fewest: int = FEWEST) -> list[float]:
    """Return the milliseconds of runs, at least `fewest`, for about `SECONDS` seconds."""
    for _ in range(warm_ups):
        clock.measure(timed)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < fewest or (len(times) < MOST and time.perf_counter() - began < SECONDS):
        times.append(1e3 * clock.measure(timed))
    return times


class Memory:
    """Device memory taken between two moments: what torch reserved, captured graphs included.

    Args:
        device: where; a CPU has no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._before = 0
        if self._cuda:
            release_graphs()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_reserved()

    def peak(self) -> float | None:
        """Return the most MiB that were reserved since, beyond those at the beginning."""
        if not self._cuda:
            return None
        return (torch.cuda.max_memory_reserved() - self._before) / 2**20
