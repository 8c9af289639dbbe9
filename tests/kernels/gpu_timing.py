"""Time rollouts on a GPU: the fused kernels in three ways, PyTorch eager, and `torch.compile`.

    python -m tests.kernels.gpu_timing OUTDIR

Writes `timing.csv`, `timing.json` and `trainer.json`. The fused kernels are compared with the
reference before they are timed; the baselines are the tutorial's loop with its own masks. Batches
of 64 are too large to be replayed, so "replayed" is "launched" there. `trainer.json` compares an
iteration of the pool trainer, one graph, with the rollout and its gradients alone, on the same
states.
"""

import csv
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

import fastnca
from fastnca.fused import fused_rollout, release_graphs
from fastnca.fused.eager import GRAPHS
from fastnca.masks import update_mask
from fastnca.reference import NeuralCA
from fastnca.training import PoolTrainer, TrainConfig
from fastnca.training.graphed import WARM_UP

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
    times = []
    for _ in range(200):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times) * 1e6


def rollout_of(provider: str, model: NeuralCA, state: Tensor) -> Callable[[int], Tensor]:
    """Return what runs a number of steps: the tutorial's own loop, or the fused kernels."""
    if provider in ("eager", "compiled"):
        step = torch.compile(model) if provider == "compiled" else model

        def loop(steps: int) -> Tensor:
            result = state
            for _ in range(steps):
                result = step(result)
            return result

        return loop
    parameters = tuple(model.update_net.parameters())
    settings = {"seed": 1, "first_step": 0, "update_rate": 0.5, "precision": "fp16"}
    settings |= {"replay": provider == "replayed", "persistent": provider == "persistent"}
    return lambda steps: fused_rollout(state, parameters, steps=steps, **settings)


def check(model: NeuralCA, state: Tensor, rollout: Callable[[int], Tensor]) -> None:
    """Compare a fused provider with the reference under the same masks."""
    expected = state
    for index in range(4):
        mask = update_mask(1, index, state.shape, 0.5, "cuda").float()
        expected = model._step(expected, mask)
    difference = (rollout(4) - expected).abs().mean()
    assert float(difference) < 1e-3, f"the result differs by {float(difference)} on average"


def measure(batch: int, provider: str) -> dict[str, object]:
    """Time rollouts, iterations and single steps of one provider at one batch size."""
    torch.manual_seed(0)
    model = NeuralCA().cuda()
    torch.nn.init.normal_(model.update_net[2].weight, std=0.01)
    state = torch.rand(batch, 16, SIZE, SIZE, device="cuda")
    target = torch.rand(4, SIZE, SIZE, device="cuda").expand(batch, -1, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    rollout = rollout_of(provider, model, state)

    def differentiate() -> None:
        optimizer.zero_grad()
        rollout(STEPS).square().mean().backward()

    def train() -> None:
        optimizer.zero_grad()
        F.mse_loss(rollout(STEPS)[:, :4], target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    with torch.no_grad():
        if provider not in ("eager", "compiled"):
            check(model, state, rollout)
        forward = milliseconds(lambda: rollout(STEPS))
    both = milliseconds(differentiate)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() - workspace_bytes()
    torch.cuda.reset_peak_memory_stats()
    differentiate()
    peak = torch.cuda.max_memory_allocated() - before
    iteration = milliseconds(train)
    results: list[Tensor] = []
    step_forward = host_microseconds(lambda: results.append(rollout(1)))
    step_backward = host_microseconds(lambda: results.pop().backward(state))
    cells = batch * SIZE * SIZE * STEPS
    return {
        "provider": provider,
        "batch": batch,
        "size": SIZE,
        "steps": STEPS,
        "forward_ms": forward,
        "forward_and_backward_ms": both,
        "training_iteration_ms": iteration,
        "forward_ps_per_cell_step": forward * 1e9 / cells,
        "backward_ps_per_cell_step": (both - forward) * 1e9 / cells,
        "peak_bytes": peak,
        "host_us_of_a_step_forward": step_forward,
        "host_us_of_a_step_backward": step_backward,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def measure_trainer(batch: int) -> dict[str, object]:
    """Time the pool trainer's iteration, one graph, and the rollout and its gradients alone."""
    torch.manual_seed(0)
    model = fastnca.NeuralCA(backend="triton", precision="fp16").cuda()
    torch.nn.init.normal_(model.update_net[2].weight, std=0.01)
    options = {"batch_size": batch, "min_steps": STEPS, "max_steps": STEPS + 1, "seed": 0}
    config = TrainConfig(learning_rate=1e-5, reseed="none", **options)
    target = fastnca.create_target_circle(SIZE, device="cuda")
    trainer = PoolTrainer(model, target, config)
    trainer.pool.states.uniform_()
    for _ in range(WARM_UP + 2):
        trainer.start()
    assert trainer.iterate._graph is not None, "the iteration was not captured"
    iteration = milliseconds(trainer.start)
    skipped = sum(result.skipped for result in trainer.read())
    states = trainer.pool.gather(torch.arange(batch))

    def differentiate() -> None:
        model.zero_grad()
        model.run_steps(states, STEPS, seed=1).square().mean().backward()

    bare = milliseconds(differentiate)
    return {
        "batch": batch,
        "size": SIZE,
        "steps": STEPS,
        "trainer_iteration_ms": iteration,
        "rollout_and_gradients_ms": bare,
        "trainer_over_rollout": iteration / bare,
        "iterations_not_finite": skipped,
    }


def workspace_bytes() -> int:
    """Return the bytes that captured rollouts hold between calls; they count as the rollout's."""
    return sum(workspace.bytes for _, workspace in GRAPHS._workspaces.values())


def compare(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Add to each row its ratios to the baselines at the same batch size."""
    for row in rows:
        for baseline in ("eager", "compiled"):
            (other,) = (r for r in rows if (r["provider"], r["batch"]) == (baseline, row["batch"]))
            ratio = other["training_iteration_ms"] / row["training_iteration_ms"]
            row[f"times_faster_than_{baseline}"] = ratio
            row[f"{baseline}_peak_over_this"] = other["peak_bytes"] / row["peak_bytes"]
    return rows


def main(folder: str) -> None:
    """Measure every provider and write the table; the baselines may use TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    rows = []
    for batch in (4, 8, 64):
        for provider in ("eager", "compiled", "launched", "replayed", "persistent"):
            rows.append(measure(batch, provider))
            release_graphs()
            torch.cuda.empty_cache()
            print(rows[-1], flush=True)
    compare(rows)
    trainers = [measure_trainer(batch) for batch in (4, 8, 64)]
    print(*trainers, sep="\n")
    Path(folder, "trainer.json").write_text(json.dumps(trainers, indent=1) + "\n")
    Path(folder, "timing.json").write_text(json.dumps(rows, indent=1) + "\n")
    with Path(folder, "timing.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1])
