"""Time several providers by turns in one process."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from bench.runners import Timed

FEWEST_ROUNDS = 3
MOST_ROUNDS = 40
_FLUSH_BYTES = 1 << 28
_REST = 0.05
"""Seconds before a run on a CPU, in which OpenMP's threads stop spinning for the run before."""


@dataclass(frozen=True)
class Times:
    """Seconds of every run of one provider, in the order of the rounds; the first call apart."""

    first: float
    rounds: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    def join(self, later: "Times") -> "Times":
        """Return the rounds of both, with the first call of this one."""
        return Times(self.first, self.rounds + later.rounds)


class Clock:
    """Time one run on a device: wall clock on a CPU, CUDA events with a cold L2 cache on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def measure(self, timed: Timed) -> float:
        """Return the seconds of one run."""
        timed.reset()
        if not self._cuda:
            time.sleep(_REST)
            start = time.perf_counter()
            timed.run()
            return time.perf_counter() - start
        self._flush.zero_()
        start_event, stop_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        timed.run()
        stop_event.record()
        stop_event.synchronize()
        return float(start_event.elapsed_time(stop_event)) / 1000


def interleave(
    clock: Clock, runs: dict[str, Timed], firsts: dict[str, float], seconds: float
) -> dict[str, Times]:
    """Run every provider once per round, in an order that rotates from round to round.

    Args:
        clock: of the device.
        runs: by provider; each has been called before.
        firsts: seconds of those first calls.
        seconds: the rounds end when this much time has passed, but not before `FEWEST_ROUNDS`,
            and at `MOST_ROUNDS`.

    Returns:
        The times, by provider.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    start = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(clock.measure(runs[name]))
    return {name: Times(firsts[name], rounds) for name, rounds in times.items()}


def ratios(baseline: Times, times: Times) -> tuple[float, float, float]:
    """Return median over median, and the lowest and highest ratio within one round."""
    each = [slow / fast for slow, fast in zip(baseline.rounds, times.rounds, strict=True)]
    return baseline.median / times.median, min(each), max(each)
