"""A step and a rollout of a model: checked, given to a backend, computed."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastnca import reference
from fastnca.backends.base import Backend, RolloutCall
from fastnca.backends.choose import choose, is_observed
from fastnca.checks import OutOfRangeError, check_count, check_state, check_steps
from fastnca.masks import Updates, check_seed, check_seed_tensor, check_update_rate, draw_seed
from fastnca.recognition import hooked, hooked_everywhere, overridden, parameters_of

if TYPE_CHECKING:
    from fastnca.module import NeuralCA


def advance_one_step(model: "NeuralCA", state: Tensor, update_rate: float) -> Tensor:
    """Compute `NeuralCA.forward`."""
    check_state(state, model)
    check_update_rate(update_rate)
    call = RolloutCall(state, (), model.rule, Updates(1), model.precision, single=True)
    backend = choose(model, model.backend, call)
    mask = None
    if backend is not None and backend.draws_masks:
        updates = Updates(1, None, _draw_seed(model, state), 0, update_rate)
    else:
        if model.training:
            mask = torch.rand_like(state[:, :1, :, :]) < update_rate
        updates = Updates(1, None if mask is None else mask.transpose(0, 1))
    if backend is not None:
        with contextlib.suppress(OutOfRangeError):
            return backend.run(call._replace(parameters=parameters_of(model), updates=updates))
    return model._step(state, 1.0 if mask is None else mask.to(state.dtype))


def advance(
    model: "NeuralCA",
    state: Tensor,
    updates: Updates,
    checkpoint_every: int = 1,
) -> Tensor:
    """Compute `NeuralCA.run_steps`; the seed of `updates` is what was asked for."""
    check_state(state, model)
    steps, _, seed, first_step, update_rate, _ = updates
    if not 0.0 <= update_rate <= 1.0:
        check_update_rate(update_rate)
    if not (type(steps) is type(first_step) is int and 0 <= steps < 2**62 > first_step >= 0):
        check_steps(first_step, steps)
    if checkpoint_every != 1:
        check_count(checkpoint_every, "checkpoint_every", least=1)
    call = RolloutCall(state, (), model.rule, updates, model.precision, checkpoint_every)
    backend = choose(model, model.backend, call)
    if type(seed) is not int or backend is None or not model.training or not 0 <= seed < 2**63:
        updates = updates._replace(seed=_choose_seed(model, seed, state, backend))
    return _run(model, backend, call._replace(updates=updates))


def iterate(model: "NeuralCA", state: Tensor, updates: Updates, every: int) -> Iterator[Tensor]:
    """Compute `NeuralCA.trajectory`; errors come at the call."""
    check_state(state, model)
    check_update_rate(updates.update_rate)
    check_steps(0, updates.steps)
    check_count(every, "every", least=1)
    call = RolloutCall(state, (), model.rule, updates, model.precision)
    backend = choose(model, model.backend, call)
    seed = _choose_seed(model, updates.seed, state, backend)

    def states() -> Iterator[Tensor]:
        now = state
        yield now
        for first in range(0, updates.steps, every):
            count = min(every, updates.steps - first)
            part = updates._replace(steps=count, seed=seed, first_step=first)
            with torch.no_grad():
                now = _run(model, backend, call._replace(state=now, updates=part))
            yield now

    return states()


def _run(model: "NeuralCA", backend: Backend | None, call: RolloutCall) -> Tensor:
    """Compute a rollout with a backend, or with the reference where that is not exact."""
    if backend is not None and call.updates.steps > 0:
        with contextlib.suppress(OutOfRangeError):
            return backend.run(call._replace(parameters=parameters_of(model)))
    steps, _, seed, first_step, update_rate, _ = call.updates.on_host()
    number = None if seed is None else int(seed)
    return reference.NeuralCA.run_steps(
        model, call.state, steps, update_rate, seed=number, first_step=first_step
    )


def _choose_seed(
    model: "NeuralCA", seed: int | Tensor | None, state: Tensor, backend: Backend | None
) -> int | Tensor | None:
    """Return the seed of a rollout's masks, or None where no seeded mask is used.

    Args:
        model: the model that is called.
        seed: what was asked for, an int or a tensor with one integer; None draws one.
        state: the input.
        backend: who computes the rollout; None is the reference.

    Returns:
        The seed. None if every cell updates, or if the reference draws masks step by step: where a
        step calls hooks, and where torch records what a call draws.

    Raises:
        TypeError: the seed is not an integer, or a call of `model` draws masks of its own.
        ValueError: the seed is out of range.
    """
    if backend is None and (own := _own_steps(model)):
        if seed is not None and model.training:
            raise TypeError(
                f"{own}, and a seeded rollout would not call it; leave seed=None and use "
                "torch.manual_seed"
            )
        return None
    if seed is None:
        recorded = backend is None and (
            hooked_everywhere() or torch.compiler.is_compiling() or is_observed(state)
        )
        return None if recorded else _draw_seed(model, state)
    if not model.training:
        return None
    if isinstance(seed, Tensor):
        return check_seed_tensor(seed)
    return check_seed(seed)


def _draw_seed(model: "NeuralCA", state: Tensor) -> int | Tensor | None:
    """Draw a seed from torch's generator, or return None where every cell updates.

    `torch.compile` draws it where the state lives, as a part of the graph.
    """
    if not model.training:
        return None
    if torch.compiler.is_compiling():
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=state.device)
    return draw_seed()


def _own_steps(model: "NeuralCA") -> str:
    """Say why every step of a rollout must call `model`; empty if none must."""
    if "forward" in overridden(model):
        return f"this {type(model).__name__} overrides forward, which draws its own masks"
    if hooked(model):
        return f"this {type(model).__name__} has hooks on its calls"
    return ""
