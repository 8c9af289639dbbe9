"""The options of a recipe as flags of `fastnca train`."""

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

from fastnca.training import DEFAULT_PRESET, PRESETS, TrainConfig
from fastnca.training.config import COUNTED


def add_recipe(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Add `--preset` and a flag for each field of `TrainConfig`.

    Args:
        parser: of the command.
        count: type of the numbers in a list of iterations.
    """
    group = parser.add_argument_group(
        "recipe",
        f"Each option changes one thing in the preset; in brackets what {DEFAULT_PRESET} has.",
    )
    group.add_argument(
        "--preset",
        choices=list(PRESETS),
        help=f"{DEFAULT_PRESET}: grows and heals, in minutes on two CPU cores; tutorial: the "
        "tutorial's; growing, persistent, regenerating: the experiments of Distill's article; "
        f"texture: with the texture loss ({DEFAULT_PRESET}; texture for --rule texture)",
    )
    phrases = option_phrases()
    for option in fields(TrainConfig):
        _add_option(group, option, phrases.get(option.name, ""), count)


def option_phrases() -> dict[str, str]:
    """Return what the docstring of `TrainConfig` says of each option; nothing with `python -OO`."""
    text = (inspect.getdoc(TrainConfig) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(phrase.split()).rstrip(".") for name, phrase in entries}


def _add_option(
    group: "argparse._ArgumentGroup", option: "Field[Any]", phrase: str, count: Callable[[str], int]
) -> None:
    """Add the flag of one field; without it the preset decides."""
    default = getattr(TrainConfig.preset(DEFAULT_PRESET), option.name)
    if option.name == "seed":
        default = 0
    text = f"{phrase} ({_shown(default) or 'none'})".replace("%", "%%").replace("`", "")
    flag = "--" + option.name.replace("_", "-")
    if option.name == "seed":
        group.add_argument(flag, type=int, default=0, metavar="N", help=text)
    elif isinstance(option.default, bool):
        switch = argparse.BooleanOptionalAction
        group.add_argument(flag, action=switch, default=None, help=text)
    elif isinstance(option.default, tuple):
        kind, name = (type(option.default[0]), "X") if option.default else (count, "N")
        group.add_argument(flag, type=kind, nargs="*", metavar=name, help=text)
    else:
        kind = type(option.default)
        name = {int: "N", float: "X", str: "NAME"}[kind]
        group.add_argument(flag, type=kind, metavar=name, help=text)


def unreached(preset: str, config: TrainConfig) -> str:
    """Say which moments of a preset lie beyond the end of a shortened run, and what suits it.

    Args:
        preset: name of the preset.
        config: the preset with what the user changed.

    Returns:
        A sentence; nothing if the run reaches all of them or the user has set them.
    """
    whole = TrainConfig.preset(preset)
    names = [*COUNTED, "milestones"] if config.damage else ["warm_up", "ramp", "milestones"]
    late = {
        name: value
        for name in names
        if (value := getattr(config, name)) == getattr(whole, name)
        and max(value if isinstance(value, tuple) else (value,), default=0) > config.iterations
    }
    if not late or config.iterations == 0:
        return ""
    shorter = whole.scaled_to(config.iterations)
    return (
        f"a run of {config.iterations} iterations does not reach "
        f"{' and '.join(f'{name} {_shown(value)}' for name, value in late.items())} of {preset}; "
        f"in proportion to its {whole.iterations} iterations that is "
        + " ".join(f"--{name.replace('_', '-')} {_shown(getattr(shorter, name))}" for name in late)
    )


def _shown(value: object) -> str:
    """Write the value of an option as a flag takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
