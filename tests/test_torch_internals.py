"""Each private name of torch's in `fastnca/_torch_internals.py` does what is said there."""

import io
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn as nn
import torch.nn.modules.module as global_hooks
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastnca import _torch_internals as internals

PACKAGE = Path(internals.__file__).parent


class Operators(TorchDispatchMode):
    """Notes the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Lets everything through."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_transforms_active() -> None:
    seen = []
    assert not internals.transforms_active()
    torch.func.grad(lambda x: (seen.append(internals.transforms_active()), x)[1])(torch.ones(()))
    torch.func.vmap(lambda x: (seen.append(internals.transforms_active()), x)[1])(torch.ones(2))
    assert seen == [True, True]
    assert not internals.transforms_active()


def test_count_dispatch_modes() -> None:
    assert internals.count_dispatch_modes() == 0
    with Operators(), Operators():
        assert internals.count_dispatch_modes() == 2
    assert internals.count_dispatch_modes() == 0


def test_count_function_modes_and_function_modes() -> None:
    assert internals.count_function_modes() == 0
    with Functions() as mode:
        assert internals.count_function_modes() == 1
        assert internals.function_modes() == [mode]
    assert internals.function_modes() == []


def test_device_context() -> None:
    with torch.device("cpu"):
        (mode,) = internals.function_modes()
        assert type(mode) is internals.DeviceContext


def test_disable_modes() -> None:
    with Operators() as mode:
        torch.ones(2).neg()
        before = list(mode.seen)
        with internals.disable_modes():
            assert torch.equal(torch.ones(2), torch.ones(2))
        assert before
        assert mode.seen == before
        torch.ones(2).neg()
        assert len(mode.seen) > len(before)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated in some versions
def test_tracing_state() -> None:
    seen = []
    assert internals.tracing_state() is None
    torch.jit.trace(
        lambda x: (seen.append(internals.tracing_state()), x + 1)[1],
        torch.ones(2),
        check_trace=False,
    )
    assert len(seen) == 1
    assert seen[0] is not None
    assert internals.tracing_state() is None


def test_is_wrapped() -> None:
    left = []
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(torch.ones(2))
    assert internals.is_wrapped(left[0])  # after the transform has ended
    assert not internals.is_wrapped(torch.ones(2))


class Doubles(torch.autograd.Function):
    """Multiply by 2; the backward pass takes batched gradients apart as the package does."""

    batched: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        Doubles.batched.append(internals.is_legacy_batched(grad))
        if not Doubles.batched[-1]:
            return 2 * grad
        level = internals.increment_vmap_level() - 1
        assert internals.decrement_vmap_level() == level
        each = internals.remove_batch_dim(grad, level, 0, 0)
        assert not internals.is_legacy_batched(each)
        assert each.shape == (3, 2)
        return internals.add_batch_dim(2 * each, 0, level)


def test_batched_gradients() -> None:
    """`is_legacy_batched`, both levels of `vmap`, `remove_batch_dim` and `add_batch_dim`."""
    Doubles.batched = []
    leaf = torch.ones(2, requires_grad=True)
    grads = torch.arange(6.0).view(3, 2)
    (found,) = torch.autograd.grad(Doubles.apply(leaf), leaf, grads, is_grads_batched=True)
    assert torch.equal(found, 2 * grads)
    (plain,) = torch.autograd.grad(Doubles.apply(leaf), leaf, grads[1])
    assert torch.equal(plain, 2 * grads[1])
    assert Doubles.batched == [True, False]


def test_assume_constant_result() -> None:
    calls = []

    @internals.assume_constant_result
    def answer() -> int:
        calls.append(1)
        return len(calls)

    compiled = torch.compile(lambda x: x + answer(), backend="eager", fullgraph=True)
    first, second = compiled(torch.zeros(())), compiled(torch.zeros(()))
    assert len(calls) == 1
    assert float(first) == float(second) == 1.0
    torch._dynamo.reset()


def test_assume_constant_result_marks_as_torch_does() -> None:
    public = torch.compiler.assume_constant_result(lambda: 1)
    own = internals.assume_constant_result(lambda: 1)
    assert vars(own).items() <= vars(public).items()
    assert vars(own)


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_ends_and_releases_exist() -> None:
    """`tests/kernels/test_gpu_capture.py` lets captures fail on a GPU and looks at the memory."""
    assert callable(torch._C._cuda_endAllocateToPool)
    assert callable(torch._C._cuda_releasePool)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_end_allocation_and_release_pool() -> None:
    pool = torch.cuda.graph_pool_handle()
    with pytest.raises(RuntimeError):  # nothing is allocated from it
        internals.end_allocation(torch.cuda.current_device(), pool)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        torch.ones(2, device="cuda").add_(1)
    internals.release_pool(torch.cuda.current_device(), pool)


def test_current_level() -> None:
    forward_ad = internals.forward_ad
    assert forward_ad._current_level < 0
    with forward_ad.dual_level():
        assert forward_ad._current_level >= 0
    assert forward_ad._current_level < 0


@pytest.mark.filterwarnings("ignore")
def test_is_exporting_flag() -> None:
    seen = []

    @internals.assume_constant_result
    def look() -> int:
        seen.append(torch.compiler._is_exporting_flag)
        return 1

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + look()

    assert torch.compiler._is_exporting_flag is False
    torch.compile(Model(), backend="eager", fullgraph=True)(torch.ones(2))
    assert seen == [False]
    torch.export.export(Model(), (torch.ones(2),))
    assert seen[1:]
    assert all(seen[1:])
    assert torch.compiler._is_exporting_flag is False
    torch._dynamo.reset()


def test_version_counts_writes() -> None:
    tensor = torch.zeros(2)
    before = tensor._version
    tensor[:1].add_(1)  # through a view
    assert tensor._version == before + 1
    tensor.sum()
    assert tensor._version == before + 1


@pytest.mark.parametrize(
    ("name", "register"),
    [
        ("_global_forward_hooks", global_hooks.register_module_forward_hook),
        ("_global_forward_pre_hooks", global_hooks.register_module_forward_pre_hook),
        ("_global_backward_hooks", global_hooks.register_module_full_backward_hook),
        ("_global_backward_pre_hooks", global_hooks.register_module_full_backward_pre_hook),
    ],
)
def test_global_hooks(name, register) -> None:
    assert not getattr(global_hooks, name)
    handle = register(lambda *arguments: None)
    assert len(getattr(global_hooks, name)) == 1
    handle.remove()
    assert not getattr(global_hooks, name)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_call_for_tensors_and_parameters(zipped) -> None:
    """A file names one of each, and torch still reads all of them."""
    file = io.BytesIO()
    content = [torch.zeros(2), nn.Parameter(torch.zeros(3))]
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    for names in (internals.REBUILD_TENSOR, internals.REBUILD_PARAMETER):
        spelled = [f"{module}\n{name}\n".encode() for module, name in names]
        assert any(each in file.getvalue() for each in spelled)
        for module, name in names:
            assert callable(getattr(sys.modules[module], name))


@pytest.mark.long
def test_import_warns_of_nothing_and_loads_no_compiler() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error', FutureWarning)\n"
        "import torch; before = 'torch._dynamo' in sys.modules\n"
        "import fastnca._torch_internals\n"
        "assert before == ('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_other_module_has_a_private_name_of_torch() -> None:
    """But for attributes that are read in place, which the docstring lists."""
    words = ("torch._", "_C.", "_functorch.", "_dynamo", "_python_dispatch", "utils._", "import _")
    allowed = {"_current_level", "_is_exporting_flag", "_version", "__version__"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "_torch_internals.py" or "kernels" in path.parts:
            continue
        for line in path.read_text().splitlines():
            if "torch" in line and any(word in line for word in words):
                assert any(name in line for name in allowed), f"{path}: {line.strip()}"


def test_all_names_are_said_here() -> None:
    public = {name for name in vars(internals) if not name.startswith("_")}
    public -= {"torch", "Callable", "TypeVar", "forward_ad"}
    text = Path(__file__).read_text()
    assert {name for name in public if f"internals.{name}" not in text} == set()
