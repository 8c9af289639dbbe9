"""Experimental: a rollout whose steps forward are one launch. Not run on hardware yet.

Nothing in the package calls this. `tests/kernels/test_persistent.py` compares it with the launches
that it would replace, `bench/gpu/timing.py` times it; it will be removed unless it is faster.
"""

import torch
from torch import Tensor

from fastnca.backends.triton_fused.checks import check_tensors
from fastnca.backends.triton_fused.plan import make_plan
from fastnca.backends.triton_fused.rollout import enter, leave, prepare
from fastnca.backends.triton_fused.storage import Stored
from fastnca.checks import Parameters
from fastnca.kernels import device_facts, device_guard
from fastnca.kernels.persistent import choose_persistent, persistent_forward


@torch.no_grad()
def persistent_rollout(
    state: Tensor,
    parameters: Parameters,
    *,
    steps: int,
    seed: int | None,
    first_step: int = 0,
    update_rate: float = 0.5,
    precision: str = "fp16",
    count: Tensor | None = None,
    keep: bool = False,
) -> tuple[Tensor, Stored]:
    """Advance a state by several steps in one cooperative launch.

    Args:
        state: `[B, C, H, W]` float32.
        parameters: weights and biases of the two 1x1 convolutions, as in `fused_rollout`.
        steps: the most steps.
        seed: seed of the update masks, a signed 64-bit number; None updates every cell.
        first_step: number of the first step.
        update_rate: probability that a cell updates in a step.
        precision: "fp16", "bf16" or "ieee".
        count: `[]` int64 tensor on the state's device, how many steps are taken; None takes all.
        keep: whether every state is stored; otherwise two slots take turns.

    Returns:
        The last state, `[B, C, H, W]` contiguous, and what a backward pass would read.

    Raises:
        RuntimeError: the kernels cannot run here, or the device cannot hold all programs at once.
        ValueError: a shape or a number is out of range.
    """
    check_tensors(state, parameters, precision)
    plan = make_plan(steps, update_rate, precision, 1, keep, seed is not None)
    with device_guard(state.device):
        stored = prepare(state, parameters, plan, None, (seed or 0, first_step, steps, count))
        enter(state, stored, plan)
        weights = stored.weights
        _, processors = device_facts(state.device)
        config = choose_persistent(
            weights.channels, weights.hidden, weights.packed.dtype, processors
        )
        most, slots, _ = plan.last
        persistent_forward(
            stored.states,
            stored.flags,
            stored.weights,
            stored.counter,
            most,
            slots,
            plan.rule,
            config,
        )
        return leave(state, stored, plan), stored
