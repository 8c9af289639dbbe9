"""The README: its Python runs, its commands exist, its table of the tree is complete."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from fastnca.commands.parser import _build_parser
from tests.published import find

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODELS = (ROOT / "docs" / "models.md").read_text()
DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("training.md", "textures.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README + DOCS + MODELS, re.DOTALL)


def test_it_opens_with_the_two_commands():
    install, test = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)[:2]
    assert install == "python -m pip install . && fastnca train --out runs/circle"
    assert test == ('python -m pip install -e ".[test]" && python -m pytest -n 2 --dist loadfile')


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_its_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "ex3_lizard.json" in block:
        shutil.copy(find("distill-growing/ex3_lizard.json"), tmp_path)
    torch.manual_seed(0)
    exec(block, {})


def commands():
    """Every fastnca command line that the README and the guide to models show."""
    names = "train|import|grow|regenerate|report|export|play|life|info"
    shown = re.findall(rf"(?<!from )fastnca (?:{names}) [^`&\n]*", README + MODELS)
    return sorted(set(shown))


@pytest.mark.parametrize("command", commands())
def test_its_commands_parse(command):
    words = [word for word in shlex.split(command)[1:] if word != "/"]
    if "grow / regenerate" not in command:
        _build_parser().parse_args(words)


def test_its_table_names_every_module():
    layout = README[README.index("## Layout") : README.index("## Development")]
    named = set(re.findall(r"`(?:fastnca/)?([a-z_]+(?:\.py|/))`", layout))
    for path in (ROOT / "fastnca").iterdir():
        if path.name.startswith("_") or path.name == "py.typed" or path.name == "kernels":
            continue
        name = path.name + ("/" if path.is_dir() else "")
        assert name in named, f"{name} is not in the README's layout table"
    assert {"kernels/", "tests/", "bench/"} <= named
