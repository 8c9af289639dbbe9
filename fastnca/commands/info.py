"""`fastnca info`: versions, devices, which backend can run, and the environment variables."""

import os
import platform
from argparse import Namespace
from collections.abc import Sequence
from importlib import metadata

import torch

from fastnca import __version__
from fastnca.backends import ENVIRONMENT_VARIABLE, requested_backend
from fastnca.backends.cpp.build import DIRECTORY, SWITCH, cpp_library, cpp_reasons
from fastnca.backends.triton_fused import fused_reasons
from fastnca.states import NUM_CHANNELS

_PACKAGES = ("torch", "triton", "numpy", "matplotlib", "pillow", "safetensors", "tqdm")


def info(_: Namespace) -> int:
    """Print what this machine can do."""
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
