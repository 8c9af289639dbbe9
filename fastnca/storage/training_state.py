"""What the files of a checkpoint hold: the parts of a trainer's state dict.

train.safetensors            good weights, Adam's moments, losses
pool-RRRRR-of-SSSSS...       states and random state of process R of S
companion-NAME.safetensors   state of recovery and callbacks
manifest.json                counters, options, and what a resumed run must have in common
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastnca.distributed import Processes, shard_bounds
from fastnca.storage.bundle import (
    FileFormatError,
    Header,
    Shapes,
    parse_tensors,
    read_field,
    read_limited,
)
from fastnca.storage.checkpoints import MANIFEST
from fastnca.storage.model import MODEL_FORMAT, read_sizes
from fastnca.storage.tensors import read_rows
from fastnca.version import __version__

State = dict[str, Any]
"""What `PoolTrainer.state_dict` returns."""

TRAIN_FILE = "train.safetensors"
COUNTERS = ("iteration", "skipped", "skipped_in_a_row", "reseeded")
NOT_FINITE = -1.0  # stands for a loss that was not finite: saved tensors hold finite values
_MAX_COUNT = 2**53
_MAX_PROCESSES = 65536
_RECENT = 20  # losses that tell how good a checkpoint is


def shard_name(rank: int, world_size: int) -> str:
    """Return the file name of one process's part of the pool."""
    return f"pool-{rank:05d}-of-{world_size:05d}.safetensors"


def companion_name(name: str) -> str:
    """Return the file name of the state of a callback."""
    return f"companion-{name}.safetensors"


def make_header(state: State, world_size: int) -> Header:
    """Describe a state dict for the manifest."""
    recent = [loss for loss in state["losses"][-_RECENT:].tolist() if math.isfinite(loss)]
    steps = [n.removeprefix("step.") for n in state["optimizer"] if n.startswith("step.")]
    return {
        **{name: value for name, value in state["facts"].items() if name != "config"},
        "run_id": state["run_id"],
        **{name: state[name] for name in COUNTERS},
        "optimizer_steps": int(bool(steps)),
        "optimized": steps,
        "processes": world_size,
        "score": sum(recent) / len(recent) if recent else None,
        "config": state["facts"]["config"],
        "fastnca_version": __version__,
        "torch_version": torch.__version__,
        "device": next(iter(state["model"].values())).device.type,
        "threads": torch.get_num_threads(),
    }


def shard_tensors(state: State) -> dict[str, Tensor]:
    """Return what one process alone knows: its states and its random state."""
    generators = enumerate(state["generators"])
    return {**{f"generator.{n}": value for n, value in generators}, "pool": state["pool"]}


def shared_tensors(state: State) -> dict[str, dict[str, Tensor]]:
    """Return what all processes know, beside the model's weights, by the name of its file.

    Raises:
        ValueError: a number is not finite, so that training could not go on from there.
    """
    losses = torch.where(state["losses"].isfinite(), state["losses"], NOT_FINITE)
    check_finite(state["model"])
    files = {TRAIN_FILE: {**state["optimizer"], "losses": losses}}
    files |= {companion_name(name): each for name, each in state["callbacks"].items()}
    for tensors in files.values():
        check_finite(tensors)
    return files


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers with which training could not go on.

    Raises:
        ValueError: a number is not finite; the message names the tensor.
    """
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' holds NaN or infinite values, so nothing is saved")


def check_manifest(path: Path, header: Header) -> None:
    """Check that a manifest describes a model and the options of its training.

    Raises:
        FileFormatError: it does not.
    """
    with _format_errors(path / MANIFEST):
        read_sizes(header)
        if not isinstance(header.get("config"), dict):
            raise TypeError("field 'config' must be an object")


def read_state(path: Path, header: Header, own: State, processes: Processes) -> State:
    """Read a checkpoint.

    Args:
        path: its directory.
        header: its manifest.
        own: the state dict of the trainer that is to go on; its pool is read into.
        processes: those that go on.

    Returns:
        A state dict. Where the number of processes has changed, `generators` is empty: the pool is
        shared out anew and the random state starts anew. Callbacks that the checkpoint does not
        hold are missing.

    Raises:
        FileFormatError: a file does not hold what the manifest announces.
    """
    with _format_errors(path / MANIFEST):
        shapes = _train_shapes(header, own["model"])
        world_size = read_field(header, "processes", 1, _MAX_PROCESSES)
    tensors = _read(path / TRAIN_FILE, shapes)
    _, weights = MODEL_FORMAT.read(path)
    callbacks = {
        name: _read(path / companion_name(name), _shapes(each))
        for name, each in own["callbacks"].items()
        if companion_name(name) in header["files"]
    }
    _read_pool(path, world_size, own, processes)
    generators: list[Tensor] = []
    if world_size == processes.world_size:
        generators = [torch.empty_like(state) for state in own["generators"]]
        for number, value in enumerate(generators):
            name = shard_name(processes.rank, world_size)
            read_rows(path / name, f"generator.{number}", 0, value)
    losses = tensors.pop("losses")
    return {
        "facts": own["facts"],
        "run_id": header["run_id"],
        **{name: header[name] for name in COUNTERS},
        "losses": losses.masked_fill(losses == NOT_FINITE, torch.nan),
        "model": weights,
        "optimizer": tensors,
        "pool": own["pool"],
        "generators": generators,
        "callbacks": callbacks,
    }


@contextlib.contextmanager
def _format_errors(file: Path) -> Iterator[None]:
    """Name the file of a description that is wrong."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(file, str(error)) from error


def _read(file: Path, shapes: Shapes) -> dict[str, Tensor]:
    return parse_tensors(file, read_limited(file, file.stat().st_size), shapes)


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _train_shapes(header: Header, model: Mapping[str, Tensor]) -> Shapes:
    """Compute the shapes of everything in `train.safetensors`."""
    done = read_field(header, "iteration", 0, _MAX_COUNT)
    for name in ("skipped", "skipped_in_a_row"):
        read_field(header, name, 0, done)
    read_field(header, "reseeded", 0, _MAX_COUNT)
    if not isinstance(header["run_id"], str):
        raise ValueError("field 'run_id' must be text")
    own = _shapes(model)
    optimized = header.get("optimized", [n for n in own if n != "perception.filters"])
    if not isinstance(optimized, list) or not set(optimized) <= set(own):
        raise ValueError("field 'optimized' must list parameters")
    shapes = {f"good.{name}": entry for name, entry in own.items()}
    for name in optimized if header["optimizer_steps"] else []:
        shapes[f"exp_avg.{name}"] = shapes[f"exp_avg_sq.{name}"] = own[name]
        shapes[f"step.{name}"] = ((), torch.float32)
    shapes["losses"] = ((done,), torch.float64)
    return shapes


def _read_pool(path: Path, world_size: int, own: State, processes: Processes) -> None:
    """Read this process's states out of the shards that hold them."""
    config, states = own["facts"]["config"], own["pool"]
    if not config["use_pool"]:
        return
    total = config["pool_size"]
    first, last = processes.shard(total)
    for rank in range(world_size):
        start, stop = shard_bounds(total, rank, world_size)
        low, high = max(start, first), min(stop, last)
        if low < high:
            rows = states[low - first : high - first]
            read_rows(path / shard_name(rank, world_size), "pool", low - start, rows)
