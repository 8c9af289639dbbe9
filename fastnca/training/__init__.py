"""Pool training: recipes, the pool, the trainer, callbacks, and the tutorial's function.

config.py      TrainConfig
presets.py     recipes by name
task.py        seeds, targets, rollout and loss of a run
sampling.py    every random choice of an iteration
pool.py        SamplePool on the device, HostPool in host memory
optimizer.py   gradients, Adam, the learning rate
iteration.py   one iteration as operations on tensors
graphs.py      the iteration replayed as one CUDA graph
recovery.py    what is going wrong, and what is done about it
callbacks.py   Callback, what it is told, and the metrics files
ema.py         the averaged weights that grow best
facts.py       what a resumed run must have in common with the saved one
loop.py        the loop of `fit`, and the signals that stop it
trainer.py     PoolTrainer
tutorial.py    train_nca

Losses are in `fastnca.losses`, run directories and checkpoints in `fastnca.storage`, the processes
that train together in `fastnca.distributed`.
"""

from fastnca.distributed import Processes
from fastnca.memory import MemoryLimitError
from fastnca.storage.runs import CheckpointError, RunDirectory
from fastnca.training.callbacks import (
    Callback,
    CollapsedError,
    DivergedError,
    StepResult,
    TrainingLog,
)
from fastnca.training.config import TrainConfig
from fastnca.training.ema import EmaTracker, growth_loss, healing_loss
from fastnca.training.loop import ForcedStop
from fastnca.training.pool import SamplePool
from fastnca.training.presets import DEFAULT_PRESET, PRESETS
from fastnca.training.task import Task
from fastnca.training.trainer import PoolTrainer
from fastnca.training.tutorial import train_nca

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "Callback",
    "CheckpointError",
    "CollapsedError",
    "DivergedError",
    "EmaTracker",
    "ForcedStop",
    "MemoryLimitError",
    "PoolTrainer",
    "Processes",
    "RunDirectory",
    "SamplePool",
    "StepResult",
    "Task",
    "TrainConfig",
    "TrainingLog",
    "growth_loss",
    "healing_loss",
    "train_nca",
]
