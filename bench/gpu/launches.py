"""Time the step kernels with other tiles and programs than `choose_launch` gives them.

    python -m bench.gpu.launches ROWS.jsonl [--rehearse]

The first run on an H200 found steps four to five times longer than their instructions take to
issue: the kernels wait. More programs on a multiprocessor, of smaller tiles, hide that, and cost
instructions. Rollouts are replayed, for 64 and 8 grids of 64x64 cells that are all alive. The state
or the gradients of each candidate are compared with those of the table's choice.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.gpu.measure import Rows
from bench.gpu.timing import make_states, make_weights
from bench.runners import Timed
from bench.timing import Clock
from fastnca import NeuralCA
from fastnca.fused import graphs, release_graphs, storage
from fastnca.kernels import LaunchConfig, choose_launch, device_facts

STEPS, ROUNDS = 32, 10
REHEARSED = 2, 1
TOLERANCE = 3e-2
"""Of the largest value, with fp16 operands."""

CANDIDATES = tuple(product((16, 8, 4), (4, 8), (1, 2, 3, 4)))
"""Rows of a tile, warps of a program, programs of a multiprocessor."""


@contextmanager
def launched_as(direction: str, config: LaunchConfig | None) -> Iterator[None]:
    """Launch the step kernels of one direction as `config` says; None changes nothing."""

    def choose(asked: str, *arguments: Any) -> LaunchConfig:
        if config is not None and asked == direction:
            return config
        return choose_launch(asked, *arguments)

    with (
        mock.patch.object(storage, "choose_launch", choose),
        mock.patch.object(graphs, "MOST_CELLS", 1 << 30),
        mock.patch.object(graphs, "MOST_BYTES", 1 << 36),
    ):
        storage._choose.cache_clear()
        yield
    storage._choose.cache_clear()
    release_graphs()


def measure(
    model: NeuralCA, state: Tensor, direction: str, steps: int, rounds: int
) -> tuple[float, list[Tensor]]:
    """Return milliseconds of a rollout, or of a rollout and its gradients, and their results."""
    clock = Clock(state.device)
    results: list[Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            results[:] = [model.run_steps(state, steps, seed=1)]

    def differentiate() -> None:
        model.run_steps(state, steps, seed=1).square().mean().backward()
        results[:] = [p.grad for p in model.parameters() if p.grad is not None]

    timed = Timed(forward if direction == "forward" else differentiate, model.zero_grad)
    for _ in range(3):  # compiles, captures, replays
        clock.measure(timed)
    times = [1e3 * clock.measure(timed) for _ in range(rounds)]
    return statistics.median(times), [result.clone() for result in results]


def differs(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Tell whether results differ by more than fp16 operands explain."""
    pairs = zip(found, expected, strict=True)
    return not all(bool((a - b).abs().max() <= TOLERANCE * b.abs().max()) for a, b in pairs)


def main() -> None:
    """Measure every candidate in both directions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file to append rows to")
    parser.add_argument("--rehearse", action="store_true", help="one candidate, on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.rehearse else "cuda")
    size, batches = (8, (1,)) if options.rehearse else (64, (64, 8))
    candidates = CANDIDATES[-1:] if options.rehearse else CANDIDATES
    processors = device_facts(device)[1]
    steps, rounds = sizes = REHEARSED if options.rehearse else (STEPS, ROUNDS)
    rows = Rows(options.rows, device)
    model = NeuralCA(backend="triton", precision="fp16").to(device).train()
    model.load_state_dict(make_weights(device))
    for batch, direction in product(batches, ("forward", "backward")):
        state = make_states(batch, size, device)
        with launched_as(direction, None):
            best, expected = measure(model, state, direction, *sizes)
        about: dict[str, Any] = {"mode": direction, "batch": batch, "size": size, "steps": steps}
        rows.add(provider="launch, table", milliseconds=best, rounds=rounds, **about)
        for height, warps, resident in candidates:
            config = LaunchConfig(height, warps, resident * processors or 2)
            about["provider"] = f"launch, {height} rows, {warps} warps, {resident} resident"
            try:
                with launched_as(direction, config):
                    milliseconds, found = measure(model, state, direction, *sizes)
            except Exception as error:  # too many resources, or no such layout
                rows.add(status="failed", reason=str(error).splitlines()[0][:80], **about)
                continue
            if differs(found, expected):
                rows.add(status="failed", reason="the results differ", **about)
            else:
                rows.add(milliseconds=milliseconds, rounds=rounds, **about)


if __name__ == "__main__":
    main()
