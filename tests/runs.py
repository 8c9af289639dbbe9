"""Shared by the tests of runs: small trainers, and their comparison bit for bit."""

from dataclasses import replace

import torch

from fastnca import RULES, NeuralCA, Rule, create_target_circle
from fastnca.training import Callback, PoolTrainer, TrainConfig

SMALL = {"pool_size": 6, "batch_size": 3, "min_steps": 3, "max_steps": 6, "seed": 1}


class Hooks(Callback):
    """Calls functions without arguments at the hooks that they are named for."""

    def __init__(self, **hooks):
        for name, function in hooks.items():
            setattr(self, name, lambda *_, call=function: call())


def make_trainer(preset="tutorial", size=8, hidden=6, **options):
    torch.manual_seed(0)
    config = TrainConfig.preset(preset, **{**SMALL, **options})
    rule = replace(RULES["texture"] if preset == "texture" else Rule(), hidden=(hidden,))
    return PoolTrainer(NeuralCA(8, rule=rule, backend="torch"), create_target_circle(size), config)


def advance(each: PoolTrainer, iterations: int) -> None:
    for _ in range(iterations):
        each.step()


def tensors(each: PoolTrainer) -> dict[str, torch.Tensor]:
    """Everything that a trainer's future depends on."""
    moments = {
        f"{name}.{key}": value
        for name, parameter in each.model.named_parameters()
        for key, value in each.optimizer.adam.state.get(parameter, {}).items()
    }
    generators = {f"generator.{n}": state for n, state in enumerate(each.sampler.state())}
    return {
        **each.model.state_dict(),
        **{f"good.{name}": value for name, value in each.optimizer.good_weights.items()},
        **moments,
        **generators,
        "pool": each.pool.states,
        "losses": torch.tensor(each.losses, dtype=torch.float64),
        "counters": torch.tensor([each.iteration, each.skipped, each.skipped_in_a_row]),
    }


def assert_same(first: PoolTrainer, second: PoolTrainer) -> None:
    """Compare two trainers bit for bit."""
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, equal_nan=True)
