"""The pages: their Python runs, their commands exist, their links lead somewhere."""

import importlib.util
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from fastnca.commands.parser import _build_parser
from fastnca.training.recovery import PATIENCE
from tests.published import find
from tests.rule_cases import PUBLISHED

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PATHS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("kernels/**/*.md")])
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


def test_readme_is_short_and_opens_with_a_picture():
    assert len(README.splitlines()) <= 150
    opening = README.split("\n## ")[0]
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", opening)
    assert opening.index(picture) < opening.index("\n- ")
    assert (ROOT / picture).stat().st_size < 100_000


def test_numbers_of_the_bullets():
    """That of the second bullet follows from results: `python -m bench pages --check`."""
    opening = " ".join(README.split("\n## ")[0].split())
    assert f"; {len(PUBLISHED)} published rules are among the cases" in opening
    assert f"rules of {len(PUBLISHED)} published works" in PAGES["docs/rules.md"]
    assert f"after {PATIENCE} iterations in which the pattern dies" in opening


def test_readme_has_the_two_commands():
    shells = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert shells[0] == "python -m pip install . && fastnca train --out runs/circle"
    assert shells[-1] == (
        'python -m pip install -e ".[test]" && python -m pytest -n 2 --dist worksteal'
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "ex3_lizard.json" in block:
        shutil.copy(find("distill-growing/ex3_lizard.json"), tmp_path)
    torch.manual_seed(0)
    exec(block, {})


def commands():
    """Every fastnca command line that a page shows."""
    names = "train|import|grow|regenerate|report|export|play|life|info"
    text = "".join(PAGES.values()).replace("\\\n", " ")
    shown = re.findall(rf"(?<!from )(?<!### )fastnca (?:{names}) [^`&#\n]+", text)
    return sorted({" ".join(each.split()) for each in shown})


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    _build_parser().parse_args(shlex.split(command)[1:])


def programs():
    """Every module and script that a page tells to run."""
    text = "".join(PAGES.values())
    found = re.findall(r"(?:python3?|bash) (?:-m )?([\w./-]+)", text)
    return sorted({each for each in found if re.search(r"[./]", each) and each != "..."})


@pytest.mark.parametrize("program", programs())
def test_programs_exist(program):
    if "/" in program:
        assert (ROOT / program).is_file()
    else:
        assert importlib.util.find_spec(program) is not None


def links():
    """Every link of a page that leads to another one, or to a picture."""
    for name, text in PAGES.items():
        plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", plain):
            if not target.startswith(("http:", "https:")):
                yield name, target


def anchor(heading):
    """Return the name by which a link finds a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere():
    broken = []
    for name, target in links():
        file, _, place = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists():
            broken.append((name, target))
        elif place:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            if place not in map(anchor, headings):
                broken.append((name, target))
    assert broken == []


def test_every_page_is_in_the_index():
    index = PAGES["docs/README.md"]
    for name in PAGES:
        if name.startswith("docs/") and name != "docs/README.md":
            assert f"({name.removeprefix('docs/')})" in index


def test_the_page_of_the_command_line_follows_from_the_parser():
    write = runpy.run_path(str(ROOT / "docs" / "command_line.py"))
    assert write["PAGE"].read_text() == write["updated"](), "run: python docs/command_line.py"
    assert "|  |" not in write["PAGE"].read_text(), "an option without help"


def test_the_layout_names_every_module():
    named = set(re.findall(r"`(?:fastnca/)?([a-z_]+(?:\.py|/))`", CONTRIBUTING))
    for path in (ROOT / "fastnca").iterdir():
        if path.name.startswith("_") or path.name == "py.typed" or path.name == "kernels":
            continue
        name = path.name + ("/" if path.is_dir() else "")
        assert name in named, f"{name} is not in the layout table of CONTRIBUTING.md"
    assert {"kernels/", "tests/", "bench/"} <= named


def test_the_version_is_cited():
    from fastnca import __version__

    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
