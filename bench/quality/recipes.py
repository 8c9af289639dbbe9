"""Which recipe grows the best pattern in a given time: a study of the preset `quick`.

    python -m bench recipes [--csv FILE] [--seconds 20] [--size 24] [--jobs 2] [--cases a,b]
    python -m bench recipes --report

Each case of `bench/quality/recipe_cases.py` changes something in a base recipe. It is trained for
every seed and target with the pool trainer, on one thread of the CPU, and judged by
`bench.quality.judge`. All cases get the same time: a pilot run, which is not recorded, tells how
many iterations of a case take `--seconds` of one core, and options that count iterations are
stretched alike. Runs that are in the file already are not repeated, so a study that was stopped
goes on. The grid is smaller than the tutorial's, so that six seeds of three targets are affordable;
what it finds is to be confirmed at 64x64 by `python -m bench quality`.

`--report` writes the table beside the CSV.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.machine import ROOT, describe
from bench.quality.judge import BOUNDS, Judgement, fit, judge
from bench.quality.recipe_cases import BASE, RECIPES
from bench.results import read_if_there, write_csv
from fastnca import NeuralCA, create_target
from fastnca.training import EmaTracker, PoolTrainer, TrainConfig

OUTPUT = ROOT / "bench" / "results" / "cpu-2core-recipes.csv"
TARGETS = ("circle", "heart", "leaf")
SEEDS = (0, 1, 2, 3, 4, 5)
_PILOT_SEED = 1000


@dataclass(frozen=True)
class Run(Judgement):
    """One training run, and what the model that it left does.

    Attributes:
        case: name in `bench.recipe_cases.RECIPES`.
        target, size, seed: what was trained.
        iterations: how many.
        seconds: of one core.
        ended: "done", "collapsed" or "diverged".
        machine, torch, commit: see `bench.machine.Machine`.
    """

    case: str
    target: str
    size: int
    seed: int
    iterations: int
    seconds: float
    ended: str
    machine: str
    torch: str
    commit: str

    @property
    def score(self) -> float:
        """Mean error after growth and healing, as a share of an empty grid's."""
        parts = self.grown_192, self.grown_480, self.healed
        return sum(parts) / len(parts) / self.empty


def make_config(case: str, iterations: int, seed: int) -> TrainConfig:
    """Return the options of a case, with everything that counts iterations stretched."""
    changes = {name: value for name, value in RECIPES[case].items() if name != "average"}
    return TrainConfig(**{**BASE, **changes, "seed": seed}).scaled_to(iterations)


def train(case: str, target: str, size: int, seed: int, iterations: int) -> dict[str, Any]:
    """Train and judge; return the first fields of `Run`."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, picture = NeuralCA(), create_target(target, size)
    best = EmaTracker(decay=RECIPES[case].get("average", 0.98))
    config = make_config(case, iterations, seed)
    trainer = PoolTrainer(model, picture, config, callbacks=[best])
    start = time.process_time()
    ended = fit(trainer, best)
    seconds = time.process_time() - start
    facts = {"case": case, "target": target, "size": size, "seed": seed, "ended": ended}
    facts |= {"iterations": trainer.iteration, "seconds": seconds}
    return facts | asdict(judge(model, trainer.seed_state, picture))


def affordable(case: str, size: int, seconds: float) -> int:
    """Return how many iterations of a case take `seconds` of one core."""
    iterations, spent = 60, 0.0
    while spent < seconds / 2:
        if spent:
            iterations = round(iterations * min(8.0, 0.8 * seconds / spent))
        spent = float(train(case, TARGETS[0], size, _PILOT_SEED, iterations)["seconds"])
    return max(1, round(iterations * seconds / spent))


def report(runs: list[Run]) -> str:
    """Return the study as a table in Markdown, the best recipe first."""
    cases: dict[str, list[Run]] = {}
    for run in runs:
        cases.setdefault(run.case, []).append(run)
    lines = [
        f"# {len(runs)} training runs by `python -m bench recipes`",
        "",
        *_facts(runs),
        "",
        "| recipe | what differs from `base` | score | worst | 96 steps | 192 | 480 | healed | "
        "2,000 | scraps | all bounds | iterations | seconds |",
        "| --- | --- |" + " --- |" * 11,
    ]
    order = sorted(cases, key=lambda name: statistics.mean(r.score for r in cases[name]))
    return "\n".join([*lines, *(_line(name, cases[name]) for name in order)]) + "\n"


def _facts(runs: list[Run]) -> Iterator[str]:
    first = runs[0]
    targets = ", ".join(sorted({run.target for run in runs}))
    seeds = len({run.seed for run in runs})
    found = list(dict.fromkeys(run.commit for run in runs))
    commits = f"commit{'s' * (len(found) > 1)} {', '.join(found)}"
    yield (
        f"{targets}; {seeds} seeds each, {first.size}x{first.size} cells, the same time of one "
        f"core for each recipe. {first.machine}, torch {first.torch}, {commits}. "
        "Errors are mean squared errors of clamped RGBA as percentages of an empty grid's, means "
        "over all runs; the score is the mean of 192 and 480 steps and healed, *worst* its highest "
        "value. *Scraps* is the share of runs with a living cell more than two cells from the "
        "target, *all bounds* that of runs within those of `bench.quality.judge`."
    )


def _line(case: str, runs: list[Run]) -> str:
    def share(name: str) -> str:
        return f"{statistics.mean(getattr(run, name) / run.empty for run in runs):.1%}"

    differs = ", ".join(f"{name} {value}" for name, value in RECIPES[case].items())
    within = [all(run.holds().values()) for run in runs]
    cells = [
        case,
        differs or "nothing",
        f"{statistics.mean(run.score for run in runs):.1%}",
        f"{max(run.score for run in runs):.1%}",
        *(share(name) for name in ("grown_96", "grown_192", "grown_480", "healed", "grown_2000")),
        f"{statistics.mean(run.scraps > 0 for run in runs):.0%}",
        f"{sum(within)} of {len(runs)}",
        f"{statistics.mean(run.iterations for run in runs):.0f}",
        f"{statistics.mean(run.seconds for run in runs):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", type=Path, default=OUTPUT)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one core, per run")
    parser.add_argument("--size", type=int, default=24, help="height and width of the grid")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--cases", default=",".join(RECIPES), help="names with commas between them")
    parser.add_argument("--report", action="store_true", help="write the table, run nothing")
    options = parser.parse_args(arguments)
    cases = options.cases.split(",")
    if unknown := sorted(set(cases) - RECIPES.keys()):
        parser.error(f"unknown cases: {', '.join(unknown)}; known are {', '.join(RECIPES)}")
    if not options.report:
        _run(cases, options)
    runs = read_if_there(options.csv, Run)
    if not runs:
        parser.error(f"{options.csv} holds no run")
    table = report([run for run in runs if run.case in RECIPES])
    options.csv.with_suffix(".md").write_text(table)
    print(table)
    return 0


def _run(cases: list[str], options: argparse.Namespace) -> None:
    """Train what the file does not hold yet."""
    machine = describe(torch.device("cpu"), malloc_is_tuned=False)
    facts = {"machine": machine.machine, "torch": machine.torch, "commit": machine.commit}
    runs = read_if_there(options.csv, Run)
    done = {(run.case, run.target, run.size, run.seed) for run in runs}
    todo = {
        case: [
            (case, target, options.size, seed)
            for target in TARGETS
            for seed in SEEDS
            if (case, target, options.size, seed) not in done
        ]
        for case in cases
    }
    missing = [case for case in cases if todo[case]]
    context = get_context("spawn")  # threads of torch do not survive a fork
    with ProcessPoolExecutor(options.jobs, context) as pool:
        sizes = [options.size] * len(missing)
        times = [options.seconds] * len(missing)
        counts = dict(zip(missing, pool.map(affordable, missing, sizes, times), strict=True))
        tasks = [(*task, counts[case]) for case in missing for task in todo[case]]
        for found in pool.map(train, *zip(*tasks, strict=True)) if tasks else ():
            runs.append(Run(**found, **facts))
            write_csv(options.csv, runs, Run)
            print(_sentence(runs[-1]), flush=True)


def _sentence(run: Run) -> str:
    held = sum(run.holds().values())
    return (
        f"{run.case:<20} {run.target:<7} seed {run.seed}: {run.score:6.1%} of an empty grid, "
        f"{held} of {len(BOUNDS) + 1} bounds, {run.iterations} iterations, {run.seconds:.0f} s"
    )
