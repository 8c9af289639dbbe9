"""Products in Triton's interpreter whose rows do not depend on one another, as on a GPU."""

from typing import Any

import numpy as np


def separate_rows() -> None:
    """Let the interpreter add up the terms of a product in their order, for every element alike.

    It multiplies with NumPy's BLAS. On some CPUs, AMD's with AVX-512 among them, that rounds a row
    in a way that depends on the other rows, so a cell would depend on where its tile begins.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if {a.data.dtype.kind, b.data.dtype.kind} != {"f"}:  # bfloat16 is held as integers
            return multiply(self, a, b, d, *options)
        left, right = (np.ascontiguousarray(x.data, dtype=d.data.dtype) for x in (a, b))
        return TensorHandle(np.einsum("ik,kj->ij", left, right) + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
