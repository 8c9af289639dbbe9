"""The iteration of a trainer, replayed as one CUDA graph.

A graph repeats what was captured: the same operations on the same memory. So a draw and a learning
rate are copied into memory that stays, and the rollout is captured with the most steps there may
be; how many of them are taken, and with which masks, the kernels read on the device.
"""

import gc
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnca.backends.choose import choose_backend
from fastnca.backends.triton_fused import operand_precision
from fastnca.cuda_graphs import Launches, Record, graphs_wanted, record_cuda
from fastnca.module import NeuralCA
from fastnca.training.config import TrainConfig
from fastnca.training.iteration import Iteration
from fastnca.training.pool import SamplePool
from fastnca.training.sampling import IterationDraw

WARM_UP = 2
"""Iterations in a row, on the same tensors, before a capture: they compile and load kernels. One
more comes before them, which allocates Adam's moments."""

_ALIGNMENT = 16  # bytes: the fused kernels take no pointer that is less aligned

_log = logging.getLogger("fastnca")


@dataclass(frozen=True)
class _Graph:
    """A captured iteration: what replays it, and where it leaves the gradients."""

    replay: Launches
    gradients: list[tuple[torch.nn.Parameter, Tensor | None]]


class GraphedIteration(Iteration):
    """An iteration that is captured once and replayed from then on, where it can be.

    Requires CUDA, a single process, the `triton` backend with `checkpoint_every=1`, a pool on the
    device, `loss_steps=1` and a loss that is `capturable`. Otherwise, where Python code hooks into
    the iteration, and after a capture that failed, iterations run uncaptured. Both give the same
    numbers.

    Args:
        *arguments: of `Iteration`.
        record: how an iteration is captured.
        device_type: the type of the devices that it works on.
    """

    def __init__(
        self, *arguments: Any, record: Record | None = None, device_type: str = "cuda"
    ) -> None:
        super().__init__(*arguments)
        self._record = record or record_iteration
        self._device = self._task.seed_state.device
        self._supported = (
            self._device.type == device_type
            and self._processes.world_size == 1
            and self._config.checkpoint_every == 1
            and type(self._pool) is SamplePool
        )
        reason = "loss_steps is above 1" if self._config.loss_steps > 1 else ""
        if not self._task.capturable:
            reason = "the loss has no attribute `capturable` that is true"
        if self._supported and reason:
            self._supported = False
            _log.warning("iterations are not replayed as CUDA graphs: %s", reason)
        drawn = self._config.batch_size if self._config.use_pool or self._task.goals > 1 else 0
        self._inputs = GraphInputs(self._config, drawn, self._device)
        self._side: torch.cuda.Stream | None = None
        self._numbers = torch.empty(0)
        self._found: tuple[Any, ...] | None = None
        self._warm = 0
        self._graph: _Graph | None = None

    def run(self, draw: IterationDraw, learning_rate: float, stop: bool = False) -> Tensor:
        """Do what `Iteration.run` does, by a replay if possible."""
        found = self._find() if self._supported else None
        if found is None:
            return super().run(draw, learning_rate, stop)
        if found != self._found:
            self._found, self._warm, self._graph = found, 0, None
        self._inputs.fill(draw, learning_rate)
        if self._warm < WARM_UP:
            self._warm += 1
            self._run_aside()
        else:
            self._graph = self._graph or self._capture()
            if self._graph is None:
                return super().run(draw, learning_rate, stop)
            self._graph.replay()
            for parameter, gradient in self._graph.gradients:
                if parameter.grad is not gradient:  # an iteration in between had others
                    parameter.grad = gradient
        numbers = self._numbers.clone()
        if stop:  # there is one process
            numbers[3] = 1.0
        return numbers

    def close(self) -> None:
        """Drop the graph, too."""
        self._supported, self._graph = False, None
        super().close()

    def _body(self) -> None:
        """Run an iteration on the inputs; this is what is captured."""
        self._numbers = self._compute(self._inputs.draw, self._inputs.rate)

    def _run_aside(self) -> None:
        """Run the iteration on a stream of its own, as torch asks for before a capture."""
        if self._device.type != "cuda":
            self._body()
            return
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)
        here = torch.cuda.current_stream(self._device)
        self._side.wait_stream(here)
        try:
            with torch.cuda.stream(self._side):
                self._body()
        finally:
            here.wait_stream(self._side)

    def _capture(self) -> _Graph | None:
        """Capture the iteration, which runs nothing of it; None, for good, if that fails."""
        try:
            replay = self._record(self._body, self._device)
        except RuntimeError as error:
            self._supported = False
            self._optimizer.zero_grad()
            # the end of a broken capture fails, too; what broke it came before
            cause = error.__context__ or error
            _log.warning("training goes on without a CUDA graph, its capture failed: %s", cause)
            return None
        return _Graph(replay, [(p, p.grad) for p in self._model.parameters()])

    def _find(self) -> tuple[Any, ...] | None:
        """Return what is frozen into a graph, addresses and options; None if Python must run."""
        model, optimizer = self._model, self._optimizer.adam
        if not graphs_wanted() or not _is_fused(model, self._task.seed_state):
            return None
        parameters = list(model.parameters())
        if _are_hooked(parameters, optimizer):
            return None
        tensors = [*self._task.tensors, self._pool.states, *parameters]
        tensors += self._optimizer.good_weights.values()
        options: list[Any] = [operand_precision(model.precision, self._device.type)]
        options += [parameter.requires_grad for parameter in parameters]
        for group in optimizer.param_groups:
            options += [value for name, value in group.items() if name not in ("params", "lr")]
            tensors.append(group["lr"])
        for state in optimizer.state.values():
            tensors += state.values()
        if not all(isinstance(tensor, Tensor) for tensor in tensors):  # a number would be frozen
            return None
        return *options, *((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


class GraphInputs:
    """A draw and a learning rate in device memory that stays where it is.

    Args:
        config: the options.
        drawn: how many slots an iteration draws.
        device: where.

    Attributes:
        draw: the draw on the device, with the most steps there may be and `count` of them.
        rate: `[]` float32, the learning rate, as Adam keeps it on the device.
    """

    def __init__(self, config: TrainConfig, drawn: int, device: torch.device) -> None:
        self._parts: list[tuple[tuple[int, ...], torch.dtype]] = [
            ((), torch.int64),
            ((), torch.int64),
            ((), torch.float32),
            ((drawn,), torch.int64),
            ((config.damage, 2), torch.float32),
            ((config.damage,), torch.float32),
            ((), torch.bool),
        ]
        size = sum(_padded_bytes(*part) for part in self._parts)
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        seed, count, self.rate, slots, centers, radii, spares = self._cut(self._memory)
        self.draw = IterationDraw(slots, centers, radii, spares, config.max_steps - 1, seed, count)

    def fill(self, draw: IterationDraw, rate: float) -> None:
        """Copy a draw and a learning rate to the device, in one copy that nobody waits for.

        What is copied from is new each time; on CUDA torch keeps pinned memory from being handed
        out again before the copies from it are done.
        """
        memory = torch.empty(self._memory.shape, dtype=torch.uint8, pin_memory=self._memory.is_cuda)
        numbers = draw.seed, draw.steps, rate
        tensors = draw.slots, draw.centers, draw.radii, draw.spares
        for part, value in zip(self._cut(memory), (*numbers, *tensors), strict=True):
            part.copy_(value) if isinstance(value, Tensor) else part.fill_(value)
        self._memory.copy_(memory, non_blocking=True)

    def _cut(self, memory: Tensor) -> list[Tensor]:
        """Return the parts of `memory`."""
        parts, first = [], 0
        for shape, dtype in self._parts:
            size = _padded_bytes(shape, dtype)
            numbers = memory[first : first + size].view(dtype)
            parts.append(numbers[: torch.Size(shape).numel()].view(shape))
            first += size
        return parts


def _padded_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of a tensor, rounded up so that the next one is aligned."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def record_iteration(launches: Launches, device: torch.device) -> Launches:
    """Do what `record_cuda` does, after giving the graph as much memory as there is."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return record_cuda(launches, device)


def _is_fused(model: Any, state: Tensor) -> bool:
    """Tell whether a rollout of `model` is nothing but launches of the fused kernels."""
    if not isinstance(model, NeuralCA) or type(model).run_steps is not NeuralCA.run_steps:
        return False
    if "run_steps" in vars(model) or torch.is_autocast_enabled(state.device.type):
        return False
    return choose_backend(model, model.backend, model.precision, state) == "triton"


def _are_hooked(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether Python code wants to hear of gradients or steps; a replay does not call it."""
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    if any(getattr(parameter, name, None) for parameter in parameters for name in hooks):
        return True
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
