"""How a rollout runs: its steps, its precision, and the slots its states are stored in."""

from dataclasses import dataclass
from functools import lru_cache

from fastnca.kernels import Rule
from fastnca.masks import threshold
from fastnca.states import ALIVE_THRESHOLD


@dataclass(frozen=True)
class Plan:
    """What is the same in every step of a rollout.

    Attributes:
        steps: launches of a step kernel, the most steps M that can be taken.
        precision: "fp16", "bf16" or "ieee".
        rule: which cells update, and which are alive.
        checkpoint_every: every how many steps k a state is kept for the backward pass.
        keep: whether states are kept at all; otherwise two slots take turns.
    """

    steps: int
    precision: str
    rule: Rule
    checkpoint_every: int = 1
    keep: bool = True

    @property
    def segments(self) -> int:
        """Number of stretches of at most k steps."""
        return -(-self.steps // self.checkpoint_every)

    @property
    def slots(self) -> int:
        """Number of stored states: the kept ones, and two to work in."""
        if not self.keep:
            return 2
        return self.steps + 1 if self.checkpoint_every == 1 else self.segments + 3

    @property
    def last(self) -> tuple[int, int, int]:
        """M, N and F of the last slot, F + min(T, M) mod N, after T steps."""
        if not self.keep:
            return self.steps, 2, 0
        if self.checkpoint_every == 1:
            return self.steps, self.steps + 1, 0
        return self.steps, 1, self.slot(self.steps)

    def slot(self, step: int) -> int:
        """Return the slot of the state after `step` steps."""
        if not self.keep:
            return step % 2
        if step % self.checkpoint_every == 0:
            return step // self.checkpoint_every
        return self.segments if step == self.steps else self.segments + 1 + step % 2


@lru_cache(maxsize=256)
def make_plan(
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    keep: bool,
    random: bool,
) -> Plan:
    """Check the numbers of a rollout and collect them.

    Args:
        steps: the most steps, at least 0.
        update_rate: probability that a cell updates in a step, in [0, 1].
        precision: "fp16", "bf16" or "ieee".
        checkpoint_every: every how many steps a state is kept, at least 1.
        keep: whether states are kept for a backward pass.
        random: False updates every cell in every step.

    Returns:
        The plan.

    Raises:
        ValueError: a number is out of range.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    rule = Rule(threshold(update_rate), random, ALIVE_THRESHOLD)
    return Plan(steps, precision, rule, checkpoint_every, keep)
