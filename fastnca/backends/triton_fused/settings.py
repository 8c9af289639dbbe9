"""The settings of a rollout: what all of its steps share, and what its update masks count from."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from torch import Tensor

from fastnca.kernels import KernelRule, StepSettings, make_rule
from fastnca.masks import threshold
from fastnca.rule import Rule


class MaskCounter(NamedTuple):
    """The numbers that the update masks are drawn from.

    Attributes:
        seed: the seed's 64 bits as a signed int, or a `[]` int64 tensor that kernels read.
        first_step: number of the first step.
        steps: the maximum number of steps.
        device_steps: `[]` int64 tensor with the number of steps, which kernels read; None takes
            the maximum.
    """

    seed: int | Tensor
    first_step: int
    steps: int
    device_steps: Tensor | None


class LastSlot(NamedTuple):
    """Where the last state is: slot `first + min(T, max_steps) mod slots` after T steps."""

    max_steps: int
    slots: int
    first: int


@dataclass(frozen=True)
class RolloutSettings:
    """What is the same in every step of a rollout.

    Attributes:
        rule: what a step computes.
        steps: the maximum number of steps; so many step kernels are launched.
        limit: a cell updates when its 24-bit draw is below this number.
        random: whether masks are drawn; False updates every cell in every step.
        precision: "fp16", "bf16" or "ieee".
        checkpoint_every: every k-th state is kept for the backward pass.
        keep: whether states are kept at all; otherwise two slots take turns.
    """

    rule: Rule
    steps: int
    limit: int
    random: bool
    precision: str
    checkpoint_every: int = 1
    keep: bool = True

    @cached_property
    def step_settings(self) -> StepSettings:
        """What every step kernel is told."""
        return StepSettings(self.limit, self.random, self.rule.alive_threshold)

    @property
    def segments(self) -> int:
        """Number of segments of at most k steps; a state is kept at the start of each."""
        return -(-self.steps // self.checkpoint_every)

    @property
    def slots(self) -> int:
        """Number of stored states: those that are kept, and two to work in."""
        if not self.keep:
            return 2
        return self.steps + 1 if self.checkpoint_every == 1 else self.segments + 3

    @property
    def last_slot(self) -> LastSlot:
        """Where the last state is."""
        if not self.keep:
            return LastSlot(self.steps, 2, 0)
        if self.checkpoint_every == 1:
            return LastSlot(self.steps, self.steps + 1, 0)
        return LastSlot(self.steps, 1, self.slot(self.steps))

    def slot(self, step: int) -> int:
        """Return the slot of the state after `step` steps."""
        if not self.keep:
            return step % 2
        if step % self.checkpoint_every == 0:
            return step // self.checkpoint_every
        return self.segments if step == self.steps else self.segments + 1 + step % 2


@lru_cache(maxsize=256)
def kernel_rule(rule: Rule, channels: int) -> KernelRule:
    """Return what kernels are compiled for, of a rule and a state of `channels` channels."""
    first_input = channels - rule.inputs if rule.inputs else 0
    alive, circular = rule.alive == "both", rule.padding == "circular"
    return make_rule(rule.taps, circular, alive, rule.final_bias, first_input)


@lru_cache(maxsize=256)
def make_settings(
    rule: Rule,
    steps: int,
    update_rate: float,
    precision: str,
    checkpoint_every: int,
    random: bool,
    keep: bool,
) -> RolloutSettings:
    """Check the numbers of a rollout and collect them.

    Args:
        rule: what a step computes.
        steps: the maximum number of steps, at least 0.
        update_rate: probability that a cell updates in a step, in [0, 1].
        precision: "fp16", "bf16" or "ieee".
        checkpoint_every: every k-th state is kept, k at least 1.
        random: whether masks are drawn.
        keep: whether states are kept for a backward pass.

    Raises:
        ValueError: a number is out of range.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    limit = threshold(update_rate)
    return RolloutSettings(rule, steps, limit, random, precision, checkpoint_every, keep)
