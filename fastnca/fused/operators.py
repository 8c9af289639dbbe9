"""The torch operators `fastnca::rollout_forward` and `fastnca::rollout_backward`.

Defined with `torch.library`, so that `torch.compile` treats a whole rollout as one node. Step
counts are symbolic integers: a new count needs no new graph.
"""

import torch
from torch import Tensor

from fastnca.fused.rollout import Plan, allocate, run_backward, run_forward
from fastnca.kernels import Rule
from fastnca.masks import threshold
from fastnca.states import ALIVE_THRESHOLD

_PARAMETERS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2"
_PLAN = (
    "Tensor? counter, SymInt steps, float update_rate, str precision, "
    "SymInt checkpoint_every, float alive_threshold"
)

torch.library.define(
    "fastnca::rollout_forward",
    f"(Tensor state, {_PARAMETERS}, {_PLAN}, bool keep) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastnca::rollout_backward",
    f"(Tensor grad, Tensor states, Tensor flags, {_PARAMETERS}, {_PLAN}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _plan(
    counter: Tensor | None,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    alive_threshold: float,
) -> Plan:
    """Collect the arguments that say how a rollout runs; no counter updates every cell."""
    limit = threshold(update_rate)
    rule = Rule(limit, counter is not None, alive_threshold)
    return Plan(steps, precision, rule, checkpoint_every)


def _counter(counter: Tensor | None, state: Tensor) -> Tensor:
    """Return the counter, or one that no kernel reads the draws of."""
    if counter is None:
        return torch.zeros(2, dtype=torch.int64, device=state.device)
    return counter


@torch.library.impl("fastnca::rollout_forward", ("cpu", "cuda"))
def _rollout_forward(state, w1, b1, w2, b2, counter, *arguments):
    *arguments, keep = arguments
    plan = _plan(counter, *arguments)
    return run_forward(state, (w1, b1, w2, b2), _counter(counter, state), plan, keep)


@torch.library.impl("fastnca::rollout_backward", ("cpu", "cuda"))
def _rollout_backward(grad, states, flags, w1, b1, w2, b2, counter, *arguments):
    plan = _plan(counter, *arguments)
    return run_backward(grad, states, flags, (w1, b1, w2, b2), _counter(counter, grad), plan)


@torch.library.register_fake("fastnca::rollout_forward")
def _fake_forward(state, w1, b1, w2, b2, counter, steps, update_rate, precision, *arguments):
    checkpoint_every, _, keep = arguments
    slots = 2
    if keep:
        slots = -(-steps // checkpoint_every) + (1 if checkpoint_every == 1 else 3)
    states, flags = allocate(state, slots)
    return torch.empty_like(state, memory_format=torch.contiguous_format), states, flags


@torch.library.register_fake("fastnca::rollout_backward")
def _fake_backward(grad, states, flags, w1, b1, w2, b2, counter, *arguments):
    return tuple(
        torch.empty_like(like, memory_format=torch.contiguous_format)
        for like in (grad, w1, b1, w2, b2)
    )


def rollout_forward(
    state: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
    counter: Tensor | None,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call `fastnca::rollout_forward`; see `fastnca.fused.rollout.run_forward`."""
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.fastnca.rollout_forward(
        state,
        *parameters,
        counter,
        steps,
        update_rate,
        precision,
        checkpoint_every,
        ALIVE_THRESHOLD,
        keep,
    )
    return result
