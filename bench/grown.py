"""Make a small trained model and its pool: which cells are alive decides what a step costs.

It is trained with the tutorial's recipe on a 32x32 circle for 300 iterations from a fixed seed, and
on until seeds grow: after some iterations they die, and a rollout of dead cells would cost next to
nothing. Model and pool are kept in `bench/.cache/`. Training is chaotic: another machine grows
other states, which is why every result states its alive share.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastnca import NeuralCA, create_seed, create_target_circle
from fastnca.storage.checkpoints import list_checkpoints
from fastnca.training import PoolTrainer, TrainConfig
from fastnca.training.optimizer import copy_weights

CACHE = Path(__file__).parent / ".cache" / "circle-32"
ITERATIONS = 300
MOST_ITERATIONS = 600
SIZE = 32
GROWTH = 0.15
"""Least alive share of seeds after 80 steps; the circle covers 0.38 of its grid."""


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
    if list_checkpoints(CACHE):
        trainer.resume(CACHE)
    else:
        trainer.fit()
        while alive_after_growth(trainer.model) < GROWTH:
            if trainer.iteration >= MOST_ITERATIONS:
                raise RuntimeError(f"seeds still die after {trainer.iteration} iterations")
            trainer.step()
        trainer.save(CACHE)
    return Grown(copy_weights(trainer.model), trainer.pool.states)


def alive_after_growth(model: NeuralCA) -> float:
    """Return the least alive share among four seeds that have grown for 80 steps."""
    with torch.no_grad():
        states = model.run_steps(create_seed(SIZE, batch=4), 80, seed=1)
    return float(model.get_alive_mask(states).mean(dim=(1, 2, 3)).min())
