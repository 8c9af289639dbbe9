"""Grown states for benchmarks: which cells are alive decides what a step costs.

    python -m bench.grown

trains the tutorial's recipe for 300 iterations from a fixed seed and keeps model and pool in
`bench/.cache/`, about two minutes on two CPU cores. The other benchmarks call it when needed.
"""

from pathlib import Path

import torch
from torch import Tensor

from fastnca import NeuralCA, create_target_circle
from fastnca.training import PoolTrainer, TrainConfig

CACHE = Path(__file__).parent / ".cache"
ITERATIONS = 300


def trained() -> PoolTrainer:
    """Return the trainer after 300 iterations, from the cache if it is there."""
    torch.manual_seed(0)
    config = TrainConfig(iterations=ITERATIONS, seed=0)
    trainer = PoolTrainer(NeuralCA(), create_target_circle(64), config)
    if (CACHE / "trainer.json").exists():
        trainer.resume(CACHE)
    else:
        trainer.fit()
        trainer.save(CACHE)
    return trainer


def grown_batch(trainer: PoolTrainer, batch: int = 4, alive: float = 0.73) -> Tensor:
    """Return the pool's states whose alive share is nearest to `alive`: `[batch, 16, 64, 64]`."""
    shares = trainer.model.get_alive_mask(trainer.pool.states).mean(dim=(1, 2, 3))
    return trainer.pool.states[(shares - alive).abs().argsort()[:batch]].clone()


if __name__ == "__main__":
    shares = trained().model.get_alive_mask(trained().pool.states).mean(dim=(1, 2, 3))
    quantiles = shares.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    print("alive share of the pool, quartiles:", [round(float(q), 2) for q in quantiles])
