"""Deliberate mistakes in source files, found by their statements instead of their spelling.

Source and pattern are compared token by token, Python and C++ alike: white space, line breaks and
comments do not count. In a pattern `$name` is any identifier, the same one wherever it occurs,
`$$name` an expression, as few tokens with balanced brackets as possible, and `$$$name` the same
across statements. What replaces a match uses these names; its line breaks keep the indentation.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COMMENT, CPP_COMMENT = r"\#[^\n]*", r"//[^\n]*|/\*.*?\*/"
TOKEN = r"""
    (?:[bfruBFRU]{0,2}(?:\"{3}.*?\"{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    | \d[\w.]* | \$+\w+ | \w+
    | (?:<<|>>|\*\*|//)=? | [-+*/%&|^=!<>:]= | -> | :: | && | \|\| | \+\+ | --
    | .
"""


@dataclass(frozen=True)
class Mutant:
    """One deliberate mistake.

    Attributes:
        file: path of the source file in its folder.
        equation: the equation of `docs/equations.md` that it breaks, such as "E5"; "" for none.
        before: pattern that matches exactly once.
        after: what takes its place.
        within: function to look in; None looks in the whole file.
    """

    file: str
    equation: str
    before: str
    after: str
    within: str | None = None

    def apply(self, name: str, folder: Path) -> None:
        """Make the mistake in the sources in `folder`, or raise an `AssertionError` with `name`."""
        path = folder / self.file
        changed, count = mutate(path.read_text(), self)
        where = f"{self.file}, {self.within}" if self.within else self.file
        assert count == 1, f"mutant {name!r}: {count} matches of {self.before!r} in {where}"
        path.write_text(changed)


class Token(NamedTuple):
    """A token, where it stands, how many brackets are open after it, whether it begins a line."""

    text: str
    start: int
    end: int
    depth: int
    begins: bool


Captures = dict[str, list[Token]]


def tokenize(text: str, python: bool) -> list[Token]:
    """Return the tokens of a text in Python or C++."""
    tokens: list[Token] = []
    depth, line = 0, False
    skipped = rf"(?P<skipped>\s+|\\\n|{COMMENT if python else CPP_COMMENT})"
    for match in re.finditer(rf"{skipped}|{TOKEN}", text, re.DOTALL | re.VERBOSE):
        found = match.group()
        if match["skipped"]:
            line |= python and depth == 0 and found[0] != "\\" and "\n" in found
            continue
        depth += (found in "([{") - (found in ")]}")
        tokens.append(Token(found, *match.span(), depth, line))
        line = False
    return tokens


def mutate(text: str, mutant: Mutant) -> tuple[str, int]:
    """Replace the first match of a pattern; return the new text and how many matches there are."""
    python = mutant.file.endswith(".py")
    tokens = tokenize(text, python)
    pattern = [token.text for token in tokenize(mutant.before, python)]
    spans = list(_spans(text, tokens, mutant))
    every = (_match(pattern, tokens, at, {}) for at in range(len(tokens)))
    found = [held for held in every if held and any(a <= held[""][0].start < b for a, b in spans)]
    if not found:
        return text, 0
    slices = {name: slice(held[0].start, held[-1].end) for name, held in found[0].items()}
    start, end = slices[""].start, slices[""].stop
    line = text[text.rfind("\n", 0, start) + 1 : start]
    indented = mutant.after.replace("\n", "\n" + line[: len(line) - len(line.lstrip())])
    new = re.sub(r"\$+\w+", lambda match: text[slices[match.group()]], indented)
    return text[:start] + new + text[end:], len(found)


def _match(pattern: list[str], tokens: list[Token], at: int, captures: Captures) -> Captures | None:
    """Match from token `at` on; return what the names stand for, "" standing for the match."""
    if not pattern:
        return captures
    if at == len(tokens):
        return None
    head, rest = pattern[0], pattern[1:]
    ends: Iterable[int] = [at + 1]
    if head.startswith("$$"):
        ends = _expressions(tokens, at, head.startswith("$$$"))
    elif tokens[at].text != head and not (head[0] == "$" and tokens[at].text.isidentifier()):
        return None
    for end in ends:
        new = tokens[at:end]
        held = captures.get(head, new)
        if [token.text for token in held] == [token.text for token in new]:
            whole = captures.get("", []) + new
            if found := _match(rest, tokens, end, captures | {head: held, "": whole}):
                return found
    return None


def _expressions(tokens: list[Token], at: int, statements: bool) -> Iterator[int]:
    """Yield the ends of tokens with balanced brackets from `at` on, in one statement or several."""
    outside = tokens[at - 1].depth if at else 0
    for end in range(at, len(tokens)):
        text, _, _, depth, begins = tokens[end]
        ended = not statements and depth == outside and (text == ";" or (begins and end > at))
        if depth < outside or ended:
            return
        if depth == outside:
            yield end + 1


def _spans(text: str, tokens: list[Token], mutant: Mutant) -> Iterator[tuple[int, int]]:
    """Yield the spans of text that define functions of the name, or that of the whole text."""
    if mutant.within is None:
        yield 0, len(text)
    elif mutant.file.endswith(".py"):
        lines = [0, *(match.end() for match in re.finditer("\n", text)), len(text)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == mutant.within:
                yield lines[node.lineno - 1], lines[node.end_lineno or 0]
    else:
        for at, (name, start, _, depth, _) in enumerate(tokens):
            if name == mutant.within and tokens[at + 1].text == "(":
                # a definition has a body before the next semicolon, a call has none
                ends = (t for t in tokens[at:] if t.depth < depth or t.text in (";", "}"))
                end = next(t for t in ends if t.depth <= depth)
                if end.depth == depth and end.text == "}":
                    yield start, end.end
