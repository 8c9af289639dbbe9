"""Show that an iteration costs the same with a large pool, and that memory is as estimated.

    python -m tests.measure_pool [--slots 1000 100000] [--device cpu] [--iterations 60]

Iterations of the pools are timed by turns in one process; the peak memory of each is that of a
process of its own, beyond what the process held before the trainer was made.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from fastnca import NeuralCA, create_target_circle
from fastnca.training import PoolTrainer, TrainConfig
from fastnca.training.memory import describe
from tests.helpers import excite


def make(slots: int, device: str) -> PoolTrainer:
    """Make a trainer whose pool is alive everywhere, so that no pool is older than another."""
    torch.manual_seed(0)
    config = TrainConfig(pool_size=slots, batch_size=8, seed=0, learning_rate=1e-9)
    each = PoolTrainer(
        excite(NeuralCA()).to(device), create_target_circle(16, device=device), config
    )
    each.pool.states.uniform_()
    return each


def time_pools(slots: list[int], device: str, iterations: int) -> None:
    trainers = [make(count, device) for count in slots]
    times: list[list[float]] = [[] for _ in slots]
    for number in range(iterations + 10):
        for each in trainers:
            each.randomness.restore(trainers[0].randomness.state())  # the same number of steps
        for each, taken in zip(trainers, times, strict=True):
            start = time.perf_counter()
            each.step()
            if number >= 10:
                taken.append(time.perf_counter() - start)
    first = statistics.median(times[0])
    for count, taken in zip(slots, times, strict=True):
        middle = statistics.median(taken)
        print(f"{count:>9} states: {1e3 * middle:7.2f} ms per iteration, {middle / first:.3f} x")


def resident(field: str) -> int:
    """Read bytes from /proc/self/status: VmRSS is held now, VmHWM was held at the most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def measure_memory(slots: int, device: str, iterations: int) -> None:
    warm = make(8, device)
    for _ in range(3):
        warm.step()
    del warm
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    each = make(slots, device)
    for _ in range(iterations):
        each.step()
    used = (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before
    print(
        f"{slots:>9} states: {describe(used)} at the peak, estimate {describe(each.memory.total)} "
        f"({each.memory}), ratio {used / each.memory.total:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--memory", type=int, metavar="SLOTS", help="measure memory only")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory, arguments.device, arguments.iterations)
        return
    time_pools(arguments.slots, arguments.device, arguments.iterations)
    for slots in arguments.slots:
        own = [sys.executable, "-m", "tests.measure_pool", "--memory", str(slots)]
        options = ["--device", arguments.device, "--iterations", str(arguments.iterations)]
        subprocess.run([*own, *options], check=True)


if __name__ == "__main__":
    main()
