"""Who is measured: the tutorial's class, compiled, this package's backends, and CAX.

The baseline is the tutorial's code to the letter (`fastnca.testing.tutorial`), as its users run it:
in a loop, with torch's default settings. Of a rule that is not the tutorial's, the baseline is the
reference in the same loop.
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.models import Model
from bench.runners import Loop, Runner, StepByStep, TorchRunner
from fastnca import NeuralCA, reference
from fastnca.backends.cpp import cpp_reasons
from fastnca.rule import TUTORIAL
from fastnca.testing import tutorial

BASELINE = "tutorial"

Refusal = str | None


class TutorialCA(Loop, tutorial.NeuralCA):
    """The tutorial's class with `run_steps` as the trainer calls it."""


class PlainCA(Loop, reference.NeuralCA):
    """The reference of any rule, called once per step."""


@dataclass(frozen=True)
class Tolerance:
    """How far a correct provider may be from the reference.

    Attributes:
        state: largest difference of a cell's channel.
        cells: share of cells that may differ by more, because an alpha within rounding of the
            alive threshold falls on its other side.
        gradient: Euclidean norm of a gradient's difference, relative to the gradient's.
    """

    state: float = 1e-4
    cells: float = 1e-5
    gradient: float = 1e-3


@dataclass(frozen=True)
class Provider:
    """One implementation under measurement.

    Attributes:
        name: as in the results.
        what: one line for the help text.
        build: makes a runner of a model, on a device.
        refusal: says why it cannot run on a device of this type, or returns None.
        tolerance: how exact it must be.
        kept_bytes: memory per cell and step that a differentiated run keeps, an estimate on the
            high side, by which runs that cannot fit are skipped.
        compiles: True if every case costs it a compilation.
    """

    name: str
    what: str
    build: Callable[[Model, torch.device], Runner]
    refusal: Callable[[torch.device], Refusal]
    tolerance: Tolerance = Tolerance()
    kept_bytes: int = 1000
    compiles: bool = False


def _plain(model: Model, device: torch.device) -> torch.nn.Module:
    """Return the baseline's module."""
    tutorials = model.rule == TUTORIAL
    module = TutorialCA() if tutorials else PlainCA(model.channels, rule=model.rule)
    module.load_state_dict(model.weights)
    return module.to(device)


def _eager(model: Model, device: torch.device) -> Runner:
    return TorchRunner(_plain(model, device), "drawn", "drawn", loss=model.loss)


def _compiled(mode: str | None) -> Callable[[Model, torch.device], Runner]:
    def build(model: Model, device: torch.device) -> Runner:
        torch._dynamo.reset()  # shapes and modes of the last case would count as recompilations
        module = _plain(model, device)
        module.compile(mode=mode, dynamic=False)
        before = torch.compiler.cudagraph_mark_step_begin if mode else lambda: None
        return TorchRunner(module, "own", "own", before, model.loss)

    return build


def _ours(
    kind: type[NeuralCA], backend: str, masks: tuple[str, str], precision: str = "auto"
) -> Callable[[Model, torch.device], Runner]:
    def build(model: Model, device: torch.device) -> Runner:
        options = {"rule": model.rule, "backend": backend, "precision": precision}
        module = kind(model.channels, **options).to(device)
        module.load_state_dict(model.weights)
        return TorchRunner(module, *masks, loss=model.loss)

    return build


def _anywhere(device: torch.device) -> Refusal:
    return None


def _compiler_missing(device: torch.device) -> Refusal:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "torch.compile needs a C++ compiler, and there is none"
    return None


def _no_cpp(device: torch.device) -> Refusal:
    if device.type != "cpu":
        return "the C++ kernels run on a CPU"
    return "; ".join(cpp_reasons(torch.float32)) or None


def _not_cuda(device: torch.device) -> Refusal:
    return None if device.type == "cuda" else "CUDA graphs need a CUDA GPU"


def _not_fused(device: torch.device) -> Refusal:
    return None if device.type == "cuda" else "the fused kernels need a CUDA GPU"


def _no_cax(device: torch.device) -> Refusal:
    missing = [name for name in ("jax", "flax", "cax") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _cax(model: Model, device: torch.device) -> Runner:
    if model.rule != TUTORIAL:
        raise NotImplementedError("only the tutorial's rule is built for CAX")
    from bench.cax import CaxRunner

    return CaxRunner(model.weights, device)


def _fused(precision: str, tolerance: Tolerance) -> Provider:
    return Provider(
        f"triton-{precision}",
        f"NeuralCA(backend='triton', precision='{precision}'), whole rollouts",
        _ours(NeuralCA, "triton", ("own", "seeded"), precision),
        _not_fused,
        tolerance,
        kept_bytes=70,
    )


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(BASELINE, "the tutorial's class, eager", _eager, _anywhere),
        Provider(
            "compile",
            "torch.compile of the tutorial's class",
            _compiled(None),
            _compiler_missing,
            compiles=True,
        ),
        Provider(
            "compile-graphs",
            "torch.compile(mode='reduce-overhead') of it, with CUDA graphs",
            _compiled("reduce-overhead"),
            _not_cuda,
            compiles=True,
        ),
        Provider(
            "cpp",
            "NeuralCA(backend='cpp'), whole rollouts",
            _ours(NeuralCA, "cpp", ("drawn", "seeded")),
            _no_cpp,
            kept_bytes=80,
        ),
        Provider(
            "cpp-steps",
            "NeuralCA(backend='cpp') called step by step",
            _ours(StepByStep, "cpp", ("drawn", "drawn")),
            _no_cpp,
            kept_bytes=200,
        ),
        Provider(
            "torch",
            "NeuralCA(backend='torch'), whole rollouts",
            _ours(NeuralCA, "torch", ("drawn", "seeded")),
            _anywhere,
            kept_bytes=80,
        ),
        Provider(
            "torch-steps",
            "NeuralCA(backend='torch') called step by step",
            _ours(StepByStep, "torch", ("drawn", "drawn")),
            _anywhere,
            kept_bytes=200,
        ),
        _fused("fp16", Tolerance(state=3e-2, cells=5e-3, gradient=5e-2)),
        _fused("bf16", Tolerance(state=2e-1, cells=2e-2, gradient=1.5e-1)),
        _fused("ieee", Tolerance()),
        Provider("cax", "CAX under JAX, the same rule", _cax, _no_cax, compiles=True),
    )
}
"""By name, the baseline first."""
