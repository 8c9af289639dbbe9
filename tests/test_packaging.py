"""The wheel: one top-level name, the kernels inside, nothing else of the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CPP = (".cpp", ".h")
ASSETS = (".css", ".html", ".js")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel without network, from a copy so that the checkout stays clean."""
    import shutil

    source = tmp_path_factory.mktemp("source") / "fastnca"
    wanted = ("fastnca", "kernels")
    for name in wanted:
        shutil.copytree(
            ROOT / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    code = (
        "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, check=True, capture_output=True
    )
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_everything_of_the_package_is_inside(wheel):
    names = set(wheel.namelist())
    for path in (ROOT / "fastnca").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in names
    for path in (ROOT / "kernels").rglob("*.py"):
        assert f"fastnca/{path.relative_to(ROOT)}" in names
    sources = [path for path in (ROOT / "kernels" / "cpu").iterdir() if path.suffix in CPP]
    assert len(sources) > 5
    for path in sources:
        assert f"fastnca/{path.relative_to(ROOT)}" in names
    assets = [path for path in (ROOT / "fastnca" / "exporting").iterdir() if path.suffix in ASSETS]
    assert {path.suffix for path in assets} == set(ASSETS)
    for path in assets:
        assert str(path.relative_to(ROOT)) in names
    assert "fastnca/py.typed" in names


def test_nothing_else_is_inside(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert len(tops) == 2
    assert tops - {"fastnca"} == {name for name in tops if name.endswith(".dist-info")}


def test_metadata(wheel):
    import fastnca

    (path,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    text = wheel.read(path).decode()
    assert f"Version: {fastnca.__version__}" in text
    assert "Requires-Python: >=3.11" in text
    assert "triton>=3.6; platform_system ==" in text
    (path,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "fastnca = fastnca.commands.parser:main" in wheel.read(path).decode()


def test_the_checkout_link_is_relative():
    assert (ROOT / "fastnca" / "kernels").readlink() == Path("../kernels")
