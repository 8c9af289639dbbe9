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
from fastnca.backends.triton_fused.capture import Launches, Record, graphs_wanted, record_cuda
from fastnca.module import NeuralCA
from fastnca.training.draw import Draw
from fastnca.training.inputs import Inputs
from fastnca.training.iteration import Iteration
from fastnca.training.pool import SamplePool

WARM_UP = 2
"""Iterations in a row, on the same tensors, before a capture: they compile and load kernels. One
more comes before them, which allocates Adam's moments."""

_log = logging.getLogger("fastnca")


@dataclass(frozen=True)
class _Graph:
    """A captured iteration: what replays it, and where it leaves the gradients."""

    replay: Launches
    gradients: list[tuple[torch.nn.Parameter, Tensor | None]]


class GraphedIteration(Iteration):
    """An iteration that is captured once and replayed from then on, where it can be.

    It can be on CUDA, in one process, if the `triton` backend computes the rollout and keeps every
    state of it, and the pool lies on the device. Everywhere else, where Python code hooks into the
    iteration, and after a capture that failed, every iteration runs as `Iteration` does. Both give
    the same numbers.

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
        self._suits = (
            self._target.device.type == device_type
            and self._processes.size == 1
            and self._config.checkpoint_every == 1
            and type(self._pool) is SamplePool
        )
        self._inputs = Inputs(self._config, self._target.device)
        self._side: torch.cuda.Stream | None = None
        self._numbers = torch.empty(0)
        self._found: tuple[Any, ...] | None = None
        self._warm = 0
        self._graph: _Graph | None = None

    def run(self, draw: Draw, learning_rate: float, stop: bool = False) -> Tensor:
        """Do what `Iteration.run` does, by a replay if possible."""
        found = self._find() if self._suits else None
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

    def leave(self) -> None:
        """Let go of the graph, too."""
        self._suits, self._graph = False, None
        super().leave()

    def _body(self) -> None:
        """Run an iteration on the inputs; this is what is captured."""
        self._numbers = self._compute(self._inputs.draw, self._inputs.rate)

    def _run_aside(self) -> None:
        """Run the iteration on a stream of its own, as torch asks for before a capture."""
        if not self._target.is_cuda:
            self._body()
            return
        if self._side is None:
            self._side = torch.cuda.Stream(self._target.device)
        here = torch.cuda.current_stream(self._target.device)
        self._side.wait_stream(here)
        try:
            with torch.cuda.stream(self._side):
                self._body()
        finally:
            here.wait_stream(self._side)

    def _capture(self) -> _Graph | None:
        """Capture the iteration, which runs nothing of it; None, for good, if that fails."""
        try:
            replay = self._record(self._body, self._target.device)
        except RuntimeError as error:
            self._suits = False
            self._update.clear()
            # the end of a broken capture fails, too; what broke it came before
            cause = error.__context__ or error
            _log.warning("training goes on without a CUDA graph, its capture failed: %s", cause)
            return None
        return _Graph(replay, [(p, p.grad) for p in self._model.parameters()])

    def _find(self) -> tuple[Any, ...] | None:
        """Return what is frozen into a graph, addresses and options; None if Python must run."""
        model, optimizer = self._model, self._update.optimizer
        if not graphs_wanted() or not _is_fused(model, self._seed_state):
            return None
        parameters = list(model.parameters())
        if _are_hooked(parameters, optimizer):
            return None
        tensors = [self._target, self._seed_state, self._pool.states, *parameters]
        tensors += self._update.good_weights.values()
        options: list[Any] = [operand_precision(model.precision, self._target.device.type)]
        options += [parameter.requires_grad for parameter in parameters]
        for group in optimizer.param_groups:
            options += [value for name, value in group.items() if name not in ("params", "lr")]
            tensors.append(group["lr"])
        for state in optimizer.state.values():
            tensors += state.values()
        if not all(isinstance(tensor, Tensor) for tensor in tensors):  # a number would be frozen
            return None
        return *options, *((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


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
