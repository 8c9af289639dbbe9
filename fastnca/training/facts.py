"""What a resumed run must have in common with the run that was saved."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.states import size_of
from fastnca.storage.model import read_sizes
from fastnca.training.config import TrainConfig
from fastnca.training.task import Task

FACTS = ("num_channels", "dtype", "size", "target_sha256", "seed_sha256", "loss", "frozen")

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


def describe_run(model: NeuralCA, task: Task, config: TrainConfig) -> dict[str, Any]:
    """Return the facts of a run, JSON-serialisable."""
    loss, seed_state, size = (
        task.custom_loss,
        task.custom_seed,
        size_of(task.seed_state),
    )
    kind: Any = loss if hasattr(loss, "__qualname__") else type(loss)
    parameters = model.update_net.named_parameters()
    return {
        "num_channels": model.num_channels,
        "rule": task.rule.to_dict(),
        "dtype": str(task.seed_state.dtype).removeprefix("torch."),
        "size": size if isinstance(size, int) else list(size),
        "target_sha256": _digest(task.target),
        "seed_sha256": None if seed_state is None else _digest(seed_state),
        "loss": None if loss is None else f"{kind.__module__}.{kind.__qualname__}",
        "frozen": [name for name, each in parameters if not each.requires_grad] or None,
        "config": config.to_dict(),
    }


def check_facts(saved: Mapping[str, Any], own: Mapping[str, Any], where: str = "") -> None:
    """Refuse to continue a run that was another one.

    Args:
        saved: the facts of a state dict, or a manifest.
        own: the facts of the trainer that is to go on.
        where: what the message begins with.

    Raises:
        TypeError, ValueError: a fact or an option differs; the message names it.
    """
    rule = read_sizes(dict(saved))[1].to_dict()
    pairs = [(name, rule[name], value) for name, value in own["rule"].items()]
    pairs += [(name, saved.get(name), own.get(name)) for name in FACTS]
    for name, before, now in pairs:
        if before == now:
            continue
        if name.endswith("_sha256"):
            raise ValueError(
                f"{where}the saved run has another {name.removesuffix('_sha256')}"
                + (" state" if name == "seed_sha256" else "")
            )
        raise ValueError(f"{where}the saved run has {name} {before}, this one {now}")
    # options that are younger than the checkpoint have their default
    options = {**TrainConfig().to_dict(), **saved["config"]}
    for name, value in json.loads(json.dumps(own["config"])).items():
        if name not in FREE_OPTIONS and options.get(name) != value:
            raise ValueError(
                f"{where}the saved run has {name}={options.get(name)!r}, this one {value!r}"
            )


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
