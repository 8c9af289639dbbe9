"""`fastnca train --config run.toml`: every option of the command in a file, and back."""

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastnca.storage.bundle import FileFormatError, read_limited

_MAX_BYTES = 1 << 20
_NOT_SAVED = ("config", "force", "out", "resume", "run")
"""Options of one call, not of the run."""


def expand_config(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Put the options of the file that `--config` names before the words of the command line.

    Args:
        parser: of the command, with its `--config`.
        words: what follows the command's name.

    Returns:
        The words, so that what the user typed comes last and counts.

    Raises:
        FileFormatError: the file is no TOML, or an option in it is unknown or of a wrong type.
        OSError: it cannot be read.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path, nargs="?")  # `parser` complains of a missing name
    path = finder.parse_known_args(words)[0].config
    return list(words) if path is None else [*_read(parser, path), *words]


def read_options(path: Path) -> dict[str, Any]:
    """Read options from a TOML file as they are written there, unchecked.

    Raises:
        FileFormatError: the file is no TOML.
        OSError: it cannot be read.
    """
    content = read_limited(path, _MAX_BYTES)
    try:
        options = tomllib.loads(content.decode())
        if isinstance(options.get("padding"), int):  # its name before rules had a padding
            options["target_padding"] = options.pop("padding")
        return options
    except (ValueError, RecursionError) as error:  # also of a number with thousands of digits
        raise FileFormatError(path, f"not a TOML file ({error})") from error


def write_config(values: dict[str, Any]) -> str:
    """Write options as TOML that `expand_config` reads.

    Args:
        values: by name; None and what belongs to one call only is left out.
    """
    lines = [
        f"{name} = {_encode(value)}"
        for name, value in values.items()
        if name not in _NOT_SAVED and value is not None
    ]
    return "# fastnca train --config THIS_FILE trains the same again\n" + "\n".join(lines) + "\n"


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options of a parser by name."""
    return {action.dest: action for action in parser._actions if action.option_strings}


def _read(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    """Turn a file into words of the command line."""
    options = read_options(path)
    known = {name: a for name, a in _actions(parser).items() if name not in ("config", "help")}
    if unknown := sorted(options.keys() - known.keys()):
        raise FileFormatError(
            path, f"unknown options: {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    words: list[str] = []
    for name, value in options.items():
        words += _words(path, known[name], name, value)
    return words


def _words(path: Path, action: argparse.Action, name: str, value: Any) -> list[str]:
    """Turn one option into words, after a check of its type."""
    flag = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        if not isinstance(value, bool):
            raise FileFormatError(path, f"{name} must be true or false, got {value!r}")
        if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
            return [flag] if value else []
        return [flag if value else "--no-" + flag.removeprefix("--")]
    listed = action.nargs in ("*", 2)
    if name == "hidden" and isinstance(value, int):  # before there were several layers
        value = [value]
    grid = name in ("size", "target_size")
    if grid and isinstance(value, list) and len(value) == 2:
        return [f"{flag}={value[0]}x{value[1]}"]
    hint = "; a rectangle is [height, width]" if grid else ""
    if listed != isinstance(value, list):
        raise FileFormatError(path, f"{name} must be {'a list' if listed else 'one value'}{hint}")
    values = value if listed else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int | float | str):
            raise FileFormatError(path, f"{name} must hold numbers or text, got {each!r}")
        if isinstance(each, str) != _takes_text(action):
            kind = "text" if _takes_text(action) else "a number"
            raise FileFormatError(path, f"{name} must be {kind}, got {each!r}{hint}")
    if listed:
        return [flag, *map(str, values)]
    return [f"{flag}={values[0]}"]


def _takes_text(action: argparse.Action) -> bool:
    """Tell whether the values of an option are text."""
    kind = getattr(action.type, "__name__", "str")
    return action.choices is not None or kind in ("str", "Path", "as_device", "_filter")


def _encode(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_encode, value)) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value))
