"""Which rules the compiled kernels compute, and how they are told."""

import ctypes
from functools import lru_cache

from fastnca.rule import PADDINGS, Rule

_MOST_FILTERS, _TAPS = 4, 9


class CRule(ctypes.Structure):
    """`Rule` of `kernels/cpu/rule.h`."""

    _fields_ = (
        ("filters", ctypes.c_int64),
        ("taps", ctypes.c_double * _TAPS * _MOST_FILTERS),
        *((name, ctypes.c_int64) for name in ("padding", "before", "after")),
        ("threshold", ctypes.c_double),
        ("inputs", ctypes.c_int64),
        ("clamped", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("low", "high", "step_size")),
    )


def rule_reasons(rule: Rule) -> list[str]:
    """List what the compiled kernels do not compute of a rule; empty if they compute all of it."""
    reasons = []
    if len(rule.filters) > _MOST_FILTERS:
        reasons.append(
            f"filters={rule.filters!r}: the cpp backend computes at most {_MOST_FILTERS}"
        )
    if rule.learn_filters:
        reasons.append("learn_filters=True: the cpp backend computes fixed filters")
    if len(rule.hidden) != 1:
        reasons.append(f"hidden={rule.hidden!r}: the cpp backend computes one hidden layer")
    if rule.activation != "relu":
        reasons.append(f"activation={rule.activation!r}: the cpp backend computes relu")
    return reasons


@lru_cache(maxsize=64)
def c_rule(rule: Rule) -> CRule:
    """Return a rule as the kernels are told.

    Raises:
        ValueError: they do not compute it.
    """
    if reasons := rule_reasons(rule):
        raise ValueError("; ".join(reasons))
    found = CRule(
        filters=len(rule.filters),
        padding=PADDINGS.index(rule.padding),
        before=rule.alive_before,
        after=rule.alive_after,
        threshold=rule.alive_threshold,
        inputs=rule.inputs,
        clamped=rule.clamp is not None,
        step_size=rule.step_size,
    )
    for number, taps in enumerate(rule.taps):
        found.taps[number][:] = [tap for row in taps for tap in row]
    if rule.clamp is not None:
        found.low, found.high = rule.clamp
    return found
