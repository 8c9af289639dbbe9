"""What a checkpoint holds: weights, optimiser, pool shards, random state, counters."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnca.storage.bundle import (
    FileFormatError,
    Header,
    Shapes,
    parse_tensors,
    read_field,
    read_limited,
)
from fastnca.storage.checkpoints import MANIFEST
from fastnca.storage.model import MODEL_FORMAT, describe_model, model_shapes, read_sizes
from fastnca.storage.tensors import read_rows
from fastnca.training.config import TrainConfig
from fastnca.training.processes import cut

if TYPE_CHECKING:
    from fastnca.training.trainer import PoolTrainer

TRAIN_FILE = "train.safetensors"
_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_MAX_COUNT = 2**53
_MAX_PROCESSES = 65536
NOT_FINITE = -1.0  # stands for a loss that was not finite: saved tensors hold finite values
_RECENT = 20  # losses that tell how good a checkpoint is
FREE_OPTIONS = (
    "iterations",
    "log_interval",
    "save_interval",
    "keep",
    "pool_memory",
    "checkpoint_every",
    "repairs",
)
"""Options that may differ between save and resume: they change no number of a run in which
nothing goes wrong, but for `iterations` with a linear or cosine schedule, which changes the
learning rate."""


def shard_name(rank: int, size: int) -> str:
    """Return the file name of one process's part of the pool."""
    return f"pool-{rank:05d}-of-{size:05d}.safetensors"


def describe(trainer: "PoolTrainer") -> Header:
    """Return the facts that must be equal on both sides of a resume.

    Raises:
        TypeError, ValueError: a checkpoint cannot describe the model.
    """
    return {
        "num_channels": describe_model(trainer.model)["num_channels"],
        "rule": trainer.model.rule.to_dict(),
        "dtype": str(trainer.target.dtype).removeprefix("torch."),
        "size": trainer.target.shape[-1],
        "target_sha256": _digest(trainer.target),
        "frozen": [
            name
            for name, parameter in trainer.model.update_net.named_parameters()
            if not parameter.requires_grad
        ]
        or None,
    }


def make_header(trainer: "PoolTrainer") -> Header:
    """Describe a trainer for the manifest."""
    from fastnca import __version__

    recent = [loss for loss in trainer.losses[-_RECENT:] if math.isfinite(loss)]
    return {
        **describe(trainer),
        "run_id": trainer.run_id,
        "iteration": trainer.iteration,
        "skipped": trainer.skipped,
        "skipped_in_a_row": trainer.skipped_in_a_row,
        "reseeded": trainer.reseeded,
        "optimizer_steps": int(bool(trainer.optimizer.state)),
        "optimized": [name for name, p in _parameters(trainer) if p in trainer.optimizer.state],
        "processes": trainer.processes.size,
        "score": sum(recent) / len(recent) if recent else None,
        "config": trainer.config.to_dict(),
        "fastnca_version": __version__,
        "torch_version": torch.__version__,
        "device": trainer.target.device.type,
        "threads": torch.get_num_threads(),
    }


def shard_tensors(trainer: "PoolTrainer") -> dict[str, Tensor]:
    """Return what this process alone knows: its states and its random state."""
    generators = enumerate(trainer.randomness.state())
    return {
        **{f"generator.{number}": state for number, state in generators},
        "pool": trainer.pool.states,
    }


def train_tensors(trainer: "PoolTrainer") -> dict[str, Tensor]:
    """Return what all processes know, beside the model's weights.

    Raises:
        ValueError: a number is not finite, so that training could not go on from there.
    """
    moments = {
        f"{moment}.{name}": trainer.optimizer.state[parameter][moment]
        for name, parameter in _parameters(trainer)
        for moment in _MOMENTS
        if parameter in trainer.optimizer.state
    }
    good = {f"good.{name}": value for name, value in trainer.good_weights.items()}
    losses = torch.tensor(trainer.losses, dtype=torch.float64)
    tensors = {**good, **moments, "losses": torch.where(losses.isfinite(), losses, NOT_FINITE)}
    check_finite({**tensors, **trainer.model.state_dict()})
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers with which training could not go on.

    Raises:
        ValueError: a number is not finite; the message names the tensor.
    """
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' holds NaN or infinite values, so nothing is saved")


def check_same(trainer: "PoolTrainer", path: Path, header: Header) -> None:
    """Refuse to continue a run that was another one.

    Raises:
        ValueError: a fact or an option differs; the message names it.
    """
    found = describe(trainer)
    try:
        saved_rule = read_sizes(header)[1].to_dict()
    except (TypeError, ValueError) as error:
        raise FileFormatError(path / MANIFEST, str(error)) from error
    for name, value in found.pop("rule").items():
        if saved_rule[name] != value:
            raise ValueError(
                f"{path}: the saved run has {name} {saved_rule[name]}, this one {value}"
            )
    for name, value in found.items():
        if header.get(name) == value:
            continue
        if name == "target_sha256":
            raise ValueError(f"{path}: the saved run has another target")
        raise ValueError(f"{path}: the saved run has {name} {header.get(name)}, this one {value}")
    saved = header.get("config")
    if not isinstance(saved, dict):
        raise FileFormatError(path / MANIFEST, "field 'config' must be an object")
    saved = {**TrainConfig().to_dict(), **saved}  # options that are younger than the checkpoint
    for name, value in json.loads(json.dumps(trainer.config.to_dict())).items():
        if name not in FREE_OPTIONS and saved.get(name) != value:
            raise ValueError(
                f"{path}: the saved run has {name}={saved.get(name)!r}, this one {value!r}"
            )


def restore(trainer: "PoolTrainer", path: Path, header: Header) -> bool:
    """Continue from checkpoint `path`, whose manifest is `header`.

    Returns:
        Whether the run goes on bit for bit; if the number of processes changed, it does not: the
        pool is shared out anew and the random state starts anew.

    Raises:
        FileFormatError: a file does not hold what the manifest announces.
        ValueError: the saved run is another one.
    """
    check_same(trainer, path, header)
    try:
        expected = _train_shapes(header)
        size = read_field(header, "processes", 1, _MAX_PROCESSES)
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(path / MANIFEST, str(error)) from error
    file = path / TRAIN_FILE
    tensors = parse_tensors(file, read_limited(file, file.stat().st_size), expected)
    _, weights = MODEL_FORMAT.read(path)
    _read_pool(trainer, path, size)
    exact = size == trainer.processes.size
    if exact:
        _read_generators(trainer, path)
    else:
        trainer.randomness.branch(header["iteration"])
    trainer.model.load_state_dict(weights)
    for name, value in part(tensors, "good").items():
        trainer.good_weights[name].copy_(value)
    _restore_optimizer(trainer, tensors)
    losses = tensors["losses"]
    trainer.set_progress(
        header["iteration"],
        header["skipped"],
        header["skipped_in_a_row"],
        header["reseeded"],
        losses.masked_fill(losses == NOT_FINITE, torch.nan).tolist(),
    )
    trainer.run_id = header["run_id"]
    return exact


def _train_shapes(header: Header) -> Shapes:
    """Compute the shapes of everything in `train.safetensors`."""
    channels, rule = read_sizes(header)
    dtype = _DTYPES[header["dtype"]]
    done = read_field(header, "iteration", 0, _MAX_COUNT)
    for name in ("skipped", "skipped_in_a_row"):
        read_field(header, name, 0, done)
    read_field(header, "reseeded", 0, _MAX_COUNT)
    if not isinstance(header["run_id"], str):
        raise ValueError("field 'run_id' must be text")
    model = model_shapes(channels, rule, dtype)
    shapes = {f"good.{name}": entry for name, entry in model.items()}
    every = list(model)[0 if rule.learn_filters else 1 :]
    optimized = header.get("optimized", every)
    if not isinstance(optimized, list) or not set(optimized) <= set(every):
        raise ValueError("field 'optimized' must list parameters")
    for name in optimized if header["optimizer_steps"] else []:
        shape, _ = model[name]
        shapes[f"exp_avg.{name}"] = shapes[f"exp_avg_sq.{name}"] = (shape, dtype)
        shapes[f"step.{name}"] = ((), torch.float32)
    shapes["losses"] = ((done,), torch.float64)
    return shapes


def _read_pool(trainer: "PoolTrainer", path: Path, size: int) -> None:
    """Read this process's states out of the shards that hold them."""
    states = trainer.pool.states
    if not trainer.config.use_pool:
        read_rows(path / shard_name(0, size), "pool", 0, states)
        return
    total = trainer.config.pool_size
    first, last = trainer.processes.share(total)
    for rank in range(size):
        start, stop = cut(total, rank, size)
        low, high = max(start, first), min(stop, last)
        if low < high:
            rows = states[low - first : high - first]
            read_rows(path / shard_name(rank, size), "pool", low - start, rows)


def _read_generators(trainer: "PoolTrainer", path: Path) -> None:
    """Read this process's random state."""
    states = [torch.empty_like(state) for state in trainer.randomness.state()]
    for number, state in enumerate(states):
        file = path / shard_name(trainer.processes.rank, trainer.processes.size)
        read_rows(file, f"generator.{number}", 0, state)
    trainer.randomness.restore(states)


def _parameters(trainer: "PoolTrainer") -> list[tuple[str, torch.nn.Parameter]]:
    """Return the model's parameters by name, in the order of the optimiser."""
    return list(trainer.model.named_parameters())


def _digest(target: Tensor) -> str:
    return hashlib.sha256(target.cpu().contiguous().numpy().tobytes()).hexdigest()


def part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `kind.`, without that prefix."""
    prefix = f"{kind}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizer(trainer: "PoolTrainer", tensors: Mapping[str, Tensor]) -> None:
    """Put Adam's moments back."""
    parts = {moment: part(tensors, moment) for moment in _MOMENTS}
    names = [name for name, _ in _parameters(trainer)]
    state = {
        number: {moment: parts[moment][name] for moment in _MOMENTS}
        for number, name in enumerate(names)
        if name in parts["step"]
    }
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
