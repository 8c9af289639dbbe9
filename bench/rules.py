"""Time rules beside the tutorial's: textures, where every cell lives, and a published lizard.

    python -m bench.rules                     every case, about five minutes on two cores
    python -m bench.rules --case texture-96   one of them; may be repeated

A run is a rollout in training mode and the gradients of all weights. The baseline is the plain
module in a loop, as a user of plain torch writes it: `fastnca.reference` for a texture, the
tutorial's class for the lizard. `compile` is `torch.compile` of that module. Before anything is
timed, state and gradients of 8 steps are compared with the reference on equal masks. Writes a CSV
with a row per case and provider.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.machine import describe, keep_freed_memory
from bench.runners import Timed
from bench.timing import Clock, Times, interleave, ratios
from fastnca import RULES, NeuralCA, Rule, create_seed, reference
from fastnca.backends.cpp import cpp_reasons
from tests import tutorial

OUTPUT = Path("runs/bench/rules.csv")
RESULTS = Path(__file__).parent / "results" / "cpu-2core-rules.csv"
LIZARD = "ex3_lizard"
CHECKED_STEPS = 8
REST = 0.05
"""Seconds before a run, in which OpenMP's threads stop spinning for the run before."""

STATE_ERROR, GRADIENT_ERROR = 1e-4, 1e-3


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        rule: a name of `RULES`.
        channels: channels of the state.
        size: height and width in cells.
        batch: number of states.
        steps: steps of a run.
    """

    rule: str
    channels: int
    size: int
    batch: int
    steps: int


CASES = {
    **{
        f"texture-{size}-{steps}": Case("texture", 12, size, 4, steps)
        for size in (96, 128)
        for steps in (32, 64)
    },
    "texture-96-64-batch-1": Case("texture", 12, 96, 1, 64),
    "lizard": Case("growing", 16, 64, 4, 80),
}
"""By name. `lizard` is the published regenerating lizard, from states grown for 200 steps."""


class Loop(torch.nn.Module):
    """A module in a loop that draws its masks itself, as plain torch is used."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def run_steps(self, state: Tensor, steps: int) -> Tensor:
        """Call the module `steps` times."""
        for _ in range(steps):
            state = self.module(state)
        return state


def make_start(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """Return weights and first states of a case.

    Raises:
        FileNotFoundError: the published weights are not beside the repository.
    """
    torch.manual_seed(0)
    rule = RULES[case.rule]
    model = NeuralCA(case.channels, rule=rule)
    if case.rule == "texture":
        with torch.no_grad():
            model.update_net[-1].weight.normal_(0, 0.02)
        return model.state_dict(), torch.rand(case.batch, case.channels, case.size, case.size) - 0.5
    from tests.published import WEIGHTS, read_growing

    if not (WEIGHTS / "distill-growing").is_dir():
        raise FileNotFoundError(f"the published weights are not in {WEIGHTS}")
    model.load_state_dict(read_growing(LIZARD), strict=False)
    seeds = create_seed(case.size, batch=case.batch, fill_hidden=True)
    with torch.no_grad():
        return model.state_dict(), model.run_steps(seeds, 200, seed=1)


def plain(case: Case) -> torch.nn.Module:
    """Return the baseline's module."""
    if case.rule == "growing":
        return tutorial.NeuralCA()
    return reference.NeuralCA(case.channels, rule=RULES[case.rule])


def providers(case: Case, weights: dict[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """Yield the models that take part, the baseline first."""

    def load(module: torch.nn.Module) -> torch.nn.Module:
        module.load_state_dict(weights)
        return module

    yield "eager", Loop(load(plain(case)))
    compiled = load(plain(case))
    torch._dynamo.reset()
    compiled.compile(dynamic=False)
    yield "compile", Loop(compiled)
    rule: Rule = RULES[case.rule]
    if not cpp_reasons(torch.float32):
        yield "cpp", load(NeuralCA(case.channels, rule=rule, backend="cpp"))
    yield "torch", load(NeuralCA(case.channels, rule=rule, backend="torch"))


def check(case: Case, weights: dict[str, Tensor], state: Tensor, model: NeuralCA) -> None:
    """Compare a model with the reference.

    Raises:
        ValueError: they differ by more than rounding.
    """
    exact = reference.NeuralCA(case.channels, rule=model.rule)
    exact.load_state_dict(weights)
    found = []
    for each in (model, exact):
        each.zero_grad()
        end = each.run_steps(state, CHECKED_STEPS, seed=5)
        end[:, :4].square().mean().backward()
        gradients = [p.grad for p in each.parameters() if p.grad is not None]
        found.append((end.detach(), gradients))
    (ours, ours_grads), (end, grads) = found
    wrong = ((ours - end).abs() > STATE_ERROR).float().mean()  # an alpha on the threshold may flip
    far = [float((a - b).norm() / b.norm()) for a, b in zip(ours_grads, grads, strict=True)]
    if wrong > 1e-5 or max(far) > GRADIENT_ERROR:
        raise ValueError(f"{model.backend}: {float(wrong):.1e} of the values, gradients {far}")


def timed(model: Any, state: Tensor, steps: int) -> Timed:
    """Prepare runs of a model."""

    def run() -> None:
        model.run_steps(state, steps)[:, :4].square().mean().backward()

    def reset() -> None:
        model.zero_grad()
        time.sleep(REST)

    return Timed(run, reset)


def first_call(run: Callable[[], object]) -> float:
    """Return the seconds of the first run, in which things are compiled."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: Case, seconds: float) -> dict[str, Times]:
    """Check and time everybody."""
    weights, state = make_start(case)
    runs, firsts = {}, {}
    for name, model in providers(case, weights):
        if isinstance(model, NeuralCA):
            check(case, weights, state, model)
        runs[name] = timed(model, state, case.steps)
        firsts[name] = first_call(runs[name].run)
    return interleave(Clock(torch.device("cpu")), runs, firsts, seconds)


def markdown(path: Path) -> str:
    """Return the table of a CSV: a line per case, milliseconds and ratio per provider."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["provider"] for row in rows))
    lines = [f"| case | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = {row["provider"]: row for row in rows if row["case"] == case}
        shown = [
            f"{float(row['milliseconds']):.0f} ms"
            if name == "eager"
            else f"**{row['ratio']}** ({row['lowest']} to {row['highest']})"
            for name in names
            for row in (cells[name],)
        ]
        lines.append(f"| {case} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", choices=list(CASES), help="one case")
    parser.add_argument("--seconds", type=float, default=30.0, help="of rounds for a case (30)")
    parser.add_argument("--csv", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    options = parser.parse_args(arguments)
    machine = describe(torch.device("cpu"), keep_freed_memory())
    print(f"{machine.machine}, {machine.threads} threads, torch {machine.torch}, {machine.commit}")
    rows = []
    for name in options.case or CASES:
        try:
            times = measure(CASES[name], options.seconds)
        except FileNotFoundError as error:
            print(f"{name:24} left out: {error}")
            continue
        for provider, each in times.items():
            ratio, low, high = ratios(times["eager"], each)
            milliseconds = 1000 * each.median
            print(
                f"{name:24} {provider:8} {milliseconds:8.1f} ms  {ratio:5.2f} ({low:.2f} to "
                f"{high:.2f}), {len(each.rounds)} rounds",
                flush=True,
            )
            rows.append(
                {
                    **{"case": name, "provider": provider, "milliseconds": f"{milliseconds:.1f}"},
                    **{"ratio": f"{ratio:.2f}", "lowest": f"{low:.2f}", "highest": f"{high:.2f}"},
                    **{"rounds": len(each.rounds), "first_s": f"{each.first:.1f}"},
                    **{"machine": machine.machine, "threads": machine.threads},
                    **{"torch": machine.torch, "commit": machine.commit},
                }
            )
    if rows:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"written: {options.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
