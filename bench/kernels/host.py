"""Measure what the host spends on a step of the tutorial's loop, without a GPU.

    python -m bench host [--repeats 2000] [--json FILE]

Every launch of a compiled kernel is replaced by one that only reads the addresses of its tensors,
so what is timed is Python, torch's dispatcher, its autograd and its allocator (of the CPU), not
Triton's launcher and not the driver. On a GPU `bash bench/gpu.sh OUTDIR timing` measures all of
it. Costs are medians of single calls in microseconds.

The stand-in takes the place of what `CompiledKernel.__getitem__` returns. It visits every argument
in Python, which takes about as long as the C launcher does for the same arguments; of the Python
around the C launcher, one query of device and stream, nothing is counted.

The fixed filters are compared once, as on a GPU, not in every call, as on a CPU.

No kernel writes the gradients, so they hold what the memory held, often denormal numbers, which a
CPU adds to a parameter's gradient twenty times slower than others: denormals count as zero here.

"step backward" enters and leaves autograd for a single step. "each step of a loop" is what another
`state = model(state)` costs in a loop of many, and what it adds to the way back.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastnca.fixed_filters
import fastnca.recognition
from fastnca import NeuralCA, create_seed
from fastnca.backends.triton_fused import limits
from fastnca.backends.triton_fused.nodes import GRAPHS
from fastnca.kernels import launch

LAUNCHES = [0]


def _launch(*arguments: Any) -> None:
    """Do what the C launcher does to a kernel's arguments, and count it."""
    LAUNCHES[0] += 1
    for argument in arguments:
        if isinstance(argument, Tensor):
            argument.data_ptr()


class _NoKernel:
    """Stands for a compiled kernel."""

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        return _launch


class _NoKernels(dict):  # type: ignore[type-arg]
    """Stands for the cache of compiled kernels: everything is in it."""

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the kernel that does nothing."""
        hash(key)
        return _NO_KERNEL


_NO_KERNEL = None, _NoKernel()


def without_kernels() -> None:
    """Let the fused path run on a CPU, with kernels that do nothing."""
    launch._compiled = _NoKernels()
    limits._device_reasons = lambda device, interpreted: ()
    fastnca.fixed_filters.has_filters = fastnca.recognition.has_filters = lambda *_: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.set_flush_denormal(True)


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of `call`."""
    for _ in range(50):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def launches_of(call: Callable[[], Any]) -> int:
    """Return how many kernels `call` launches."""
    before = LAUNCHES[0]
    call()
    return LAUNCHES[0] - before


def measure(repeats: int) -> dict[str, float]:
    """Time single steps and whole rollouts of the model.

    Returns:
        Microseconds by name, and the number of launches in each.
    """
    GRAPHS.release()
    torch.manual_seed(0)
    model = NeuralCA(backend="triton", precision="fp16")
    state = create_seed(8)
    leaf = create_seed(8).requires_grad_()
    weight = torch.rand_like(state)

    def step() -> Tensor:
        return model(leaf)

    results: list[Tensor] = []

    def backward() -> None:
        results.pop().backward(weight)

    def rollout(steps: int) -> Tensor:
        with torch.no_grad():
            return model.run_steps(state, steps, seed=1)

    found = {}
    with torch.no_grad():
        found["step, no gradient"] = microseconds(lambda: model(state), repeats)
        found["step, no gradient, launches"] = launches_of(lambda: model(state))
    found["step forward"] = microseconds(step, repeats)
    found["step forward, launches"] = launches_of(step)
    results.extend(step() for _ in range(repeats + 51))
    found["step backward"] = microseconds(backward, repeats)
    found["step backward, launches"] = launches_of(backward)

    def loop(steps: int) -> Tensor:
        state = leaf
        for _ in range(steps):
            state = model(state)
        return state

    def whole(steps: int) -> None:
        loop(steps).backward(weight)

    forward = each_further(loop, repeats // 10)
    found["each step of a loop, forward"] = forward
    found["each step of a loop, backward"] = each_further(whole, repeats // 10) - forward
    found["each further step of a rollout"] = each_further(rollout, repeats // 10)
    return found


def each_further(run: Callable[[int], Any], repeats: int) -> float:
    """Return what another step costs in a run of many, by the difference of 72 and 8 steps."""
    few = microseconds(lambda: run(8), repeats)
    return (microseconds(lambda: run(72), repeats) - few) / 64


def main(arguments: list[str] | None = None) -> int:
    """Print the costs, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m bench host", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--repeats", type=int, default=2000, help="timed calls of each kind")
    parser.add_argument("--json", type=Path, help="file to write the costs to")
    options = parser.parse_args(arguments)
    without_kernels()
    found = measure(options.repeats)
    for name, value in found.items():
        print(f"{name:32} {value:8.1f}" if "launches" not in name else f"{name:32} {value:8}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0
