"""The torch backend against the tutorial's class on this machine: time ratios and peak memory.

    python -m bench.speedup [--repeats 7] [--json FILE]

Both classes run in one process, by turns; a ratio is median over median, with the smallest and
the largest ratio of neighbouring runs beside it. Results are compared before they are timed.
Memory is measured in fresh processes.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.grown import grown_batch, trained
from fastnca import NeuralCA, create_seed, create_target_circle, get_visible_state, reference

STEPS = 80
BATCH = 4
Run = Callable[[torch.nn.Module, Tensor], Tensor]


def rollout(model: torch.nn.Module, state: Tensor) -> Tensor:
    """Run `STEPS` steps in one call."""
    end: Tensor = model.run_steps(state, STEPS, seed=1)
    return end


def rollout_of_the_tutorial(model: torch.nn.Module, state: Tensor) -> Tensor:
    """Run `STEPS` steps one call at a time, as the tutorial's training loop does."""
    for _ in range(STEPS):
        state = model(state)
    return state


def training(run: Run) -> Run:
    """Forward and backward of a training iteration."""

    def iteration(model: torch.nn.Module, state: Tensor) -> Tensor:
        model.zero_grad()
        target = create_target_circle(state.shape[-1]).expand(len(state), -1, -1, -1)
        end = run(model, state)
        F.mse_loss(get_visible_state(end), target).backward()
        return end

    return iteration


def inference(run: Run) -> Run:
    """The same without gradient, every cell updating."""

    def forward(model: torch.nn.Module, state: Tensor) -> Tensor:
        model.eval()
        with torch.no_grad():
            end = run(model, state)
        model.train()
        return end

    return forward


def compare(
    weights: dict[str, Tensor], state: Tensor, ours: Run, theirs: Run, repeats: int
) -> tuple[float, float, float, float]:
    """Check that both compute the same, then time them by turns.

    Returns:
        Median seconds of ours and theirs, and the lowest and highest ratio of neighbours.
    """
    fast, slow = NeuralCA(backend="auto"), reference.NeuralCA()
    fast.load_state_dict(weights)
    slow.load_state_dict(weights)
    with torch.no_grad():
        ends = [model.run_steps(state, 3, seed=1) for model in (fast, slow)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        pair = []
        for model, run in ((fast, ours), (slow, theirs)):
            start = time.perf_counter()
            run(model, state)
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    times = times[1:]  # the first round warms caches up
    ratios = [slow_time / fast_time for fast_time, slow_time in times]
    return median(t[0] for t in times), median(t[1] for t in times), min(ratios), max(ratios)


def peak_memory(kind: str, batch: str) -> float:
    """Measure the extra peak memory of a training iteration in a fresh process, in MiB."""
    command = [sys.executable, "-m", "bench.speedup", "--memory", kind, batch]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory(field: str) -> float:
    """Read a field of this process's memory (Linux), in MiB: VmRSS now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def print_peak_memory(kind: str, batch: str) -> None:
    """Print what one training iteration adds to this process's resident memory, in MiB."""
    trainer = trained()
    state = grown_batch(trainer) if batch == "grown" else create_seed(64, batch=BATCH)
    model = NeuralCA() if kind == "fastnca" else reference.NeuralCA()
    model.load_state_dict(trainer.model.state_dict())
    del trainer
    run = training(rollout if kind == "fastnca" else rollout_of_the_tutorial)
    run(model, create_seed(16))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    run(model, state)
    print(memory("VmHWM") - before)


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_peak_memory(*arguments.memory)
        return
    trainer = trained()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batches = {"fresh": create_seed(64, batch=BATCH), "grown": grown_batch(trainer)}
    alive = {n: float(trainer.model.get_alive_mask(s).mean()) for n, s in batches.items()}
    stepwise = rollout_of_the_tutorial
    cases = [
        ("rollout, forward + backward", training(rollout), training(stepwise), batches),
        ("step by step, forward + backward", training(stepwise), training(stepwise), batches),
        ("step by step, eval", inference(stepwise), inference(stepwise), batches),
    ]
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads; batch {BATCH}, 64x64, {STEPS} steps\n"
        f"{'case':<34}{'batch':<7}{'alive':>6}{'ours ms':>9}{'tutorial ms':>13}{'ratio':>7}  spread"
    )
    rows = []
    for name, ours, theirs, states in cases:
        for kind, state in states.items():
            fast, slow, low, high = compare(weights, state, ours, theirs, arguments.repeats)
            print(
                f"{name:<34}{kind:<7}{alive[kind]:>6.2f}{fast * 1e3:>9.0f}{slow * 1e3:>13.0f}"
                f"{slow / fast:>7.2f}  {low:.2f} - {high:.2f}",
                flush=True,
            )
            rows.append(
                {"case": name, "batch": kind, "alive": alive[kind], "seconds": fast}
                | {"tutorial_seconds": slow, "ratio": slow / fast, "low": low, "high": high}
            )
    for kind in batches:
        ours_mib, theirs_mib = peak_memory("fastnca", kind), peak_memory("tutorial", kind)
        print(
            f"extra peak memory, {kind}: {ours_mib:.0f} MiB against {theirs_mib:.0f} MiB, "
            f"{ours_mib / theirs_mib:.3f} of it"
        )
        rows.append(
            {"case": "extra peak memory", "batch": kind, "alive": alive[kind]}
            | {"mebibytes": ours_mib, "tutorial_mebibytes": theirs_mib}
        )
    if arguments.json:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        machine = {"machine": platform.machine(), "threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps({**versions, **machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
