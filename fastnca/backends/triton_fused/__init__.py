"""Rollouts on the fused Triton kernels, as one autograd node.

    support.py     every reason why the fused path cannot run
    checks.py      those reasons, and shapes, before a launch
    plan.py        steps, precision and slots of a rollout
    storage.py     what a rollout keeps on the device
    rollout.py     the loops over steps, forward and backward
    capture.py     how launches become a CUDA graph
    workspace.py   the memory of a rollout, and those loops captured in it as CUDA graphs
    graphs.py      which workspace a rollout gets
    eager.py       the autograd node that launches kernels
    single.py      the same for a single step, whose host cost counts
    operators.py   the torch operators and their fake implementations
    experimental.py  all steps in one launch; only its test and its timing call it
    autograd.py    the autograd node of the operators, and the choice between the two

Importing this package needs neither Triton nor a GPU; Triton is imported by the first rollout.
"""

from torch import Tensor

from fastnca.backends.base import RolloutCall
from fastnca.backends.triton_fused.autograd import fused_rollout, release_graphs
from fastnca.backends.triton_fused.support import fused_reasons, operand_precision, rule_reasons

__all__ = ["TritonFused", "fused_reasons", "fused_rollout", "operand_precision", "release_graphs"]


class TritonFused:
    """The `triton` backend."""

    name = "triton"
    devices = frozenset(("cuda",))
    precisions = frozenset(("fp16", "bf16"))
    draws_masks = True
    least_cells = 0

    def refuses(self, call: RolloutCall) -> list[str]:
        """See `fastnca.backends.base.Backend`."""
        state, rule = call.state, call.rule
        if rule.changed and (reasons := rule_reasons(rule)):
            return reasons
        precision = operand_precision(call.precision, state.device.type)
        return fused_reasons(state.device, state.dtype, state.shape[1], rule.hidden[0], precision)

    def run(self, call: RolloutCall) -> Tensor:
        """See `fastnca.backends.base.Backend`."""
        updates = call.updates
        return fused_rollout(
            call.state,
            call.parameters,
            steps=updates.steps,
            seed=updates.seed,
            first_step=updates.first_step,
            update_rate=updates.update_rate,
            precision=operand_precision(call.precision, call.state.device.type),
            checkpoint_every=call.checkpoint_every,
            count=updates.device_steps,
        )
