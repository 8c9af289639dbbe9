"""Stands in for CUDA graphs and for the fused kernels on a CPU; trainers with and without graphs.

A graph repeats operations on the memory that they were captured with: no Python runs again, and
what was a number then stays that number. `Recorder` does just that with the operators that torch
dispatches; capturing changes no memory, and what a graph may not contain is refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastnca import NeuralCA, create_target_circle
from fastnca.masks import philox
from fastnca.reference import PerceptionModule
from fastnca.states import ALIVE_THRESHOLD
from fastnca.training import PoolTrainer, StepResult, TrainConfig
from fastnca.training.graphs import WARM_UP, GraphedIteration
from fastnca.training.iteration import Iteration
from fastnca.training.optimizer import ModelOptimizer
from tests.helpers import excite
from tests.runs import assert_same

FIRST = WARM_UP + 1  # iterations before the capture: the first one allocates Adam's moments
SMALL = {"pool_size": 7, "batch_size": 3, "min_steps": 3, "max_steps": 7, "seed": 1}


@dataclass(frozen=True)
class Call:
    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    outputs: list[Tensor]

    def replay(self) -> None:
        """Run again, and leave the outputs where they were."""
        inputs = tensors_of((self.arguments, self.options))
        fresh = tensors_of(self.function(*self.arguments, **self.options))
        if writes(self.function):
            return
        memory = {storage_of(tensor).data_ptr() for tensor in inputs}
        for old, new in zip(self.outputs, fresh, strict=True):
            if storage_of(old).data_ptr() not in memory:  # else it is a view
                old.copy_(new)


class Tape(TorchDispatchMode):
    """Writes down what is called, and can undo what it changed."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name().split("::")[1].split(".")[0] in self.WAITS:
            raise RuntimeError(f"{function.name()} is not permitted when stream is capturing")
        options = options or {}
        for number, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = arguments[number] if number < len(arguments) else options[argument.name]
                for tensor in tensors_of(given):
                    storage = storage_of(tensor)
                    self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        outputs = function(*arguments, **options)
        self.calls.append(Call(function, arguments, options, tensors_of(outputs)))
        return outputs

    def undo(self) -> None:
        """Put back what was there before."""
        for storage, before in self._before.values():
            storage.copy_(before)


class Recorder:
    """Captures and replays as `record_cuda` does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, launches, device):
        tape = Tape()
        try:
            with tape:
                launches()
        finally:
            tape.undo()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                for call in tape.calls:
                    call.replay()

        return replay


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def writes(function: Any) -> bool:
    return any(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in function._schema.arguments
    )


def plain_rollout(
    state: Tensor,
    parameters: tuple[Tensor, ...],
    *,
    steps: int,
    seed: int | Tensor,
    first_step: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int = 1,
    device_steps: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Compute `fused_rollout` with torch's operators, on grids of a multiple of four cells."""
    w1, b1, w2, b2 = parameters
    batch, channels, height, width = state.shape
    perceive = PerceptionModule(channels)
    quad = torch.arange(batch * height * width // 4)
    zero = torch.zeros((), dtype=torch.int64)
    for step in range(first_step, first_step + steps):
        words = philox((quad, zero, zero + step, zero), seed)
        mask = (words.view(batch, 1, height, width) >> 8) < round(update_rate * 2**24)
        hidden = F.relu(F.conv2d(perceive(state), w1, b1))
        new = state + F.conv2d(hidden, w2, b2) * mask
        new = new * (is_alive(state) & is_alive(new))
        state = (
            new
            if device_steps is None
            else torch.where(step < first_step + device_steps, new, state)
        )
    return state


def is_alive(state: Tensor) -> Tensor:
    return F.max_pool2d(state[:, 3:4], 3, stride=1, padding=1) > ALIVE_THRESHOLD


def make_trainer(
    record=None,
    preset="tutorial",
    size=16,
    model=None,
    device_type="cpu",
    task=None,
    **options,
):
    """Make a trainer that decides on the device, and captures if there is a recorder.

    `task` holds further arguments of `PoolTrainer`, and perhaps another `target`.
    """
    torch.manual_seed(0)
    config = TrainConfig.preset(preset, **{**SMALL, **options})
    made = excite(NeuralCA(8, 16), 0.1) if model is None else model
    task = dict(task or {})
    target = task.pop("target", create_target_circle(size))
    each = PoolTrainer(made, target, config, **task)
    each.optimizer = ModelOptimizer(each.model, config, on_device=True)
    parts = each.model, each.task, config, each.pool, each.optimizer
    if record is None:
        each.iterate = Iteration(*parts, each.processes)
    else:
        each.iterate = GraphedIteration(
            *parts, each.processes, record=record, device_type=device_type
        )
    return each


def compare(graph: PoolTrainer, plain: PoolTrainer, iterations: int) -> list[StepResult]:
    """Advance two trainers, and compare bit for bit what every iteration leaves."""
    results = []
    for _ in range(iterations):
        found, expected = graph.step(), plain.step()
        assert found.steps == expected.steps
        assert found.learning_rate == expected.learning_rate
        assert_same(graph, plain)
        for a, b in zip(graph.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)
        results.append(found)
    return results
