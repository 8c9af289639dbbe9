"""Show that an iteration costs the same with a large pool, and that memory is as estimated.

    python -m tests.measure_pool [--slots 1000 100000] [--device cpu] [--iterations 60]

Iterations of the pools are timed by turns in one process; the peak memory of each is that of a
process of its own, beyond what the process held before the trainer was made. Exits 1 if the largest
pool takes 10 % more time than the first one, or its memory is not within 10 % of the estimate.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from fastnca import NeuralCA, create_target_circle
from fastnca.memory import describe
from fastnca.training import PoolTrainer, TrainConfig
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


def time_pools(slots: list[int], device: str, iterations: int) -> float:
    """Print the times of the pools; return the ratio of the largest one to the first one."""
    trainers = [make(count, device) for count in slots]
    times: list[list[float]] = [[] for _ in slots]
    for number in range(iterations + 10):
        for each in trainers:
            each.sampler.restore(trainers[0].sampler.state())  # the same number of steps
        for each, taken in zip(trainers, times, strict=True):
            start = time.perf_counter()
            each.step()
            if number >= 10:
                taken.append(time.perf_counter() - start)
    medians = [statistics.median(taken) for taken in times]
    for count, middle in zip(slots, medians, strict=True):
        ratio = middle / medians[0]
        print(f"{count:>9} states: {1e3 * middle:7.2f} ms per iteration, {ratio:.3f} x")
    return medians[slots.index(max(slots))] / medians[0]


def resident(field: str) -> int:
    """Read bytes from /proc/self/status: VmRSS is held now, VmHWM was held at the most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def measure_memory(slots: int, device: str, iterations: int) -> float:
    """Print the peak memory of a pool beside the estimate; return their ratio."""
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
    ratio = used / each.memory.total
    print(
        f"{slots:>9} states: {describe(used)} at the peak, estimate {describe(each.memory.total)} "
        f"({each.memory}), ratio {ratio:.3f}"
    )
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--memory", type=int, metavar="SLOTS", help="measure memory only")
    arguments = parser.parse_args()
    if arguments.memory:
        ratio = measure_memory(arguments.memory, arguments.device, arguments.iterations)
        return 0 if 0.9 <= ratio <= 1.1 else 3
    wrong = time_pools(arguments.slots, arguments.device, arguments.iterations) > 1.1
    for slots in arguments.slots:
        own = [sys.executable, "-m", "tests.measure_pool", "--memory", str(slots)]
        options = ["--device", arguments.device, "--iterations", str(arguments.iterations)]
        code = subprocess.run([*own, *options], check=False).returncode
        wrong |= code not in (0, 3) or (code == 3 and slots == max(arguments.slots))
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
