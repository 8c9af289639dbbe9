"""What a trainer refuses, in a sentence."""

import torch
import torch.nn as nn
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.training.config import TrainConfig
from fastnca.training.processes import Processes

_WRAPPED = ("_orig_mod", "module")
"""Where wrappers keep a model: `torch.compile`, and DataParallel, DDP and AveragedModel."""


def check_model(model: NeuralCA) -> NeuralCA:
    """Return `model`.

    Raises:
        TypeError: it wraps a model, or has no `run_steps`.
        ValueError: it is on the meta device, or none of its parameters requires a gradient.
    """
    wrapped = [name for name in _WRAPPED if isinstance(getattr(model, name, None), nn.Module)]
    if wrapped or not hasattr(model, "run_steps"):
        advice = "make one with fastnca.NeuralCA"
        if wrapped:
            advice = f"pass model.{wrapped[0]}; to train on several devices, pass processes="
        raise TypeError(f"model must be a NeuralCA, got {type(model).__name__}; {advice}")
    parameters = list(model.parameters())
    if any(parameter.is_meta for parameter in parameters):
        raise ValueError(
            "model must hold numbers, got parameters on the meta device; make it on the device "
            "that trains it"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            "model must have a parameter that requires a gradient, got none; call "
            "model.update_net.requires_grad_()"
        )
    return model


def count_slots(config: TrainConfig, processes: Processes) -> int:
    """Return the slots of this process's pool.

    Raises:
        ValueError: the processes are too many for the pool.
    """
    if not config.use_pool:
        return 1
    least = 1 if config.replacement else config.batch_size
    share = config.pool_size // processes.size
    if share < least:
        raise ValueError(
            f"a pool of {config.pool_size} states shared out among {processes.size} processes "
            f"leaves {share} for one of them, which needs {least}; raise pool_size"
        )
    first, last = processes.share(config.pool_size)
    return last - first


def check_target(target: Tensor, like: Tensor) -> Tensor:
    """Return `target` as `[1, 4, S, S]`; see `PoolTrainer` for what is refused.

    Args:
        target: `[1, 4, S, S]` or `[4, S, S]`.
        like: a parameter of the model.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.dim() == 3:
        target = target[None]
    square = target.dim() == 4 and target.shape[2] == target.shape[3] > 0
    if not square or tuple(target.shape[:2]) != (1, 4):
        raise ValueError(f"target must be RGBA [1, 4, size, size], got {list(target.shape)}")
    if target.dtype != like.dtype:
        raise TypeError(f"target is {target.dtype} and the model {like.dtype}; convert one")
    if target.device != like.device:
        raise ValueError(f"target is on {target.device} and the model on {like.device}; move one")
    if not bool(torch.isfinite(target).all()):
        raise ValueError("target holds NaN or infinite values")
    return target.detach()
