"""Shared by the tests: grown states, the comparison of a rollout with the reference, faults."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fastnca import NeuralCA, get_visible_state, reference
from fastnca.backends.base import BACKENDS, RolloutCall
from fastnca.backends.cpp import cpp_reasons
from fastnca.backends.cpp.rollout import compute
from fastnca.masks import Updates
from fastnca.recognition import parameters_of
from fastnca.rule import TUTORIAL, Rule

GROWN = Path(__file__).parent / "data" / "grown.safetensors"

_MISSING = "; ".join(cpp_reasons(torch.float32))
COMPILED = pytest.mark.skipif(bool(_MISSING), reason=f"the cpp backend cannot run: {_MISSING}")

ACTIVE = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=COMPILED)])
"""The backends that work on active cells."""

CPU_DEFAULT = "torch" if cpp_reasons(torch.float32) else "cpp"
"""What "auto" takes on a CPU: compiled kernels if there is a compiler."""

PARAMETERS = (
    "update_net.0.weight",
    "update_net.0.bias",
    "update_net.2.weight",
    "update_net.2.bias",
)


@dataclass(frozen=True)
class Grown:
    weights: dict[str, Tensor]
    states: Tensor  # [B, 16, 28, 28] float32

    def model(self, kind=NeuralCA, dtype=torch.float64, **options):
        model = kind(16, 48, **options)
        model.load_state_dict(self.weights)
        return model.to(dtype)


def load_grown() -> Grown:
    """Read what `tests/make_grown.py` made."""
    tensors = load_file(GROWN)
    return Grown(states=tensors.pop("states"), weights=tensors)


@dataclass(frozen=True)
class Outcome:
    state: Tensor
    gradients: dict[str, Tensor]


def roll_out(model, state: Tensor, steps: int, seed: int, update_rate: float = 0.5) -> Outcome:
    """Run a rollout and differentiate a loss that reaches every visible channel."""
    model.zero_grad()
    state = state.clone().requires_grad_()
    end = model.run_steps(state, steps, update_rate, seed=seed)
    target = torch.linspace(0, 1, end[:, :4].numel(), dtype=end.dtype).view_as(end[:, :4])
    (F.mse_loss(get_visible_state(end), target) + (end[:, 4:] ** 2).mean()).backward()
    named = dict(model.named_parameters())
    gradients = {name: named[name].grad.clone() for name in PARAMETERS}
    return Outcome(end.detach(), {"state": state.grad, **gradients})


def run_backend(model, backend: str, state: Tensor, updates: Updates) -> Tensor:
    """Compute a rollout with a backend, masks given or drawn; the reference does not step in."""
    call = RolloutCall(state, parameters_of(model), model.rule, updates)
    return BACKENDS[backend].run(call)


def cpp_rollout(state: Tensor, parameters, updates: Updates, rule: Rule = TUTORIAL) -> Tensor:
    """Compute a rollout with the compiled kernels, whatever they are given."""
    return compute(RolloutCall(state, tuple(parameters), rule, updates))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    scale = max(float(expected.abs().max()), 1e-300)
    return float((value.to(expected.dtype) - expected).abs().max()) / scale


def copy_weights(source: torch.nn.Module, kind=reference.NeuralCA, dtype=None) -> torch.nn.Module:
    """Make a model of another class with the same weights."""
    model = kind(source.num_channels, source.update_net[0].out_channels)
    model = model.to(dtype or next(source.parameters()).dtype).train(source.training)
    model.load_state_dict(source.state_dict())
    return model


def excite(model: torch.nn.Module, scale: float = 0.05) -> torch.nn.Module:
    """Give the zero-initialised last layer random weights, so that a step changes something."""
    with torch.no_grad():
        model.update_net[2].weight.normal_(0, scale)
        if model.update_net[2].bias is not None:
            model.update_net[2].bias.normal_(0, scale / 10)
    return model


def compiled(function, graphs):
    """Compile without a graph break, and collect the graphs."""

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


def operators_of(graph):
    """Return the names of the rollout operators in a graph and those inside of it."""
    modules = (m for m in graph.modules() if isinstance(m, torch.fx.GraphModule))
    nodes = (node for module in modules for node in module.graph.nodes)
    return [str(node.target) for node in nodes if "fastnca.rollout" in str(node.target)]


def break_call(patch: pytest.MonkeyPatch, number: int, names: tuple[str, ...]) -> list[int]:
    """Make call `number`, from 1, of those functions of `os` fail; return how many were made."""
    count = [0]

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def broken(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **options)

        patch.setattr(os, name, broken)

    for name in names:
        wrap(name)
    return count
