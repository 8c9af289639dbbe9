"""Make tests/data/grown.safetensors: a briefly trained model and four states of its pool.

    python -m tests.make_grown

The states are grown, with living, dying and dead regions, and the file is committed so that
every machine tests the same ones: training is chaotic, and on many trained states an error in
the cells around the living region would go unnoticed for 20 steps.
"""

import torch
from safetensors.torch import save_file

from fastnca import NeuralCA, create_target_circle
from fastnca.training import PoolTrainer, TrainConfig
from tests.helpers import GROWN


def main() -> None:
    """Train with the seed whose states are sensitive to the halo, and save."""
    torch.manual_seed(7)
    model = NeuralCA(16, 48, backend="torch")
    config = TrainConfig(iterations=110, pool_size=12, min_steps=24, max_steps=40, seed=7)
    trainer = PoolTrainer(model, create_target_circle(28), config)
    trainer.fit(progress=False)
    alive = model.get_alive_mask(trainer.pool.states).mean(dim=(1, 2, 3))
    partly = (alive - 0.5).abs().argsort()[:4]
    save_file({"states": trainer.pool.states[partly], **model.state_dict()}, GROWN)


if __name__ == "__main__":
    main()
