"""`fastnca info`: versions, devices and backends; or the rule of a saved model."""

import os
import platform
from argparse import Namespace
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from fastnca import __version__
from fastnca.backends import ENVIRONMENT_VARIABLE, requested_backend
from fastnca.backends.cpp.build import DIRECTORY, SWITCH, cpp_library, cpp_reasons
from fastnca.backends.triton_fused import fused_reasons
from fastnca.commands.rule import describe_rule
from fastnca.module import NeuralCA
from fastnca.pictures.render import DEFAULT_SIZE, trained_size
from fastnca.recognition import parameters_of
from fastnca.states import NUM_CHANNELS

_PACKAGES = ("torch", "triton", "numpy", "matplotlib", "pillow", "safetensors", "tqdm")


def info(arguments: Namespace) -> int:
    """Print what this machine can do, or what a model is and who computes it."""
    return _print_machine() if arguments.model is None else _print_model(arguments.model)


def _print_model(path: Path) -> int:
    """Print the sizes and the rule of a saved model, and its backend on this machine."""
    model = NeuralCA.load(path)
    fault = ""
    try:
        height, width = trained_size(model)
    except ValueError as error:
        fault, (height, width) = str(error), DEFAULT_SIZE
    if max(height, width) > 4096:
        height, width = DEFAULT_SIZE
    state = torch.zeros(1, model.num_channels, height, width, dtype=model.perception.filters.dtype)
    weights = sum(parameter.numel() for parameter in parameters_of(model))
    print(f"{path}: {model.num_channels} channels, {weights:,} weights, {state.dtype}")
    for name, value in model.metadata.items():
        print(f"  {name:<16} {value}")
    if fault:
        print(f"  {fault}")
    print("rule (* is not the tutorial's)")
    for line in describe_rule(model.rule):
        print(f"  {line}")
    print(f"backend, on a CPU and a grid of {height}x{width} cells")
    for line in str(model.explain(state)).splitlines():
        print(f"  {line}")
    return 0


def _print_machine() -> int:
    """Print versions, devices and backends."""
    print(f"fastnca {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in _PACKAGES:
        print(f"  {package:<12} {_version(package)}")
    print("devices")
    print(f"  {'cpu':<12} {torch.get_num_threads()} threads")
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        major, minor = torch.cuda.get_device_capability(number)
        print(f"  {f'cuda:{number}':<12} {name}, compute capability {major}.{minor}")
    print("backends")
    print(f"  {'reference':<12} yes")
    print(f"  {'torch':<12} yes")
    cpp = cpp_reasons(torch.float32)
    _print_backend("cpp", cpp)
    if not cpp:
        print(f"  {'':<12} compiled as {cpp_library(torch.float32)._name}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reasons = fused_reasons(device, torch.float32, NUM_CHANNELS, 128, "ieee")
    _print_backend("triton", reasons)
    print("environment")
    for variable in (ENVIRONMENT_VARIABLE, SWITCH, DIRECTORY, "CXX"):
        print(f"  {variable:<18} {os.environ.get(variable, 'not set')}")
    try:
        requested_backend("auto")
    except ValueError as error:
        print(f"  {error}")
    return 0


def _print_backend(name: str, reasons: Sequence[str]) -> None:
    print(f"  {name:<12} {'no: ' + ' '.join(reasons) if reasons else 'yes'}")


def _version(package: str) -> str:
    if package == "torch":
        return torch.__version__  # names the build, for instance +cpu
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
