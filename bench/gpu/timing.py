"""Time rollouts, their gradients and training iterations on a GPU, a row as it is measured.

    python -m bench.gpu.timing ROWS.jsonl [--rehearse]

All providers run from the same weights and the same states, alive everywhere, on 64x64 grids for 80
steps. "launched" and "replayed" are this package's class with fp16 operands, step by step and as
CUDA graphs; its rollouts of 64 grids are replayed here although the package would launch them.
"tutorial" is the tutorial's class with torch's default settings, "compile" `torch.compile` of it. A
training iteration is the pool trainer's around each of them. "texture, launched" and "texture,
replayed" are rollouts of the texture rule, 12 channels and 96 hidden units, on the same grids. The
most important rows come first.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.cases import Case
from bench.gpu.measure import FEWEST, Memory, Rows, measure
from bench.models import Model, Weights
from bench.providers import PROVIDERS, TutorialCA
from bench.runners import Timed, TorchRunner
from bench.timing import Clock
from fastnca import NeuralCA, reference
from fastnca.backends.triton_fused import graphs, release_graphs
from fastnca.cuda_graphs import ENVIRONMENT_VARIABLE
from fastnca.masks import update_mask
from fastnca.rule import CHANNELS, RULES

MODES = ("rollout", "rollout+backward", "training")
TEXTURE = "texture, "
"""What the names of providers of the texture rule begin with; others run the tutorial's."""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        size: height and width of the grids.
        steps: of a rollout.
        batches: numbers of grids.
        warm_ups: calls before the first that is timed; the trainer captures in its fourth.
        fewest: rounds, at least.
    """

    size: int = 64
    steps: int = 80
    batches: tuple[int, ...] = (8, 64)
    warm_ups: int = 5
    fewest: int = FEWEST


REHEARSED = Sizes(size=8, steps=2, batches=(1, 2), warm_ups=1, fewest=1)

CHECKED_STEPS = 4
"""Of the rollout that is compared with the reference before one is timed."""

SECOND_CALL = 2
"""Calls after which those who capture nothing are warm."""

ORDER = [
    ("launched", 0),
    ("replayed", 0),
    ("tutorial", 0),
    ("replayed", 1),
    ("launched", 1),
    ("tutorial", 1),
    ("texture, launched", 0),
    ("texture, replayed", 0),
    ("texture, replayed", 1),
    ("texture, launched", 1),
    ("compile", 0),
    ("compile", 1),
]
"""Provider and number of its batch size."""


@contextmanager
def settings_of(provider: str) -> Iterator[None]:
    """Replay whatever can be replayed, or nothing."""
    replay = {ENVIRONMENT_VARIABLE: "0" if provider.endswith("launched") else "1"}
    with (
        mock.patch.dict(os.environ, replay),
        mock.patch.object(graphs, "MAX_CELLS", 1 << 30),
        mock.patch.object(graphs, "MAX_BYTES", 1 << 36),
    ):
        yield
    release_graphs()


def rule_name(provider: str) -> str:
    """Return the name of a provider's rule."""
    return "texture" if provider.startswith(TEXTURE) else "growing"


def make_weights(device: torch.device, rule: str = "growing") -> Weights:
    """Return weights that keep all cells alive: a new model's, slightly moved."""
    torch.manual_seed(0)
    model = TutorialCA() if rule == "growing" else NeuralCA(CHANNELS[rule], rule=RULES[rule])
    torch.nn.init.normal_(model.update_net[2].weight, std=0.001)
    return {name: value.to(device) for name, value in model.state_dict().items()}


def make_states(batch: int, size: int, device: torch.device, channels: int = 16) -> Tensor:
    """Return states that are alive everywhere, `[B, channels, size, size]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, size, size, generator=generator).to(device)


def make_runner(provider: str, weights: Weights, device: torch.device) -> TorchRunner:
    """Return what the bench runs; "launched" and "replayed" are the same model."""
    rule = rule_name(provider)
    if rule != "growing":
        options = {"rule": RULES[rule], "backend": "triton", "precision": "fp16"}
        model = NeuralCA(CHANNELS[rule], **options).to(device)
        model.load_state_dict(weights)
        return TorchRunner(model, "own", "seeded")
    name = "triton-fp16" if provider in ("launched", "replayed") else provider
    runner = PROVIDERS[name].build(Model(weights), device)
    assert isinstance(runner, TorchRunner)
    return runner


def check(provider: str, weights: Weights, state: Tensor, found: object) -> None:
    """Compare the state after `CHECKED_STEPS`, seed 1, with the reference's under the same masks.

    Raises:
        RuntimeError: they differ by more than fp16 operands explain.
    """
    rule = RULES[rule_name(provider)]
    model = reference.NeuralCA(state.shape[1], rule=rule).to(state.device)
    model.load_state_dict(weights)
    expected = state
    with torch.no_grad():
        for step in range(CHECKED_STEPS):
            mask = update_mask(1, step, state.shape, 0.5, state.device).float()
            expected = model._step(expected, mask)
    assert isinstance(found, Tensor)
    difference = float((found - expected).abs().max())
    if not difference < 3e-2:
        raise RuntimeError(f"the result differs from the reference by {difference:.2g}")


def prepare(mode: str, runner: TorchRunner, state: Tensor, steps: int) -> Timed:
    """Return a rollout, with or without gradients, or an iteration of the pool trainer."""
    if mode == "training":
        batch, size = state.shape[0], state.shape[-1]
        return runner.timed(Case(mode, size, batch, steps, "full"), state)
    model: Any = runner.module.train()

    @torch.no_grad()
    def forward() -> Tensor:
        return model.run_steps(state, steps, seed=1)

    def differentiate() -> None:
        model.run_steps(state, steps, seed=1).square().mean().backward()

    return Timed(forward) if mode == "rollout" else Timed(differentiate, model.zero_grad)


def measure_provider(
    provider: str, batch: int, sizes: Sizes, rows: Rows, weights: Weights, device: torch.device
) -> None:
    """Measure one provider at one batch size in all modes; what fails is a row with its reason.

    Without a right rollout there is nothing else to measure.
    """
    rule = rule_name(provider)
    state = make_states(batch, sizes.size, device, CHANNELS[rule])
    runner = make_runner(provider, weights, device)
    ours = provider.endswith(("launched", "replayed"))
    clock = Clock(device)
    cells = batch * sizes.size**2 * sizes.steps
    forward = 0.0
    for mode in MODES if rule == "growing" else MODES[:2]:
        about = {"provider": provider, "mode": mode, "batch": batch}
        about |= {"size": sizes.size, "steps": sizes.steps}
        try:
            if mode == "rollout" and ours:
                check(provider, weights, state, prepare(mode, runner, state, CHECKED_STEPS).run())
            memory = Memory(device)
            timed = prepare(mode, runner, state, sizes.steps)
            warm_ups = sizes.warm_ups if ours else min(sizes.warm_ups, SECOND_CALL)
            times = measure(clock, timed, warm_ups, sizes.fewest)
            peak = memory.peak()
        except (RuntimeError, torch.OutOfMemoryError) as error:
            rows.add(**about, status="failed", reason=str(error).splitlines()[0])
            if mode == "rollout":
                return
            continue
        middle = statistics.median(times)
        picoseconds = None
        if mode != "training":
            picoseconds = (middle - forward) * 1e9 / cells
            forward = middle
        rows.add(
            **about,
            rounds=len(times),
            milliseconds=middle,
            milliseconds_low=min(times),
            milliseconds_high=max(times),
            picoseconds_per_cell_step=picoseconds,
            memory_mib=peak,
        )


def measure_host(rows: Rows, weights: Weights, batch: int, size: int, device: torch.device) -> None:
    """Measure what the host spends on a step of the tutorial's loop, not waiting for the device."""
    model = make_runner("launched", weights, device).module.train()
    state = make_states(batch, size, device)
    results: list[Tensor] = []
    calls = {
        "step, host": lambda: results.append(model(state)),
        "step backward, host": lambda: results.pop().backward(state),
    }
    for mode, call in calls.items():
        times: list[float] = []
        for _ in range(220 if device.type == "cuda" else 2):
            began = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - began))
        times = times[20:] or times
        rows.add(
            provider="launched",
            mode=mode,
            batch=batch,
            size=size,
            steps=1,
            rounds=len(times),
            milliseconds=statistics.median(times),
            milliseconds_low=min(times),
            milliseconds_high=max(times),
        )


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file to append rows to")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.rehearse else "cuda")
    sizes = REHEARSED if options.rehearse else Sizes()
    rows = Rows(options.rows, device)
    weights = {rule: make_weights(device, rule) for rule in ("growing", "texture")}
    for provider, number in ORDER:
        batch, trained = sizes.batches[number], weights[rule_name(provider)]
        with settings_of(provider):
            measure_provider(provider, batch, sizes, rows, trained, device)
    measure_host(rows, weights["growing"], sizes.batches[0], sizes.size, device)


if __name__ == "__main__":
    main()
