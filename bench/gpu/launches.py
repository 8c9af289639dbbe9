"""Time the step kernels with other tiles and programs than `choose_launch` gives them.

    python -m bench.gpu.launches ROWS.jsonl [--rehearse]

Steps take an H200 four to five times as long as their instructions take to issue. More programs on
a multiprocessor, of smaller tiles or with fewer registers, could hide that; but for one launch of
the way back they do not (`docs/gpu.md`). Rollouts are replayed, for 64 and 8 grids of 64x64
cells that are all alive. The state or the gradients of each candidate are compared with those of
the table's choice.
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
from fastnca.backends.triton_fused import buffers, graphs, release_graphs
from fastnca.kernels import LaunchConfig, choose_launch, device_facts, launch

STEPS, ROUNDS = 32, 10
REHEARSED = 2, 1
TOLERANCE = 3e-2
"""Of the largest value, with fp16 operands."""

CANDIDATES: dict[str, tuple[tuple[int, int, int, int | None], ...]] = {
    "forward": (
        (16, 4, 2, None),
        (16, 4, 3, 168),
        (16, 4, 4, 128),
        (16, 8, 2, 128),
        (8, 4, 4, None),
        (8, 4, 3, None),
        (4, 4, 3, None),
        (16, 4, 1, None),
    ),
    "backward": (
        (16, 8, 1, None),
        (8, 4, 2, None),
        (8, 4, 3, 168),
        (8, 8, 2, 128),
        (4, 4, 2, None),
        (4, 4, 3, 168),
        (4, 8, 2, 128),
        (16, 8, 2, 128),
    ),
}
"""Rows of a tile, warps of a program, programs of a multiprocessor, most registers of a thread;
as many programs are resident on compute capability 9.0 by the registers and shared memory that
Triton 3.6 gives them. The first of each direction is what `choose_launch` says."""


@contextmanager
def launched_as(
    direction: str, config: LaunchConfig | None = None, registers: int | None = None
) -> Iterator[None]:
    """Launch the step kernels of one direction as `config` says, with at most so many registers.

    The other direction keeps its tiles; the limit of the registers holds for it, too.
    """

    def choose(asked: str, *arguments: Any) -> LaunchConfig:
        if config is not None and asked == direction:
            return config
        return choose_launch(asked, *arguments)

    limit = {} if registers is None else {"maxnreg": registers}
    with (
        mock.patch.object(buffers, "choose_launch", choose),
        mock.patch.dict(launch.OPTIONS, limit),
        mock.patch.dict(launch._compiled, clear=True),
        mock.patch.object(graphs, "MAX_CELLS", 1 << 30),
        mock.patch.object(graphs, "MAX_BYTES", 1 << 36),
    ):
        buffers._choose.cache_clear()
        try:
            yield
        finally:
            buffers._choose.cache_clear()
            release_graphs()


def measure(
    model: NeuralCA, state: Tensor, direction: str, steps: int, rounds: int
) -> tuple[float, list[Tensor]]:
    """Return milliseconds of the way forward or back, and the last state or the gradients."""
    clock = Clock(state.device)
    results: list[Tensor] = []

    @torch.no_grad()
    def forward() -> None:
        results[:] = [model.run_steps(state, steps, seed=1)]

    def differentiate() -> None:
        model.run_steps(state, steps, seed=1).square().mean().backward()
        results[:] = [p.grad for p in model.parameters() if p.grad is not None]

    def median(timed: Timed) -> float:
        for _ in range(3):  # compiles, captures, replays
            clock.measure(timed)
        return statistics.median(1e3 * clock.measure(timed) for _ in range(rounds))

    milliseconds = median(Timed(forward))
    if direction == "backward":
        milliseconds = median(Timed(differentiate, model.zero_grad)) - milliseconds
    return milliseconds, [result.clone() for result in results]


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
    rehearse = options.rehearse
    device = torch.device("cpu" if rehearse else "cuda")
    size, batches = (8, (1,)) if rehearse else (64, (64, 8))
    processors = device_facts(device)[1]
    steps, rounds = sizes = REHEARSED if rehearse else (STEPS, ROUNDS)
    rows = Rows(options.rows, device)
    model = NeuralCA(backend="triton", precision="fp16").to(device).train()
    model.load_state_dict(make_weights(device))
    for batch, direction in product(batches, ("forward", "backward")):
        state = make_states(batch, size, device)
        with launched_as(direction):
            best, expected = measure(model, state, direction, *sizes)
        about: dict[str, Any] = {"mode": direction, "batch": batch, "size": size, "steps": steps}
        rows.add(provider="launch, table", milliseconds=best, rounds=rounds, **about)
        for height, warps, resident, registers in CANDIDATES[direction][: 1 if rehearse else None]:
            config = LaunchConfig(height, warps, resident * processors or 2)
            name = f"launch, {height} rows, {warps} warps, {resident} resident"
            about["provider"] = name + (f", {registers} registers" if registers else "")
            try:
                with launched_as(direction, config, registers):
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
