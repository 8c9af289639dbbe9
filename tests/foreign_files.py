"""ONNX and Keras files, laid out as their programs do."""

import io
import zipfile

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="ONNX files need onnx: pip install fastnca[onnx]")
h5py = pytest.importorskip("h5py", reason="Keras files need h5py: pip install fastnca[keras]")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
FLOAT = onnx.TensorProto.FLOAT


def draw(*shape, kind=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(kind)


def onnx_file(nodes, constants=(), **changes):
    """Make a file; `constants` maps names to arrays, or holds TensorProtos."""
    if isinstance(constants, dict):
        constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "main", [], [], list(constants))
    return helper.make_model(graph, **changes).SerializeToString()


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, **attributes)


def loop_file(place):
    """Make a file whose weights serve in the body of a loop, and lie there or outside."""
    weights = {"147": draw(48, 128), "148": draw(128, 16, seed=1), "bias": draw(128, seed=2)}
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    body = helper.make_graph(
        [
            node("MatMul", ["seen", "147"], ["a"]),
            node("Add", ["a", "bias"], ["b"]),
            node("MatMul", ["b", "148"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", FLOAT, [None, 48]),
        ],
        [
            helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, [None, 16]),
        ],
        constants if place == "inside" else [],
    )
    loop = node("Loop", ["count", "", "state"], ["end"], body=body)
    return onnx_file([loop], constants if place == "outside" else []), weights


def hdf5(variables, **options):
    """Make an HDF5 file of arrays by their paths."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        for path, value in variables.items():
            file[path] = value
    return buffer.getvalue()


KERNELS = draw(1, 1, 12, 9), draw(9, seed=1), draw(1, 1, 9, 4, seed=2), draw(4, seed=3)
KERAS3 = dict(
    zip(
        ("conv2d/vars/0", "conv2d/vars/1", "conv2d_1/vars/0", "conv2d_1/vars/1"),
        KERNELS,
        strict=True,
    )
)
KERAS2 = dict(
    zip(("a/a/kernel:0", "a/a/bias:0", "b/b/kernel:0", "b/b/bias:0"), KERNELS, strict=True)
)
OPTIMIZER = {"optimizer/vars/0": np.int64(3), "optimizer/vars/1": draw(1, 1, 12, 9, seed=9)}


def archive(inner, name="model.weights.h5", **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        file.writestr("metadata.json", '{"keras_version": "3.5.0"}')
        file.writestr("config.json", "__import__('os').abort()")
        file.writestr(name, inner)
    return buffer.getvalue()


def under(prefix, variables):
    return {f"{prefix}/{path}": value for path, value in variables.items()}
