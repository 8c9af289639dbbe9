"""Measure what one run adds to the memory in use, at its peak.

On a CPU each run has its own fresh process, because a process does not say what it has freed. The
processes are forked from a server that has imported the package and done nothing else, so each
starts with untouched memory and without the seconds that an import takes. They use malloc as the
system has it, whatever the timing process does. On CUDA torch's allocator counts, and the first
call of the timing process is measured, which is the one that a CUDA graph allocates in.
"""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cases import Case
from bench.grown import Grown
from bench.machine import give_freed_memory_back
from bench.models import prepare
from bench.providers import PROVIDERS
from bench.runners import Runner, Timed

_TIMEOUT = 300.0

T = TypeVar("T")
Answer = tuple[float | None, str]


def peak_on_gpu(run: Callable[[], T]) -> tuple[float, T]:
    """Return the extra peak memory of one run on the current GPU in MiB, and what it returned."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20, result


def peak_in_fresh_process(case: Case, provider: str, grown: Grown) -> Answer:
    """Measure the extra peak memory of one run on the CPU, after a small run of the same kind.

    Args:
        case: what to run.
        provider: name.
        grown: weights and states.

    Returns:
        MiB and an empty string, or None and the reason why there is no figure.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.memory"])
    receiver, sender = context.Pipe(duplex=False)
    weights = {name: value.cpu().numpy() for name, value in grown.weights.items()}
    arguments = (case, provider, weights, grown.pool.numpy(), sender)
    process = context.Process(target=_measure, args=arguments)
    try:
        process.start()
    except OSError as error:  # the server of processes is gone
        return None, f"memory: no fresh process: {first_line(error)}"
    sender.close()
    try:
        if receiver.poll(_TIMEOUT):
            with contextlib.suppress(EOFError):  # the child died without an answer
                answer: Answer = receiver.recv()
                return answer
        return None, "memory: the process ended, or did not end, without a result"
    finally:
        process.join(timeout=5)
        process.kill()
        process.join()


def _measure(
    case: Case,
    provider: str,
    weights: dict[str, NDArray[np.float32]],
    pool: NDArray[np.float32],
    sender: Connection,
) -> None:
    """Run in the fresh process; arrays, because tensors would come as shared memory."""
    tensors = {name: torch.tensor(value) for name, value in weights.items()}
    grown = Grown(tensors, torch.tensor(pool))
    try:
        sender.send((_peak(case, provider, grown), ""))
    except Exception as error:
        sender.send((None, f"memory: {type(error).__name__}: {first_line(error)}"))


def _peak(case: Case, provider: str, grown: Grown) -> float:
    """Return the extra peak memory in MiB."""
    model, state = prepare(case, grown)
    runner = PROVIDERS[provider].build(model, torch.device("cpu"))
    small = Case(case.mode, min(case.size, 48), 1, min(case.steps, 2), case.state)
    edge = (case.size - small.size) // 2  # the middle lives, also of a seed
    inner = slice(edge, edge + small.size)
    _prepare(runner, small, state[:1, :, inner, inner].contiguous()).run()
    if PROVIDERS[provider].compiles:
        _prepare(runner, case, state).run()
    timed = _prepare(runner, case, state)
    give_freed_memory_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before_mib = _status("VmRSS")
    timed.run()
    return _status("VmHWM") - before_mib


def _prepare(runner: Runner, case: Case, state: Tensor) -> Timed:
    timed = runner.timed(case, state)
    timed.reset()
    return timed


def _status(field: str) -> float:
    """Read a field of this process's memory (Linux), in MiB: VmRSS now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without a trailing full stop."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
