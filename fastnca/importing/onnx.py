"""Weights out of an ONNX file: its tensors by name, without running or fetching anything.

A file is data that somebody else made. Before the library parses it, `_count_fields` walks over it
and bounds how many objects it can become: an empty tensor takes two bytes in a file and 160 in
memory. Tensors are decoded here and not by the library, which may read files beside the one given.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastnca.importing.protobuf import read_varint

MAX_BYTES = 1 << 26
"""The most bytes of all tensors together, as float32."""

_REST = 1 << 20  # bytes of a file beside its tensors
_MAX_FIELDS = 200_000
_MAX_DEPTH = 90  # the library reads 100 messages within one another
_MAX_RANK = 8
_EXTERNAL = 1  # TensorProto.DataLocation

# TensorProto.DataType: bytes of an element, the field that holds it where `raw_data` does not, and
# the numbers of numpy in both
_KINDS: dict[int, tuple[int, str, str, str]] = {
    1: (4, "float_data", "<f4", "<f4"),  # FLOAT
    10: (2, "int32_data", "<f2", "<u2"),  # FLOAT16, its bits
    11: (8, "double_data", "<f8", "<f8"),  # DOUBLE
    16: (2, "int32_data", "<u2", "<u2"),  # BFLOAT16, its bits
}
_BFLOAT16 = 16
_AS_LONG = (1, 2, 9, 12)  # FieldDescriptor.Type: floats, strings, bytes, as long in memory


class _FaultError(ValueError):
    """What is wrong with a file, in a sentence."""


def read_onnx(data: bytes) -> dict[str, Tensor]:
    """Read all floating-point tensors of an ONNX file.

    Initialisers and constants count, those within the bodies of loops and conditions as well.

    Args:
        data: content of the file.

    Returns:
        Each tensor as float32 by its name; a name that an inner graph uses again has the graph's
        name and a slash before it. The matrix of a MatMul or Gemm is `[out, in]`, however it lies
        in the file; weights of a Conv `[out, in, kh, kw]` and biases `[out]` are as they lie.

    Raises:
        ImportError: there is no `onnx`.
        ValueError: it is no ONNX file, is damaged, keeps tensors in other files, holds more than
            64 MiB of them, or none.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"ONNX files need onnx: pip install fastnca[onnx] ({error})") from error
    try:
        if len(data) > MAX_BYTES + _REST:
            raise _FaultError(
                f"the file has {len(data)} bytes, at most {MAX_BYTES + _REST} are read"
            )
        _count_fields(memoryview(data), onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto()
        model.ParseFromString(data)
        return _Tensors().collect(model)
    except _FaultError as error:
        raise ValueError(f"cannot read the ONNX file: {error}") from None
    except Exception as error:  # the library's own
        raise ValueError(f"not an ONNX file, or a damaged one ({type(error).__name__})") from error


class _Tensors:
    """What has been found in a file.

    Attributes:
        found: tensors by the name that they will have.
        turned: of matrices that are multiplied, whether each use has them as `[in, out]`.
        left: bytes that further tensors may take.
    """

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.turned: dict[str, set[bool]] = {}
        self.left = MAX_BYTES

    def collect(self, model: Any) -> dict[str, Tensor]:
        """Return the tensors of a parsed file."""
        self.walk(model.graph.node, ChainMap(), model.graph.name, model.graph.initializer)
        for function in model.functions:
            self.walk(function.node, ChainMap(), function.name)
        if not self.found:
            raise _FaultError("it holds no floating-point tensors")
        for name, uses in self.turned.items():
            if len(uses) > 1:
                raise _FaultError(f"tensor {_quote(name)} is multiplied as it is and transposed")
            if True in uses:
                self.found[name] = self.found[name].T.contiguous()
        return self.found

    def walk(
        self,
        nodes: Iterable[Any],
        scope: "ChainMap[str, tuple[str, bool]]",
        graph: str,
        initializers: Iterable[Any] = (),
    ) -> None:
        """Collect the tensors of a graph and of those within it.

        Args:
            nodes: of the graph, in the order in which they run.
            scope: what names of values stand for: a tensor found, and whether transposed.
            graph: its name.
            initializers: tensors of the graph.
        """
        scope = scope.new_child()
        for each in initializers:
            self.add(scope, graph, each.name, _decode(each, self.take))
        for node in nodes:
            if node.op_type == "Constant" and len(node.output) == 1:
                self.add(scope, graph, node.output[0], self.constant(node))
            elif node.op_type in ("Identity", "Transpose"):
                self.follow(node, scope)
            elif node.op_type in ("MatMul", "Gemm"):
                self.multiply(node, scope)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node or inner.initializer:
                        place = inner.name or node.name
                        self.walk(inner.node, scope, place, inner.initializer)

    def add(
        self,
        scope: "ChainMap[str, tuple[str, bool]]",
        graph: str,
        name: str,
        tensor: Tensor | None,
    ) -> None:
        """Remember a tensor, if it is one of floats."""
        scope.maps[0].pop(name, None)
        if tensor is None:
            return
        key = f"{graph}/{name}" if name in self.found else name
        if not name or key in self.found:
            raise _FaultError(f"two tensors have the name {_quote(key)}, or one has none")
        self.found[key] = tensor
        scope[name] = (key, False)

    def constant(self, node: Any) -> Tensor | None:
        """Return the value of a node of operator Constant, None if it is not of floats."""
        for each in node.attribute:
            if each.name == "value":
                return _decode(each.t, self.take)
            if each.name in ("value_float", "value_floats"):
                one = each.name == "value_float"
                self.take(1 if one else len(each.floats))
                return torch.tensor(each.f if one else list(each.floats), dtype=torch.float32)
        return None

    def follow(self, node: Any, scope: "ChainMap[str, tuple[str, bool]]") -> None:
        """Let the output of Identity or Transpose stand for the tensor that goes in."""
        known = scope.get(node.input[0]) if len(node.input) == 1 else None
        if known is None or len(node.output) != 1:
            return
        key, turned = known
        if node.op_type == "Transpose" and self.found[key].dim() == 2:
            orders = [list(each.ints) for each in node.attribute if each.name == "perm"]
            turned ^= orders in ([], [[1, 0]])
        elif node.op_type == "Transpose":
            return
        scope[node.output[0]] = (key, turned)

    def multiply(self, node: Any, scope: "ChainMap[str, tuple[str, bool]]") -> None:
        """Note how a product uses a matrix: as first operand `[out, in]`, as second `[in, out]`."""
        flags = {each.name: bool(each.i) for each in node.attribute}
        for place, flag in ((0, "transA"), (1, "transB")):
            known = scope.get(node.input[place]) if len(node.input) > place else None
            if known is not None and self.found[known[0]].dim() == 2:
                uses = self.turned.setdefault(known[0], set())
                uses.add((place == 1) ^ known[1] ^ flags.get(flag, False))

    def take(self, elements: int) -> None:
        """Count the elements of a tensor that is about to be made.

        Raises:
            ValueError: they are too many.
        """
        self.left -= 4 * elements
        if self.left < 0:
            raise _FaultError(f"its tensors take more than {MAX_BYTES >> 20} MiB")


def _decode(tensor: Any, take: Callable[[int], None]) -> Tensor | None:
    """Return a tensor of the file as float32, None if it is not of floats.

    Args:
        tensor: the TensorProto.
        take: is told how many elements will be made, and may refuse.
    """
    if tensor.data_type not in _KINDS:
        return None
    size, field, raw_kind, field_kind = _KINDS[tensor.data_type]
    name = _quote(tensor.name)
    if tensor.data_location == _EXTERNAL or tensor.external_data:
        raise _FaultError(f"tensor {name} lies in another file, which is not read")
    shape = list(tensor.dims)
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0:
        raise _FaultError(f"tensor {name} has no shape of at most {_MAX_RANK} sides")
    count, numbers = math.prod(shape), getattr(tensor, field)
    raw = tensor.HasField("raw_data")
    there = len(tensor.raw_data) if raw else len(numbers) * size
    if there != count * size:
        raise _FaultError(f"tensor {name} has {there} bytes where its shape has {count * size}")
    take(count)
    if raw:
        values = np.frombuffer(tensor.raw_data, raw_kind)
    else:
        values = np.array(numbers, "<i8" if field == "int32_data" else field_kind)
        values = values.astype(field_kind).view(raw_kind)
    if tensor.data_type == _BFLOAT16:  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    native = values.astype(values.dtype.newbyteorder("="))
    return torch.from_numpy(native).to(torch.float32).reshape(shape).contiguous()


def _count_fields(data: memoryview, kind: Any, depth: int = 0, found: int = 0) -> int:
    """Count the fields of a message of protobuf, and of the messages within, before it is parsed.

    https://protobuf.dev/programming-guides/encoding/ describes the bytes.

    Args:
        data: the message.
        kind: its descriptor, which says what fields are messages themselves.
        depth: of messages around it.
        found: fields counted so far.

    Returns:
        The fields counted. Sixteen bytes of packed integers count as one.

    Raises:
        ValueError: they are too many, or the bytes are no message.
    """
    if depth > _MAX_DEPTH:
        raise _FaultError("its graphs lie too deep within one another")
    position, fields = 0, kind.fields_by_number
    while position < len(data):
        found += 1
        tag, position = read_varint(data, position)
        form = tag & 7
        if form == 0:
            _, position = read_varint(data, position)
        elif form in (1, 5):
            position += 8 if form == 1 else 4
        elif form == 2:
            length, start = read_varint(data, position)
            position = start + length
            field = fields.get(tag >> 3)
            if position > len(data):
                raise _FaultError("it ends too early")
            if field is not None and field.message_type is not None:
                part = data[start:position]
                found = _count_fields(part, field.message_type, depth + 1, found)
            elif field is not None and field.type not in _AS_LONG:
                found += length >> 4
        else:
            raise _FaultError("it is no ONNX file")
        if found > _MAX_FIELDS:
            raise _FaultError(f"it has more than {_MAX_FIELDS} parts")
    return found


def _quote(name: str) -> str:
    """Return the beginning of a name of the file, as a message shows it."""
    return repr(name[:60])
