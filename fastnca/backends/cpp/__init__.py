"""The `cpp` backend: exact rollouts on active cells in C++, compiled when they are first used.

    build.py      finds a compiler, compiles `kernels/cpu/`, keeps the result
    library.py    the compiled functions and their arguments
    rollout.py    the autograd node
    threads.py    how many threads they take

The algorithm is that of the `torch` backend, `fastnca.backends.torch_active`; the sources say how
it is laid out.
"""

from fastnca.backends.cpp.build import cpp_reasons
from fastnca.backends.cpp.rollout import cpp_rollout
from fastnca.backends.cpp.threads import reserved_threads

__all__ = ["cpp_reasons", "cpp_rollout", "reserved_threads"]
