"""The tables of what each backend computes: made from what the backends refuse."""

import inspect
from pathlib import Path

import pytest
import torch

from fastnca import Rule
from fastnca.backends.base import BACKENDS, RolloutCall
from fastnca.masks import Updates
from fastnca.rule import ACTIVATIONS, Taps

PAGE = Path(__file__).parent.parent / "docs" / "backends.md"

UNEVEN: Taps = ((0.0, 0.5, -1.0), (0.25, 1.0, 0.0), (2.0, 0.0, -0.5))

ROWS: dict[str, list[Rule]] = {
    "the tutorial's rule, any hidden width": [Rule(), Rule(hidden=(17,))],
    "up to four fixed filters, any 3x3 taps": [
        Rule(filters=("identity", "laplacian")),
        Rule(filters=("identity", "sobel_x", "sobel_y", UNEVEN)),
    ],
    "more filters": [Rule(filters=("identity", UNEVEN) * 3)],
    "`learn_filters`": [Rule(learn_filters=True)],
    "`padding` circular": [Rule(padding="circular")],
    "`padding` reflect, replicate": [Rule(padding="reflect"), Rule(padding="replicate")],
    "`alive` none": [Rule(alive="none")],
    "`alive` before, after": [Rule(alive="before"), Rule(alive="after")],
    "another `alive_threshold`": [Rule(alive_threshold=0.4)],
    "no hidden layer, or several": [Rule(hidden=()), Rule(hidden=(8, 8))],
    "another `activation`": [Rule(activation=name) for name in ACTIVATIONS if name != "relu"],
    "no `final_bias`": [Rule(final_bias=False)],
    "`inputs`": [Rule(inputs=3)],
    "`clamp`, `step_size`": [Rule(clamp=(-2, 2)), Rule(step_size=0.5)],
}
NAMES = ("reference", "torch", "cpp", "triton")


def computes(backend: str, rule: Rule) -> bool:
    """Tell whether no sentence of a backend's refusal begins with a field of the rule."""
    if backend == "reference":
        return True
    call = RolloutCall(torch.zeros(1, 16, 4, 4), (), rule, Updates(1))
    reasons = BACKENDS[backend].refuses(call)
    return not any(reason.startswith(f"{name}=") for reason in reasons for name in rule.changed)


def cells() -> list[tuple[str, ...]]:
    """Return the table, line by line."""
    lines = [("what", *NAMES)]
    for label, rules in ROWS.items():
        found = [{computes(name, rule) for rule in rules} for name in NAMES]
        assert all(len(each) == 1 for each in found), f"{label}: part of it is computed"
        lines.append((label, *("yes" if each == {True} else "no" for each in found)))
    return lines


def markdown() -> str:
    """Return the table of docs/backends.md."""
    head, *rows = ("| " + " | ".join(line) + " |" for line in cells())
    return "\n".join((head, "| --- |" + " --- |" * len(NAMES), *rows))


def text() -> str:
    """Return the table of the docstring."""
    lines = [[cell.replace("`", "") for cell in line] for line in cells()]
    wide = max(len(line[0]) for line in lines)
    return "\n".join(
        f"    {line[0]:<{wide}}  " + "  ".join(f"{cell:<9}" for cell in line[1:]).rstrip()
        for line in lines
    )


def test_the_table_of_the_page():
    assert markdown() in PAGE.read_text(), f"put this there:\n{markdown()}"


def test_the_table_of_the_docstring():
    assert text() in inspect.getdoc(Rule), f"put this there:\n{text()}"


@pytest.mark.parametrize("name", ["torch", "cpp", "triton"])
def test_every_refusal_of_a_rule_begins_with_its_field(name):
    for rule in (each for rules in ROWS.values() for each in rules):
        if not computes(name, rule):
            call = RolloutCall(torch.zeros(1, 16, 4, 4), (), rule, Updates(1))
            (reason,) = BACKENDS[name].refuses(call)
            (field,) = rule.changed
            assert reason.startswith(f"{field}={getattr(rule, field)!r}: ")
