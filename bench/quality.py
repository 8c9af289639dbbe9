"""How long it takes to learn the circle: the tutorial's class against `fastnca`.

    python -m bench.quality [--csv FILE] [--size 16] [--seeds 0,1,2] [--iterations 2000]

Both are trained by the same pool trainer with the tutorial's recipe, from the same first weights,
with the same draws from the pool, the same numbers of steps and the same masks, so they go through
the same training but for rounding, which the alive threshold amplifies in the end. Reached is the
first iteration whose mean loss over the last `WINDOW` iterations is at most the goal. The
tutorial's masks are drawn before its clock starts. Both use `fastnca.get_visible_state`: with torch
2.15 the tutorial's own has no gradient where a seed's colours lie.

A grid smaller than the tutorial's 64x64 lets the case end: the target is the tutorial's circle,
drawn at that size. A run that does not reach the goal within its iterations says so.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

import torch
from torch import Tensor

from bench.machine import describe, keep_freed_memory
from bench.masks import injected_masks
from bench.providers import TutorialCA
from fastnca import NeuralCA, create_target_circle
from fastnca.masks import update_masks
from fastnca.training import PoolTrainer, TrainConfig

GOAL = 0.01
WINDOW = 20
OUTPUT = Path("runs/bench/quality.csv")


@dataclass(frozen=True)
class Result:
    """One training run.

    Attributes:
        provider: "tutorial" or "fastnca".
        size: height and width of the grid in cells.
        seed: of weights, pool, steps and masks.
        goal: mean loss to reach.
        window: iterations of that mean.
        reached: 1 if it was reached, 0 if not.
        iterations: until it was reached, or done in all.
        seconds: the same; masks that are drawn ahead for the tutorial are not counted.
        lowest: lowest mean loss of the run.
        machine and what follows: see `bench.machine.Machine`.
    """

    provider: str
    size: int
    seed: int
    goal: float
    window: int
    reached: int
    iterations: int
    seconds: float
    lowest: float
    machine: str
    threads: int
    torch: str
    commit: str


class MaskedTutorialCA(TutorialCA):
    """The tutorial's class with the masks of `fastnca.update_mask`.

    Attributes:
        drawing: seconds spent on drawing them.
    """

    drawing = 0.0

    def run_steps(
        self, state: Tensor, steps: int, update_rate: float = 0.5, *, seed: int | None = None
    ) -> Tensor:
        """Call the module `steps` times with the masks of `seed`."""
        start = time.perf_counter()
        assert seed is not None
        masks = update_masks(seed, 0, steps, state.shape, update_rate, state.device)
        self.drawing += time.perf_counter() - start
        with injected_masks(masks):
            return super().run_steps(state, steps, update_rate)


def train(
    provider: str, size: int, seed: int, config: TrainConfig, device: torch.device
) -> Iterator[tuple[float, float]]:
    """Train; yield the loss and the seconds of every iteration.

    Args:
        provider: "tutorial" or "fastnca".
        size: height and width of the grid.
        seed: of the first weights.
        config: the recipe, with its own seed.
        device: where it runs.
    """
    torch.manual_seed(seed)
    model = (MaskedTutorialCA() if provider == "tutorial" else NeuralCA()).to(device)
    trainer = PoolTrainer(model, create_target_circle(size).to(device), config)
    while True:
        before = getattr(model, "drawing", 0.0)
        result = trainer.step()
        yield result.loss, result.seconds - (getattr(model, "drawing", 0.0) - before)


def run(
    provider: str, size: int, seed: int, iterations: int, limit: float, device: torch.device
) -> tuple[bool, int, float, float]:
    """Train until the goal, `iterations` or `limit` seconds.

    Returns:
        Whether the goal was reached, iterations, seconds, lowest mean loss.
    """
    config = TrainConfig(iterations=iterations, seed=seed)
    losses: list[float] = []
    seconds, lowest = 0.0, float("inf")
    for loss, spent in train(provider, size, seed, config, device):
        losses.append(loss)
        seconds += spent
        if len(losses) >= WINDOW:
            lowest = min(lowest, sum(losses[-WINDOW:]) / WINDOW)
        if lowest <= GOAL or len(losses) >= iterations or seconds > limit:
            break
    return lowest <= GOAL, len(losses), seconds, lowest


def write_results(path: Path, results: list[Result]) -> None:
    """Write results as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(Result)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for result in results:
            line = asdict(result)
            writer.writerow({n: f"{v:.6g}" if type(v) is float else v for n, v in line.items()})


def read_results(path: Path) -> list[Result]:
    """Read what `write_results` wrote."""
    hints = get_type_hints(Result)
    with path.open(newline="") as file:
        return [
            Result(**{name: hints[name](text) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def main() -> int:
    """Train every seed with both, print and write what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", type=Path, default=OUTPUT)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds per run")
    options = parser.parse_args()
    if not all(seed.isdecimal() for seed in options.seeds.split(",")):
        parser.error(f"--seeds are numbers with commas between them, got {options.seeds!r}")
    if options.size < 1 or options.iterations < 1 or not options.limit > 0:
        parser.error("--size, --iterations and --limit must be positive")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe(device, keep_freed_memory())
    results = []
    for seed in map(int, options.seeds.split(",")):
        for provider in ("tutorial", "fastnca"):
            reached, iterations, seconds, lowest = run(
                provider, options.size, seed, options.iterations, options.limit, device
            )
            results.append(
                Result(
                    *(provider, options.size, seed, GOAL, WINDOW, int(reached), iterations),
                    *(seconds, lowest, machine.machine, machine.threads),
                    *(machine.torch, machine.commit),
                )
            )
            print(
                f"seed {seed}, {provider:<9} {'reached' if reached else 'not reached':<12}"
                f"{iterations:>5} iterations {seconds:>7.1f} s, lowest {lowest:.4f}",
                flush=True,
            )
            write_results(options.csv, results)
    print(f"written: {options.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
