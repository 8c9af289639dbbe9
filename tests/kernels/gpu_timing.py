"""Time rollouts on a GPU: the fused kernels, PyTorch eager, and `torch.compile`.

    python -m tests.kernels.gpu_timing OUTDIR

Writes `timing.csv` and `timing.json`. A case is compared with the reference before it is timed.
"""

import csv
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from torch import Tensor

from fastnca.fused import fused_rollout
from fastnca.masks import update_mask
from fastnca.reference import NeuralCA

STEPS = 96
SIZE = 64
REPEATS = 20


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of `call` on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def host_microseconds(call: Callable[[], object]) -> float:
    """Return the time that the host spends on `call`, without waiting for the device."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(200):
        call()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return spent / 200 * 1e6


def fused(model: NeuralCA, state: Tensor, steps: int) -> Tensor:
    """Run the fused rollout."""
    parameters = tuple(model.update_net.parameters())
    settings = {"first_step": 0, "update_rate": 0.5, "precision": "fp16"}
    return fused_rollout(state, parameters, steps=steps, seed=1, **settings)


def eager(step: Callable[[Tensor, Tensor], Tensor], state: Tensor, steps: int) -> Tensor:
    """Run `step` with the same masks."""
    for index in range(steps):
        state = step(state, update_mask(1, index, state.shape, 0.5, "cuda").float())
    return state


def measure(batch: int, provider: str) -> dict[str, object]:
    """Time forward, and forward with backward, of one provider at one batch size."""
    torch.manual_seed(0)
    model = NeuralCA().cuda()
    torch.nn.init.normal_(model.update_net[2].weight, std=0.01)
    state = torch.rand(batch, 16, SIZE, SIZE, device="cuda")
    step = torch.compile(model._step) if provider == "compiled" else model._step

    def rollout(steps: int = STEPS) -> Tensor:
        return fused(model, state, steps) if provider == "fused" else eager(step, state, steps)

    def train() -> None:
        model.zero_grad()
        rollout().square().mean().backward()

    with torch.no_grad():
        difference = (rollout(4) - eager(model._step, state, 4)).abs()
        assert float(difference.quantile(0.99) if batch < 4 else difference.mean()) < 1e-2
        forward = milliseconds(rollout)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both = milliseconds(train)
    peak = torch.cuda.max_memory_allocated() - before
    with torch.no_grad():
        host = host_microseconds(lambda: rollout(1))
    cells = batch * SIZE * SIZE * STEPS
    return {
        "provider": provider,
        "batch": batch,
        "size": SIZE,
        "steps": STEPS,
        "forward_ms": forward,
        "iteration_ms": both,
        "forward_ps_per_cell_step": forward * 1e9 / cells,
        "backward_ps_per_cell_step": (both - forward) * 1e9 / cells,
        "peak_bytes": peak,
        "host_us_per_call_of_one_step": host,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def main(folder: str) -> None:
    """Measure every provider and write the table."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    for batch in (4, 8, 64):
        for provider in ("eager", "compiled", "fused"):
            rows.append(measure(batch, provider))
            print(rows[-1], flush=True)
    Path(folder, "timing.json").write_text(json.dumps(rows, indent=1) + "\n")
    with Path(folder, "timing.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1])
