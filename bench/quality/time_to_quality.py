"""How good the default recipe is, and how long it takes: `fastnca` against the tutorial's class.

    python -m bench quality [--csv FILE] [--models FOLDER] [--targets circle,heart] [--seeds 0-9]
        [--preset quick]

Trains as `fastnca train` does, with the same first weights, draws and masks, and judges the saved
model by `bench.quality.judge`. Every `EVERY` iterations of the second half the averaged weights are
judged too: the first time at which all bounds hold is the time to quality. Judging is not on the
clock.

The tutorial's class with the same recipe would take the same iterations, so its time is projected:
the steps of those rollouts times the measured seconds of one step, forward and backward, of the
tutorial's class on the same batch. Runs that are in the file already are not repeated.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from bench.machine import describe, keep_freed_memory
from bench.providers import TutorialCA
from bench.quality.judge import Judgement, fit, judge
from bench.results import read_if_there, write_csv
from fastnca import NeuralCA
from fastnca.commands.target import make_target
from fastnca.states import get_visible_state
from fastnca.training import (
    DEFAULT_PRESET,
    PRESETS,
    Callback,
    EmaTracker,
    PoolTrainer,
    TrainConfig,
)
from fastnca.training.callbacks import StepResult

EVERY = 100
OUTPUT = Path("runs/bench/quality.csv")
_ROUNDS, _STEPS = 3, 16  # of the tutorial's class


@dataclass(frozen=True)
class Result(Judgement):
    """One training run, and what the model that it saved does.

    Attributes:
        target: name or picture file.
        size: height and width of the grid in cells.
        seed: of weights, pool, steps and masks.
        preset: the recipe.
        ended: "done", "collapsed" or "diverged".
        repairs: how often the trainer went back to earlier weights.
        iterations: done in all.
        seconds: of training.
        reached: iterations after which all bounds held for the first time; 0 if they never did.
        reached_seconds: the same; 0 if they never did.
        tutorial_seconds: projected time of the tutorial's class for `reached` iterations, for all
            of them if the bounds never held.
        machine and what follows: see `bench.machine.Machine`.
    """

    target: str
    size: int
    seed: int
    preset: str
    ended: str
    repairs: int
    iterations: int
    seconds: float
    reached: int
    reached_seconds: float
    tutorial_seconds: float
    machine: str
    threads: int
    torch: str
    commit: str


class _Watch(Callback):
    """Looks for the first time at which all bounds hold."""

    def __init__(self, best: EmaTracker) -> None:
        self._best = best
        self._since = time.perf_counter()
        self.seconds = 0.0
        self.steps = 0
        self.reached: tuple[int, float, int] | None = None  # iterations, seconds, steps

    def on_step_end(self, trainer: PoolTrainer, result: StepResult) -> None:
        """Judge the average if it is time to."""
        self.steps += result.steps
        self.seconds += time.perf_counter() - self._since
        done, total = result.iteration, trainer.config.iterations
        if self.reached is None and 2 * done >= total and done % EVERY == 0:
            found = judge(self._best.ema_model, trainer.seed_state, trainer.target)
            if all(found.holds().values()):
                self.reached = done, self.seconds, self.steps
        self._since = time.perf_counter()


def train(
    target: Tensor, seed: int, config: TrainConfig, saved_as: Path | None = None
) -> tuple[dict[str, float | str], int]:
    """Train as `fastnca train` does.

    Args:
        target: `[1, 4, S, S]`.
        seed: of the first weights.
        config: the recipe, with its own seed.
        saved_as: folder for the trained model; None keeps no model.

    Returns:
        Fields of `Result`, from `ended` to `dead` but for `tutorial_seconds`; and the steps of the
        rollouts that the time to quality took, of all if the bounds never held.
    """
    torch.manual_seed(seed)
    model = NeuralCA()
    best = EmaTracker()
    watch = _Watch(best)
    trainer = PoolTrainer(model.to(target.device), target, config, callbacks=[best, watch])
    ended = fit(trainer, best)
    if saved_as is not None:
        model.metadata = {"size": target.shape[-1], "fill_hidden": config.fill_hidden}
        model.save(saved_as)
    reached, seconds, steps = watch.reached or (0, 0.0, watch.steps)
    facts = {
        "ended": ended,
        "repairs": trainer.recovery.repairs,
        "iterations": trainer.iteration,
        "seconds": watch.seconds,
        "reached": reached,
        "reached_seconds": seconds,
        **asdict(judge(model, trainer.seed_state, target)),
    }
    return facts, steps


def seconds_per_step(model: nn.Module, states: Tensor, target: Tensor) -> float:
    """Measure one step, forward and backward, of a module that is called step by step.

    Args:
        model: called once per step.
        states: `[B, C, S, S]`.
        target: `[1, 4, S, S]`.

    Returns:
        Seconds, the median of some rounds after one that does not count.
    """
    times = []
    for _ in range(1 + _ROUNDS):
        start, state = time.perf_counter(), states
        for _ in range(_STEPS):
            state = model(state)
        F.mse_loss(get_visible_state(state), target.expand(len(states), -1, -1, -1)).backward()
        if states.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / _STEPS)
    return statistics.median(times[1:])


def read_seeds(text: str) -> Iterator[int]:
    """Read `0,3,5-7`.

    Raises:
        ValueError: the text has another form.
    """
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def main(arguments: list[str] | None = None) -> int:
    """Train every target and seed, print and write what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", type=Path, default=OUTPUT)
    parser.add_argument("--models", type=Path, help="folder in which each trained model is saved")
    parser.add_argument("--targets", default="circle", help="names or picture files, with commas")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", default="0-2", help="such as 0,3,5-7")
    parser.add_argument("--preset", choices=list(PRESETS), default=DEFAULT_PRESET)
    options = parser.parse_args(arguments)
    try:
        seeds = list(read_seeds(options.seeds))
    except ValueError:
        parser.error(f"--seeds are numbers such as 0,3,5-7, got {options.seeds!r}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe(device, keep_freed_memory())
    results = read_if_there(options.csv, Result)
    done = {(r.target, r.size, r.seed, r.preset) for r in results}
    for name in options.targets.split(","):
        target = make_target(name, options.size, None, str(device))
        for seed in seeds:
            if (Path(name).name, options.size, seed, options.preset) in done:
                continue
            config = TrainConfig.preset(options.preset, seed=seed)
            run = f"{options.preset}-{Path(name).stem}-{seed}"
            saved_as = options.models / run if options.models else None
            facts, steps = train(target, seed, config, saved_as)
            tutorial = TutorialCA().to(device)
            states = torch.rand(config.batch_size, 16, *target.shape[2:], device=device)
            result = Result(
                target=Path(name).name,
                size=options.size,
                seed=seed,
                preset=options.preset,
                tutorial_seconds=steps * seconds_per_step(tutorial, states, target),
                machine=machine.machine,
                threads=machine.threads,
                torch=machine.torch,
                commit=machine.commit,
                **facts,  # type: ignore[arg-type]
            )
            results.append(result)
            write_csv(options.csv, results, Result)
            print(_sentence(result), flush=True)
    print(f"written: {options.csv}")
    return 0


def _sentence(result: Result) -> str:
    """Say how a run went."""
    broken = [name for name, holds in result.holds().items() if not holds]
    errors = result.grown_96, result.grown_192, result.grown_480, result.healed, result.grown_2000
    shown = " ".join(f"{error:.4f}" for error in errors)
    reached = f"bounds hold after {result.reached_seconds:.0f} s, " if result.reached else ""
    return (
        f"{result.target}, seed {result.seed}: 96, 192, 480 steps, healed, 2,000 steps {shown}, "
        f"{result.scraps:g} scraps; {'broken: ' + ', '.join(broken) if broken else 'all hold'}; "
        f"{reached}{result.iterations} iterations in {result.seconds:.0f} s, tutorial's class "
        f"{result.tutorial_seconds:.0f} s (projected)"
    )
