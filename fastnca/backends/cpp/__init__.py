"""The `cpp` backend: exact rollouts on active cells in C++, compiled when they are first used.

    build.py      finds a compiler, compiles `kernels/cpu/`, keeps the result
    library.py    the compiled functions and their arguments
    rules.py      what of a rule is computed, and the rule as a struct
    rollout.py    the autograd node
    threads.py    how many threads they take

The algorithm is that of the `torch` backend, `fastnca.backends.torch_active`; the sources say how
it is laid out.
"""

from fastnca._torch_internals import assume_constant_result
from fastnca.backends.base import ExactBackend, RolloutCall, exact_reasons
from fastnca.backends.cpp.build import cpp_reasons
from fastnca.backends.cpp.rollout import compute
from fastnca.backends.cpp.rules import rule_reasons
from fastnca.backends.cpp.threads import reserved_threads

__all__ = ["Cpp", "cpp_reasons", "reserved_threads", "rule_reasons"]

assume_constant_result(cpp_reasons)  # torch.compile takes the machine as it finds it


class Cpp(ExactBackend):
    """The `cpp` backend."""

    name = "cpp"
    devices = frozenset(("cpu",))

    compute = staticmethod(compute)

    def refuses(self, call: RolloutCall) -> list[str]:
        """See `fastnca.backends.base.Backend`."""
        reasons = exact_reasons(call)
        if call.state.device.type != "cpu":
            reasons.append(f"it runs on a CPU, and the state is on {call.state.device}")
        if call.rule.changed:
            reasons += rule_reasons(call.rule)
        if not reasons:
            reasons += cpp_reasons(call.state.dtype)
        return reasons
