"""Train from the same weights on the fused kernels and in plain PyTorch, and write both losses.

    python -m bench.gpu.training ROWS.jsonl [--rehearse]

Both run in the pool trainer. Runs are chaotic, and the tutorial's class draws other masks, so this
is a look, not a proof; `pytest -m full tests/kernels/test_gpu.py` compares six seeds.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from bench.gpu.measure import Rows
from bench.providers import TutorialCA
from fastnca import NeuralCA, create_target_circle
from fastnca.training import PoolTrainer, TrainConfig

ITERATIONS, SIZE, STEPS = 500, 32, 32
LAST = 50
"""Iterations whose mean loss is written."""


def main() -> None:
    """Train twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file to append rows to")
    parser.add_argument("--rehearse", action="store_true", help="two iterations, on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.rehearse else "cuda")
    iterations, size, steps = (2, 8, 2) if options.rehearse else (ITERATIONS, SIZE, STEPS)
    rows = Rows(options.rows, device)
    torch.manual_seed(0)
    weights = TutorialCA().state_dict()
    config = TrainConfig(
        iterations=iterations,
        batch_size=4,
        pool_size=32,
        min_steps=steps,
        max_steps=2 * steps,
        seed=0,
    )
    models = {"replayed": NeuralCA(backend="triton", precision="fp16"), "tutorial": TutorialCA()}
    for provider, model in models.items():
        model.load_state_dict(weights)
        trainer = PoolTrainer(model.to(device), create_target_circle(size).to(device), config)
        began = time.perf_counter()
        losses = [trainer.step().loss for _ in range(iterations)]
        rows.add(
            provider=provider,
            mode="final loss",
            loss=statistics.mean(losses[-LAST:]),
            milliseconds=1e3 * (time.perf_counter() - began),
        )


if __name__ == "__main__":
    main()
