"""Write docs/command-line.md from the parser of the command line.

    python docs/command_line.py

A test compares the page with what this prints.
"""

import argparse
import re
from pathlib import Path

from fastnca.commands.parser import _build_parser

PAGE = Path(__file__).with_name("command-line.md")
BEGIN = "<!-- docs/command_line.py writes what follows -->\n"


def render(parser: argparse.ArgumentParser) -> str:
    """Return a section with a table of options for each command."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    sections = []
    for name, command in commands.choices.items():
        actions = [a for a in command._actions if not isinstance(a, argparse._HelpAction)]
        rows = [f"| {_spelled(action)} | {_meaning(action)} |" for action in actions]
        table = "\n".join(["| option | what it does (default) |", "| --- | --- |", *rows])
        description = f"{command.description[:1].upper()}{command.description[1:]}."
        sections.append(f"### fastnca {name}\n\n{description}\n\n{table}\n")
    return "\n".join(sections)


def _spelled(action: argparse.Action) -> str:
    """Return an option as it is typed."""
    metavar = action.metavar
    if metavar is None:
        metavar = "{" + ",".join(action.choices) + "}" if action.choices else action.dest.upper()
    values = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    if not action.option_strings:
        return f"`{values}`"
    if action.nargs == 0:
        return f"`{', '.join(action.option_strings)}`"
    if action.nargs == "?":
        values = f"[{values}]"
    if action.nargs in ("+", "*"):
        values = f"{values} ..."
    return f"`{', '.join(action.option_strings)} {values}`".replace("|", "\\|")


def _meaning(action: argparse.Action) -> str:
    """Return the help of an option on one line."""
    return re.sub(r"\s+", " ", action.help or "").replace("%%", "%").replace("|", "\\|")


def updated() -> str:
    """Return the text of the page as it should be."""
    head = PAGE.read_text().split(BEGIN)[0]
    return f"{head}{BEGIN}\n{render(_build_parser())}"


if __name__ == "__main__":
    PAGE.write_text(updated())
    print(f"written: {PAGE}")
