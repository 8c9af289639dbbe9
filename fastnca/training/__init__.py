"""Pool training: configuration and presets, the pool, the trainer, and the tutorial's function.

config.py      TrainConfig
presets.py     recipes by name
memory.py      what a run needs, and whether it is there
schedule.py    learning rate, steps and damage in the course of a run
draw.py        every random choice of an iteration
pool.py        SamplePool: states on the device
host_pool.py   HostPool: states in host memory, read ahead
damage.py      random discs for the regenerating recipe
iteration.py   one iteration as operations on tensors
graphed.py     the iteration replayed as one CUDA graph
inputs.py      what a replay reads
checks.py      what a trainer refuses
update.py      gradients, Adam, or no change
trainer.py     PoolTrainer: starts iterations and reads their numbers
step.py        StepResult: what one iteration did; DivergedError
loop.py        the loop around the iterations
processes.py   the processes that train together
run.py         RunDirectory: checkpoints, one trainer at a time
checkpoint.py  what a checkpoint holds
log.py         metrics.csv and the progress bar
doctor.py      what is going wrong
recovery.py    warn, go back to good weights, or stop
interrupt.py   finish the iteration on Ctrl-C and SIGTERM
companions.py  what a checkpoint holds beside the trainer
best.py        the weights that grow best
tutorial.py    train_nca
"""

from fastnca.training.best import BestWeights, growth_loss, healing_loss
from fastnca.training.companions import Companion
from fastnca.training.config import TrainConfig
from fastnca.training.interrupt import StopNow
from fastnca.training.memory import MemoryLimitError
from fastnca.training.pool import SamplePool
from fastnca.training.presets import DEFAULT_PRESET, PRESETS
from fastnca.training.processes import Processes
from fastnca.training.run import CheckpointError, RunDirectory
from fastnca.training.step import CollapsedError, DivergedError, StepResult
from fastnca.training.trainer import PoolTrainer
from fastnca.training.tutorial import train_nca

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "BestWeights",
    "CheckpointError",
    "CollapsedError",
    "Companion",
    "DivergedError",
    "MemoryLimitError",
    "PoolTrainer",
    "Processes",
    "RunDirectory",
    "SamplePool",
    "StepResult",
    "StopNow",
    "TrainConfig",
    "growth_loss",
    "healing_loss",
    "train_nca",
]
