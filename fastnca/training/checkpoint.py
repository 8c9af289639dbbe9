"""Save a trainer and continue it: weights, optimiser, pool, random state, counters."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnca.storage.bundle import BundleFormat, Header, Shapes, read_field
from fastnca.storage.model import model_shapes

if TYPE_CHECKING:
    from fastnca.training.trainer import PoolTrainer

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_MAX_COUNT = 2**53
_NOT_FINITE = -1.0  # stands for a loss that was not finite: saved tensors hold finite values
_FREE_OPTIONS = ("iterations", "log_interval")  # may change between save and resume


def _expected(header: Header) -> Shapes:
    """Compute the shapes of everything that a saved run holds."""
    channels = read_field(header, "num_channels", 4, 1024)
    hidden = read_field(header, "hidden_dim", 1, 8192)
    size = read_field(header, "size", 1, 65536)
    slots = read_field(header, "pool_slots", 1, 2**31)
    dtype = _DTYPES[header["dtype"]]
    done = read_field(header, "iteration", 0, _MAX_COUNT)
    read_field(header, "skipped", 0, done)
    read_field(header, "skipped_in_a_row", 0, done)
    moments = read_field(header, "optimizer_steps", 0, 1)
    if not isinstance(header.get("config"), dict):
        raise ValueError("field 'config' must be an object")
    model = model_shapes(channels, hidden, dtype)
    shapes = {
        f"{kind}.{name}": entry for kind in ("model", "good") for name, entry in model.items()
    }
    for name, (shape, _) in list(model.items())[1:] if moments else []:
        shapes[f"exp_avg.{name}"] = shapes[f"exp_avg_sq.{name}"] = (shape, dtype)
        shapes[f"step.{name}"] = ((), torch.float32)
    shapes["pool"] = ((slots, channels, size, size), dtype)
    shapes["losses"] = ((done,), torch.float64)
    generator_bytes = read_field(header, "generator_bytes", 1, 65536)
    shapes["generator"] = ((generator_bytes,), torch.uint8)
    return shapes


TRAINER_FORMAT = BundleFormat("fastnca-trainer", "trainer.json", "trainer.safetensors", _expected)


def _digest(target: Tensor) -> str:
    return hashlib.sha256(target.cpu().contiguous().numpy().tobytes()).hexdigest()


def _describe(trainer: "PoolTrainer") -> Header:
    """Return the facts that must be equal on both sides of a resume."""
    return {
        "num_channels": trainer.model.num_channels,
        "hidden_dim": trainer.model.hidden_dim,
        "dtype": str(trainer.target.dtype).removeprefix("torch."),
        "size": trainer.target.shape[-1],
        "pool_slots": len(trainer.pool),
        "target_sha256": _digest(trainer.target),
    }


def _generator_state(trainer: "PoolTrainer") -> Tensor:
    return torch.get_rng_state() if trainer.generator is None else trainer.generator.get_state()


def save_trainer(trainer: "PoolTrainer", directory: Path) -> None:
    """Write a run into `directory`; see `PoolTrainer.save`."""
    names = dict(trainer.model.named_parameters())
    moments = {
        f"{moment}.{name}": trainer.optimizer.state[parameter][moment]
        for name, parameter in names.items()
        for moment in _MOMENTS
        if parameter in trainer.optimizer.state
    }
    generator = _generator_state(trainer)
    losses = torch.tensor(trainer.losses, dtype=torch.float64)
    tensors = {
        **{f"model.{name}": value for name, value in trainer.model.state_dict().items()},
        **{f"good.{name}": value for name, value in trainer.good_weights.items()},
        **moments,
        "pool": trainer.pool.states,
        "losses": torch.where(losses.isfinite(), losses, _NOT_FINITE),
        "generator": generator,
    }
    header = {
        **_describe(trainer),
        "iteration": trainer.iteration,
        "skipped": trainer.skipped,
        "skipped_in_a_row": trainer.skipped_in_a_row,
        "optimizer_steps": int(bool(moments)),
        "generator_bytes": generator.numel(),
        "config": trainer.config.to_dict(),
    }
    TRAINER_FORMAT.write(directory, header, tensors)


def resume_trainer(trainer: "PoolTrainer", directory: Path) -> None:
    """Continue a run from `directory`; see `PoolTrainer.resume`."""
    if not (directory / TRAINER_FORMAT.json_name).is_file():
        raise FileNotFoundError(f"{directory}: no saved run ({TRAINER_FORMAT.json_name}) here")
    header, tensors = TRAINER_FORMAT.read(directory)
    _check_same(trainer, directory, header)
    trainer.model.load_state_dict(_part(tensors, "model"))
    trainer.good_weights = _part(tensors, "good")
    _restore_optimizer(trainer, tensors)
    trainer.pool.states.copy_(tensors["pool"])
    trainer.iteration = header["iteration"]
    trainer.skipped = header["skipped"]
    trainer.skipped_in_a_row = header["skipped_in_a_row"]
    losses = tensors["losses"]
    trainer.losses = losses.masked_fill(losses == _NOT_FINITE, torch.nan).tolist()
    if trainer.generator is None:
        torch.set_rng_state(tensors["generator"])
    else:
        trainer.generator.set_state(tensors["generator"])


def _check_same(trainer: "PoolTrainer", directory: Path, header: Header) -> None:
    """Refuse to continue a run that was another one."""
    for name, value in _describe(trainer).items():
        if header.get(name) != value:
            raise ValueError(
                f"{directory}: the saved run has {name} {header.get(name)}, this one {value}"
            )
    ours = json.loads(json.dumps(trainer.config.to_dict()))
    for name, value in ours.items():
        if name not in _FREE_OPTIONS and header["config"].get(name) != value:
            raise ValueError(
                f"{directory}: the saved run has {name}={header['config'].get(name)!r}, "
                f"this one {value!r}"
            )


def _part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `kind.`, without that prefix."""
    prefix = f"{kind}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_optimizer(trainer: "PoolTrainer", tensors: dict[str, Tensor]) -> None:
    """Put Adam's moments back."""
    parts = {moment: _part(tensors, moment) for moment in _MOMENTS}
    names = [name for name, _ in trainer.model.named_parameters()]
    state = {
        number: {moment: parts[moment][name] for moment in _MOMENTS}
        for number, name in enumerate(names)
        if name in parts["step"]
    }
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
