"""A copy of the kernels, with or without a deliberate mistake, that the host uses for a while."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

import fastnca.backends.triton_fused.nodes
import fastnca.kernels
from fastnca.backends.triton_fused import settings, single_step
from tests.mutation import Mutant

SOURCE = Path(fastnca.kernels.__file__).parent
HOST = fastnca.backends.triton_fused.__name__


def _load(folder: Path) -> ModuleType:
    """Import the kernels in `folder` beside the shipped ones."""
    name = f"copied_{folder.parent.name}".replace("-", "_")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _patch(copy: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Let every module of the host that has something of the kernels have it of the copy."""
    shipped = {id(getattr(fastnca.kernels, name)): name for name in copy.__all__}
    hosts = [module for name, module in sys.modules.items() if name.startswith(HOST)]
    for host in hosts:
        for name, value in list(vars(host).items()):
            if value is fastnca.kernels:
                patch.setattr(host, name, copy)
            elif id(value) in shipped:
                patch.setattr(host, name, getattr(copy, shipped[id(value)]))
    patch.setattr(single_step, "_prepared", {})


@contextmanager
def copied_kernels(folder: Path, name: str, mutant: Mutant | None = None) -> Iterator[None]:
    """Copy the kernels into `folder`, make a mistake in them, and let the host use them."""
    folder = folder / "kernels"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        mutant.apply(name, folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            _patch(_load(folder), patch)
            settings.kernel_rule.cache_clear()
            yield
    finally:
        settings.kernel_rule.cache_clear()  # of rules that the copy has made
        for loaded in [name for name in sys.modules if name.startswith("copied_")]:
            del sys.modules[loaded]
