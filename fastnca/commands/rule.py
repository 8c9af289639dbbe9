"""The options of `fastnca train` that say what a step computes."""

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fastnca.rule import (
    ACTIVATIONS,
    ALIVE,
    CHANNELS,
    FILTERS,
    PADDINGS,
    RULES,
    TUTORIAL,
    Rule,
    Taps,
)


def add_rule(parser: ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add an option for each field of `Rule`, and `--rule` for those that have a name.

    Args:
        parser: of the command.
        positive: reads a whole number, at least 1.
    """
    group = parser.add_argument_group("rule", "what a step computes; see fastnca.Rule")
    group.add_argument("--rule", choices=list(RULES), help="a rule by its name (growing)")
    group.add_argument("--channels", type=positive, help="state channels (16; texture 12)")
    group.add_argument(
        "--filters",
        type=_filter,
        nargs="*",
        metavar="FILTER",
        help=f"{', '.join(FILTERS)}, or nine numbers with commas, from the top left on",
    )
    group.add_argument("--learn-filters", action=BooleanOptionalAction, help="train their taps")
    group.add_argument("--padding", choices=PADDINGS, help="what lies beyond the border (zeros)")
    group.add_argument("--alive", choices=ALIVE, help="when a cell must be alive (both)")
    group.add_argument("--alive-threshold", type=float, metavar="ALPHA", help="of life (0.1)")
    group.add_argument(
        "--hidden", type=int, nargs="*", metavar="N", help="widths of the hidden layers (128)"
    )
    group.add_argument("--activation", choices=ACTIVATIONS, help="after a hidden layer (relu)")
    group.add_argument(
        "--final-bias", action=BooleanOptionalAction, help="whether the last layer has a bias (yes)"
    )
    group.add_argument(
        "--inputs", type=int, metavar="N", help="how many channels are read only, the last (0)"
    )
    group.add_argument(
        "--clamp", type=float, nargs=2, metavar=("LOW", "HIGH"), help="limits of a cell (none)"
    )
    group.add_argument("--step-size", type=float, metavar="FACTOR", help="of the update (1)")


def chosen_rule(arguments: Namespace) -> tuple[int, Rule]:
    """Return the channels and the rule of a model.

    Raises:
        TypeError, ValueError: there is no such rule.
    """
    name = arguments.rule or "growing"
    given = {field.name: getattr(arguments, field.name) for field in fields(Rule)}
    changes = {name: value for name, value in given.items() if value is not None}
    return arguments.channels or CHANNELS[name], replace(RULES[name], **changes)


def rule_options(rule: Rule) -> dict[str, Any]:
    """Return the fields of a rule as the options that give it."""
    options = rule.to_dict()
    options["filters"] = [_spell(each) for each in rule.filters]
    return options


def describe_rule(rule: Rule) -> list[str]:
    """Return one line per field of a rule, those that are not the tutorial's marked."""
    lines = []
    for field in fields(rule):
        value, usual = getattr(rule, field.name), getattr(TUTORIAL, field.name)
        shown = ", ".join(map(_spell, value)) if field.name == "filters" else value
        if isinstance(shown, tuple):
            shown = ", ".join(map(str, shown)) or "none"
        lines.append(f"{field.name:<16} {shown}{'' if value == usual else '   *'}")
    return lines


def _filter(text: str) -> str | list[list[float]]:
    """Read a filter: a name, or nine numbers with commas."""
    if "," not in text:
        return text
    try:
        taps = [float(tap) for tap in text.split(",")]
    except ValueError:
        taps = []
    if len(taps) != 9:
        raise ArgumentTypeError(f"must be a name or nine numbers with commas, got {text!r}")
    return [taps[row : row + 3] for row in (0, 3, 6)]


def _spell(each: str | Taps) -> str:
    """Write a filter as `_filter` reads it."""
    if isinstance(each, str):
        return each
    return ",".join(f"{tap!r}" for row in each for tap in row)
