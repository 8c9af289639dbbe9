"""Pool training: configuration and presets, the pool, the trainer, and the tutorial's function.

config.py      TrainConfig and the presets
pool.py        SamplePool: sample, write back
damage.py      random discs for the regenerating recipe
trainer.py     PoolTrainer: one iteration, and the loop around it
step.py        StepResult: what one iteration did
checkpoint.py  save a trainer and continue it
log.py         metrics.csv and the progress bar
interrupt.py   finish the iteration on Ctrl-C and SIGTERM
tutorial.py    train_nca
"""

from fastnca.training.best import BestWeights, growth_loss
from fastnca.training.config import PRESETS, TrainConfig
from fastnca.training.pool import SamplePool
from fastnca.training.step import StepResult
from fastnca.training.trainer import DivergedError, PoolTrainer
from fastnca.training.tutorial import train_nca

__all__ = [
    "PRESETS",
    "BestWeights",
    "DivergedError",
    "PoolTrainer",
    "SamplePool",
    "StepResult",
    "TrainConfig",
    "growth_loss",
    "train_nca",
]
