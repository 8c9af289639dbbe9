"""Make a small trained model and its pool: which cells are alive decides what a step costs.

    python -m bench.grown

trains the tutorial's recipe on a 32x32 circle for 200 iterations from a fixed seed and keeps model
and pool in `bench/.cache/`. The other benchmarks call it when needed. Training is chaotic: another
machine grows other states, which is why every result states its alive share.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastnca import NeuralCA, create_target_circle
from fastnca.training import PoolTrainer, TrainConfig

CACHE = Path(__file__).parent / ".cache" / "circle-32"
ITERATIONS = 200
SIZE = 32


@dataclass(frozen=True)
class Grown:
    """A trained model's weights and the states of its pool.

    Attributes:
        weights: its `state_dict`.
        pool: `[256, 16, 32, 32]`.
    """

    weights: dict[str, Tensor]
    pool: Tensor


def load_grown() -> Grown:
    """Return what the script makes, from the cache if it is there."""
    torch.manual_seed(0)
    config = TrainConfig(iterations=ITERATIONS, seed=0)
    trainer = PoolTrainer(NeuralCA(backend="torch"), create_target_circle(SIZE), config)
    if (CACHE / "trainer.json").exists():
        trainer.resume(CACHE)
    else:
        trainer.fit()
        trainer.save(CACHE)
    return Grown(trainer.copy_weights(), trainer.pool.states)


if __name__ == "__main__":
    shares = NeuralCA().get_alive_mask(load_grown().pool).mean(dim=(1, 2, 3))
    quartiles = shares.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    print("alive share of the pool, quartiles:", [round(float(q), 2) for q in quartiles])
