"""The machine: what it is, what it can do at best, and how much memory is free."""

import contextlib
import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import fastnca

ROOT = Path(__file__).parent.parent

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc


@dataclass(frozen=True)
class Machine:
    """Where and with what something was measured.

    Attributes:
        machine: GPU, or architecture, vector instructions and cores of the CPU.
        device: "cpu" or "cuda".
        threads: threads of torch on the CPU.
        malloc: "tuned" if freed memory is kept (see `keep_freed_memory`), else "default".
        python: version.
        torch: version.
        triton: version, empty if not installed.
        jax: version, empty if not installed.
        fastnca: version.
        commit: of this checkout, with "+" if files differ from it; "unknown" without git.
    """

    machine: str
    device: str
    threads: int
    malloc: str
    python: str
    torch: str
    triton: str
    jax: str
    fastnca: str
    commit: str


def describe(device: torch.device, malloc_is_tuned: bool) -> Machine:
    """Describe this process."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        vectors = torch.backends.cpu.get_cpu_capability()
        name = f"{platform.machine()} {vectors}, {os.cpu_count()} cores"
    return Machine(
        machine=name,
        device=device.type,
        threads=torch.get_num_threads(),
        malloc="tuned" if malloc_is_tuned else "default",
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        jax=_version("jax"),
        fastnca=fastnca.__version__,
        commit=_commit(),
    )


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back to the system; tell if it could.

    By default each temporary beyond 32 MiB is mapped anew, page by page, on every call. That
    slows the tutorial's class down several times on large grids, and would flatter every ratio.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    options = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 1 << 26, _M_ARENA_MAX: 1}
    library = ctypes.CDLL(None)
    return all(library.mallopt(option, value) == 1 for option, value in options.items())


def give_freed_memory_back() -> None:
    """Return freed memory to the system or the GPU, so that it is not counted as in use."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches at best, measured.

    Attributes:
        copy_bytes: bytes per second, read and written, of a copy larger than the caches.
        matrix_flop: floating-point operations per second of a float32 matrix product; on CUDA
            of a float16 one, which is what the fused kernels' fastest precision uses.
    """

    copy_bytes: float
    matrix_flop: float


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure both rates, a second or two."""
    on_cuda = device.type == "cuda"
    source = torch.ones(1 << (28 if on_cuda else 26), device=device)
    target = torch.empty_like(source)
    copy = _best_seconds(lambda: target.copy_(source), device)
    size = 8192 if on_cuda else 2048
    dtype = torch.float16 if on_cuda else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = _best_seconds(lambda: left @ right, device)
    return Ceilings(2 * source.numel() * source.element_size() / copy, 2 * size**3 / product)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated on `device` now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # the limit of a container
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = Path("/sys/fs/cgroup/memory.stat").read_text().split()
        free.append(limit - used + int(stat[stat.index("inactive_file") + 1]))
    return min(free, default=1 << 33)


def _best_seconds(call: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
