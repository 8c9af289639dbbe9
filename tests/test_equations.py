"""One numbering of equations, E1 to E12: docs, reference, kernels and mutants have all of them."""

import re
from pathlib import Path

import pytest

from tests.kernels import mutants as triton
from tests.kernels.variant_mutants import VARIANT_MUTANTS
from tests.test_cpp_mutants import MUTANTS, RULE_MUTANTS

ROOT = Path(__file__).parent.parent
EQUATIONS = [f"E{number}" for number in range(1, 13)]
PAGE = ROOT / "docs" / "equations.md"
PLACES = {
    "docs": [PAGE],
    "reference": [ROOT / "fastnca" / "reference.py"],
    "torch": sorted((ROOT / "fastnca" / "backends" / "torch_active").glob("*.py")),
    "cpp": sorted((ROOT / "kernels" / "cpu").glob("*.h")),
    "triton": sorted((ROOT / "kernels").glob("*.py")),
}

KINDS = (MUTANTS, RULE_MUTANTS, triton.MUTANTS, triton.SINGLE_MUTANTS, VARIANT_MUTANTS)


@pytest.mark.parametrize("place", PLACES)
def test_every_equation_is_named_and_no_other(place: str) -> None:
    text = "".join(path.read_text() for path in PLACES[place])
    assert set(re.findall(r"\bE\d+\b", text)) == set(EQUATIONS)


def test_every_equation_has_a_mutant_and_no_other() -> None:
    broken = {mutant.equation for kind in KINDS for mutant in kind.values()}
    assert broken - {""} == set(EQUATIONS)


def rows() -> list[list[str]]:
    """Return the cells of the table that says where each equation is."""
    table = PAGE.read_text().split("## Where they are")[1]
    found = re.findall(r"^\| (E\d+) \| (.*) \|$", table, re.MULTILINE)
    return [[equation, *rest.split(" | ")] for equation, rest in found]


def test_the_table_has_a_row_for_every_equation() -> None:
    assert [row[0] for row in rows()] == EQUATIONS


@pytest.mark.parametrize("row", rows(), ids=EQUATIONS)
def test_what_the_table_names_exists(row: list[str]) -> None:
    _, reference, cpp, kernels, tests = row
    text = (ROOT / "fastnca" / "reference.py").read_text()
    for name in re.findall(r"`(?:\w+\.)?(\w+)`", reference):
        assert f"def {name}(" in text, name
    for folder, cell in (("kernels/cpu", cpp), ("kernels", kernels)):
        for file, names in re.findall(r"`(\w+\.\w+)`: ((?:`\w+`(?:, )?)+)", cell):
            text = (ROOT / folder / file).read_text()
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"\b{name}\(", text), f"{file}: {name}"
    for file in re.findall(r"`([\w/]+\.py)`", tests):
        assert (ROOT / "tests" / file).exists(), file
