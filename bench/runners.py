"""How a model is run in each mode, and what the correctness gate asks of it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import Case
from fastnca import NeuralCA, create_target_circle, get_visible_state
from fastnca.masks import update_masks
from fastnca.testing import injected_masks
from fastnca.training import PoolTrainer, TrainConfig

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Timed:
    """A run and what must happen before each one, outside of the measured time."""

    run: Callable[[], object]
    reset: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """What a run gave: the state `[B, C, H, W]`, and gradients by parameter name, or none."""

    state: Tensor
    gradients: dict[str, Tensor]


class Runner(Protocol):
    """What the bench needs of an implementation."""

    def masks(self, mode: str) -> str:
        """Say where a training-mode run gets its masks.

        Returns:
            "seeded", those of `update_masks`; "drawn", from `torch.rand_like`; "own", from a
            random stream that cannot be replayed.
        """

    def timed(self, case: Case, state: Tensor) -> Timed:
        """Prepare runs of `case` from `state` `[B, C, H, W]`."""

    def outcome(
        self, mode: str, state: Tensor, steps: int, train: bool, gradient: bool, seed: int
    ) -> Outcome:
        """Run `steps` steps in the way of `mode`; "drawn" masks are those of `seed` as well."""


def circle_loss(state: Tensor) -> Tensor:
    """Return the tutorial's loss of `state` `[B, 16, H, W]` against its circle."""
    target = create_target_circle(state.shape[-1]).to(state)
    return F.mse_loss(get_visible_state(state), target.expand(len(state), -1, -1, -1))


def square_loss(state: Tensor) -> Tensor:
    """Return the mean square of four channels, for rules whose colours are not clamped."""
    return state[:, :4].square().mean()


def gradients_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of the gradients of the network, by parameter name."""
    return {
        name: parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if name.startswith("update_net") and parameter.grad is not None
    }


class TorchRunner:
    """Run a module that has `forward` and `run_steps`.

    Args:
        module: the model.
        step_masks: see `Runner.masks`, of a call of the module.
        rollout_masks: the same, of `run_steps`.
        before: called before every run.
        loss: of the last state of a run that is differentiated.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        step_masks: str,
        rollout_masks: str,
        before: Callable[[], None] = lambda: None,
        loss: Loss = circle_loss,
    ) -> None:
        self.module = module
        self._step_masks = step_masks
        self._rollout_masks = rollout_masks
        self._before = before
        self._loss = loss
        self._weights = {name: value.clone() for name, value in module.state_dict().items()}

    def masks(self, mode: str) -> str:
        """See `Runner`."""
        return self._step_masks if mode.startswith("step") else self._rollout_masks

    def timed(self, case: Case, state: Tensor) -> Timed:
        """See `Runner`."""
        if case.mode == "training":
            return self._training(case, state)
        self.module.train(case.mode != "inference")

        def run() -> Tensor:
            self._before()
            with contextlib.nullcontext() if case.with_gradient else torch.no_grad():
                end = self._advance(case.mode, state, case.steps, seed=None)
                if case.with_gradient:
                    self._loss(end).backward()
            return end

        return Timed(run, self.module.zero_grad)

    def outcome(
        self, mode: str, state: Tensor, steps: int, train: bool, gradient: bool, seed: int
    ) -> Outcome:
        """See `Runner`."""
        self.module.train(train)
        self.module.zero_grad()
        kind = self.masks(mode)
        drawn = update_masks(seed, 0, steps, state.shape, 0.5, state.device)
        injected = injected_masks(drawn) if kind == "drawn" else contextlib.nullcontext()
        self._before()
        with injected, torch.set_grad_enabled(gradient):
            end = self._advance(mode, state, steps, seed if kind == "seeded" else None)
            gradients = {}
            if gradient:
                self._loss(end).backward()
                gradients = gradients_of(self.module)
        return Outcome(end.detach().clone(), gradients)

    def _advance(self, mode: str, state: Tensor, steps: int, seed: int | None) -> Tensor:
        """Run steps in the way of `mode`; without a seed the module draws its own masks."""
        if mode.startswith("step"):
            return self.module(state)
        return self.module.run_steps(state, steps, seed=seed)

    def _training(self, case: Case, state: Tensor) -> Timed:
        """Prepare iterations of the pool trainer; each starts from the same weights and pool."""
        config = TrainConfig(
            pool_size=case.batch,
            batch_size=case.batch,
            min_steps=case.steps,
            max_steps=case.steps + 1,
            seed=0,
        )
        trainer = PoolTrainer(self.module, create_target_circle(case.size).to(state), config)

        def reset() -> None:
            self.module.load_state_dict(self._weights)
            trainer.pool.states.copy_(state)

        def run() -> None:
            self._before()
            trainer.step()

        return Timed(run, reset)


class Loop:
    """A module's `run_steps` as the tutorial's own loops: a call for every step."""

    def run_steps(
        self,
        state: Tensor,
        steps: int,
        update_rate: float = 0.5,
        *,
        seed: int | None = None,
        first_step: int = 0,
    ) -> Tensor:
        """Call the module `steps` times; it draws its masks itself, so the seed is not used."""
        for _ in range(steps):
            state = self(state, update_rate)  # type: ignore[operator]
        return state


class StepByStep(Loop, NeuralCA):
    """`fastnca.NeuralCA` called once per step."""
