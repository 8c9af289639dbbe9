"""Which implementation computes a step: names, the user's choice, and the error of a refusal.

    base.py          what a backend is: the call that it is given, its protocol, the list of all
    choose.py        which backend computes a call, and why not a faster one
    dispatch.py      a step and a rollout of a model: checked, given to a backend, computed
    autograd.py      what autograd asks of a rollout
    operators.py     a rollout as one operator, for `torch.compile`
    torch_active/    the `torch` backend: active cells in torch operators
    cpp/             the `cpp` backend: active cells in C++, compiled on first use
    triton_fused/    the `triton` backend: fused kernels on a GPU

The fourth, `reference`, is `fastnca.reference`: the specification.
"""

import os
from types import TracebackType

ENVIRONMENT_VARIABLE = "FASTNCA_BACKEND"

_chosen = "auto"  # by use_backend, for the whole process

_names = ["auto", "reference"]  # `register` in base.py adds the others


def backend_names() -> tuple[str, ...]:
    """Return what a backend may be called, "auto" first."""
    return tuple(_names)


class BackendError(RuntimeError):
    """An explicitly requested backend cannot run.

    The message says what was asked for, every reason, and what to do instead.
    """

    def __init__(self, backend: str, reasons: list[str], advice: str) -> None:
        listed = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(f"backend '{backend}' was asked for but cannot run:{listed}\n{advice}")
        self.backend = backend
        self.reasons = reasons


def check_backend(name: str, source: str) -> str:
    """Return `name`.

    Raises:
        ValueError: there is no such backend; `source` says where the name came from.
    """
    if name not in _names:
        raise ValueError(f"{source} must be one of {', '.join(_names)}, got {name!r}")
    return name


class use_backend:  # noqa: N801 - used like a function
    """Choose the backend of every model whose own argument is "auto".

    As a statement the choice stays; as `with use_backend(...)` it ends with the block. It holds
    for all threads of the process.

    Args:
        name: "auto", "reference", "torch", "cpp" or "triton".

    Raises:
        ValueError: `name` is not a backend.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        self._before = _chosen
        _chosen = check_backend(name, "use_backend(name)")

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _chosen
        _chosen = self._before


def requested_backend(argument: str) -> str:
    """Return the first of argument, `use_backend`, `FASTNCA_BACKEND` that is not "auto".

    Raises:
        ValueError: the environment variable names no backend.
    """
    if argument != "auto":
        return argument
    if _chosen != "auto":
        return _chosen
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return check_backend(named, ENVIRONMENT_VARIABLE) if named else "auto"
