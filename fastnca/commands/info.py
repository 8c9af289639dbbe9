"""`fastnca info`: versions, devices, and which backend can run."""

import os
import platform
from argparse import Namespace
from collections.abc import Sequence
from importlib import metadata

import torch

from fastnca import __version__
from fastnca.backends import ENVIRONMENT_VARIABLE
from fastnca.cpp import cpp_reasons
from fastnca.fused import fused_reasons
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
    _print_backend("cpp", cpp_reasons(torch.float32))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reasons = fused_reasons(device, torch.float32, NUM_CHANNELS, 128, "ieee")
    _print_backend("triton", reasons)
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    print(
        f"{ENVIRONMENT_VARIABLE} is {chosen!r}" if chosen else f"{ENVIRONMENT_VARIABLE} is not set"
    )
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
