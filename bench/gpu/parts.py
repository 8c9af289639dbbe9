"""The parts of a run on a GPU, in the order of what is learned: commands, limits and rehearsals."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

TESTS = "tests/kernels"
LEFT_OUT = "not compiler and not 2_to_the_31"
VERSIONS = """
import sys, torch, triton
print("Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)
print("CUDA", torch.version.cuda, torch.cuda.is_available() and torch.cuda.get_device_properties(0))
"""
WORKERS = str(min(16, os.cpu_count() or 1))


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Attributes:
        name: what it is called on the command line, and its log after it.
        what: one line for the help text.
        limit: seconds after which it is stopped.
        commands: makes its commands, one after the other until one fails. The arguments are the
            folder for its files and whether it is rehearsed.
        environment: variables of its own.
        tool: program that it needs; without it the part is skipped, or rehearsed without it.
        proves: whether the results count only if it passes.
    """

    name: str
    what: str
    limit: float
    commands: Callable[[str, bool], list[list[str]]]
    environment: tuple[tuple[str, str], ...] = ()
    tool: str = ""
    proves: bool = False


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _rehearsed(arguments: list[str], rehearse: bool) -> list[str]:
    return [*arguments, "--rehearse"] if rehearse else arguments


def _suite(
    name: str,
    files: list[str],
    expression: str = "",
    workers: str = "",
    before: list[str] | None = None,
) -> Callable[[str, bool], list[list[str]]]:
    """Make the commands of a part of tests, `before` first; a rehearsal collects them."""
    first = [before] if before else []

    def commands(folder: str, rehearse: bool) -> list[list[str]]:
        paths = [f"{TESTS}/{file}" for file in files]
        command = _python("pytest", "-q", "-rfEs", "-m", "not full", *paths)
        command += ["-o", "filterwarnings=default"]
        if expression:
            command += ["-k", expression]
        if rehearse:
            return [*first, [*command, "--collect-only"]]
        if workers:
            command += ["-n", workers, "--dist", "load"]
        reports = os.path.join(folder, f"{name}.jsonl")
        return [*first, [*command, "-p", "bench.gpu.reports", "--reports", reports]]

    return commands


def _module(module: str, *options: str) -> Callable[[str, bool], list[list[str]]]:
    return lambda folder, rehearse: [
        _rehearsed(_python(module, *(o.format(folder=folder) for o in options)), rehearse)
    ]


def _profiled(*tool: str) -> Callable[[str, bool], list[list[str]]]:
    """Make commands that run the two step kernels under a profiler, or alone in a rehearsal."""

    def commands(folder: str, rehearse: bool) -> list[list[str]]:
        made = []
        sizes = ("8", "64") if tool[0] == "ncu" else ("2",)
        rules = ("growing",) if tool[0] == "ncu" else ("growing", "texture")
        for batch, rule in product(sizes, rules):
            plain = _python("bench.gpu.profile", "--batch", batch, "--rule", rule)
            plain = _rehearsed(plain, rehearse)
            made.append(plain if rehearse else [*tool, *plain])
        return made

    return commands


_PARITY = [
    "test_rollout.py",
    "test_threshold.py",
    "test_offsets.py",
    "test_alignment.py",
    "test_not_finite.py",
    "test_single.py",
    "test_gpu.py",
    "test_gpu_replay.py",
    "test_training_graph.py",
    "test_variants.py",
]
_NCU = (
    "ncu",
    "--clock-control=none",
    "--profile-from-start=off",
    "--kernel-name=regex:_step_(forward|backward)_kernel",
    "--launch-count=4",
    "--set=detailed",
)
_MEMCHECK = ("compute-sanitizer", "--tool=memcheck", "--error-exitcode=9")
_ONE_THREAD = ("OMP_NUM_THREADS", "1")  # a worker per core computes the reference
_NO_GRAPHS = ("FASTNCA_GRAPHS", "0")
_NO_CACHE = ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

PARTS = {
    part.name: part
    for part in (
        Part(
            "smoke",
            "versions and device; the tutorial's and the texture rule, every gradient",
            90,
            _suite("smoke", ["test_first_look.py"], before=[sys.executable, "-c", VERSIONS]),
            proves=True,
        ),
        Part(
            "parity",
            "every comparison with the reference, other rules, repetition, replay, training",
            240,
            _suite("parity", _PARITY, LEFT_OUT, WORKERS),
            (_ONE_THREAD,),
            proves=True,
        ),
        Part(
            "timing",
            "rollouts, gradients and training iterations beside the tutorial's class, compiled too",
            185,
            _module("bench.gpu.timing", "{folder}/rows.jsonl"),
        ),
        Part(
            "launches",
            "the step kernels with other tiles and programs",
            100,
            _module("bench.gpu.launches", "{folder}/rows.jsonl"),
        ),
        Part("ncu", "Nsight Compute on both step kernels", 45, _profiled(*_NCU), tool="ncu"),
        Part(
            "memcheck",
            "compute-sanitizer on both step kernels of two rules, every allocation on its own",
            75,
            _profiled(*_MEMCHECK),
            (_NO_GRAPHS, _NO_CACHE),
            tool="compute-sanitizer",
        ),
        Part(
            "compile",
            "torch operators, and a rollout within one compiled graph",
            70,
            _suite("compile", ["test_operators.py", "test_gpu.py"], "operators or compiler", "4"),
            (_ONE_THREAD,),
        ),
        Part(
            "captures",
            "captures that fail, in a process of their own",
            40,
            _suite("captures", ["test_gpu_capture.py"]),
        ),
        Part(
            "offsets",
            "more than 2^31 numbers, in 60 GiB",
            40,
            _suite("offsets", ["test_gpu.py"], "2_to_the_31"),
        ),
        Part(
            "training",
            "500 iterations from one seed, fused and in plain PyTorch",
            60,
            _module("bench.gpu.training", "{folder}/rows.jsonl"),
        ),
    )
}
"""By name, in the order in which they run."""
