"""Weights out of ONNX and Keras files, laid out as their programs do; damaged and hostile ones."""

import io
import sys
import zipfile

import numpy as np
import pytest
import torch

from fastnca import NeuralCA, Rule
from fastnca.exporting.onnx import export_onnx
from fastnca.importing.keras import read_keras
from fastnca.importing.onnx import read_onnx
from tests.foreign_files import (
    FLOAT,
    KERAS2,
    KERAS3,
    KERNELS,
    OPTIMIZER,
    archive,
    draw,
    h5py,
    hdf5,
    helper,
    loop_file,
    node,
    numpy_helper,
    onnx,
    onnx_file,
    under,
)
from tests.helpers import excite
from tests.one_thread import one_thread  # noqa: F401 - by being imported

# --- ONNX ---


RULES = {
    "tutorial": Rule(hidden=(12,)),
    "deep": Rule(hidden=(9, 5, 7), padding="circular", activation="gelu", clamp=(-1, 1)),
    "learned": Rule(learn_filters=True, inputs=2, alive="none", final_bias=False, step_size=0.3),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_was_exported_comes_back(rule):
    model = excite(NeuralCA(8, rule=rule))
    found = read_onnx(export_onnx(model))
    for name, value in model.state_dict().items():
        assert found[name].dtype is torch.float32
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_weights_of_a_loop(place):
    data, weights = loop_file(place)
    found = read_onnx(data)
    assert found.keys() == weights.keys()
    assert found["147"].shape == (128, 48)
    for name, value in weights.items():
        expected = torch.from_numpy(value)
        assert torch.equal(found[name], expected.T if expected.dim() == 2 else expected)


def test_both_branches_of_a_condition_and_names_that_return():
    graphs = [
        helper.make_graph([], name, [], [], [numpy_helper.from_array(draw(3, seed=number), "bias")])
        for number, name in enumerate(("yes", "no"))
    ]
    condition = node("If", ["x"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
    found = read_onnx(onnx_file([condition]))
    assert found.keys() == {"bias", "yes/bias"}
    assert torch.equal(found["yes/bias"], torch.from_numpy(draw(3, seed=0)))


ORIENTED = {  # nodes that use "w", whether it is turned
    "second of MatMul": ([("MatMul", ["x", "w"], {})], True),
    "first of MatMul": ([("MatMul", ["w", "x"], {})], False),
    "Gemm": ([("Gemm", ["x", "w"], {})], True),
    "Gemm, transB=0": ([("Gemm", ["x", "w"], {"transB": 0})], True),
    "Gemm, transB=1": ([("Gemm", ["x", "w"], {"transB": 1})], False),
    "first of Gemm": ([("Gemm", ["w", "x"], {})], False),
    "first of Gemm, transA=1": ([("Gemm", ["w", "x"], {"transA": 1})], True),
    "Transpose": ([("Transpose", ["w"], {"perm": [1, 0]}), ("MatMul", ["x", "0"], {})], False),
    "Transpose without perm": ([("Transpose", ["w"], {}), ("MatMul", ["x", "0"], {})], False),
    "Transpose to itself": (
        [("Transpose", ["w"], {"perm": [0, 1]}), ("MatMul", ["x", "0"], {})],
        True,
    ),
    "Identity": ([("Identity", ["w"], {}), ("MatMul", ["x", "0"], {})], True),
    "no product": ([("Add", ["x", "w"], {})], False),
}


@pytest.mark.parametrize(("nodes", "turned"), ORIENTED.values(), ids=ORIENTED)
@pytest.mark.parametrize("constant", [False, True])
def test_matrices_come_out_by_in(nodes, turned, constant):
    weight = draw(4, 6)
    made = [
        node(operator, inputs, [str(place)], **attributes)
        for place, (operator, inputs, attributes) in enumerate(nodes)
    ]
    if constant:
        made = [node("Constant", [], ["w"], value=numpy_helper.from_array(weight)), *made]
    found = read_onnx(onnx_file(made, {} if constant else {"w": weight}))
    assert found.keys() == {"w"}
    assert torch.equal(found["w"], torch.from_numpy(weight.T if turned else weight))


def test_a_matrix_of_two_minds_is_refused():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["w", "x"], ["b"])]
    with pytest.raises(ValueError, match="'w' is multiplied as it is and transposed"):
        read_onnx(onnx_file(nodes, {"w": draw(4, 4)}))


def test_numbers_in_every_form():
    values = np.array([[0.5, -1.25, 3.0], [1e-3, 0.0, -7.0]], np.float32)
    half, double = values.astype(np.float16), values.astype(np.float64)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    make = helper.make_tensor
    tensors = [
        numpy_helper.from_array(values, "raw"),
        make("listed", FLOAT, [2, 3], values.flatten().tolist()),
        numpy_helper.from_array(half, "half"),
        make("half listed", onnx.TensorProto.FLOAT16, [2, 3], half.flatten().tolist()),
        numpy_helper.from_array(double, "double"),
        make("double listed", onnx.TensorProto.DOUBLE, [2, 3], double.flatten().tolist()),
        make("bfloat", onnx.TensorProto.BFLOAT16, [2, 3], bits.tobytes(), raw=True),
        numpy_helper.from_array(np.arange(6), "whole numbers"),
    ]
    constants = [
        node("Constant", [], ["one"], value_float=0.25),
        node("Constant", [], ["some"], value_floats=[1.0, 2.0]),
        node("Constant", [], ["ints"], value_ints=[1, 2]),
    ]
    found = read_onnx(onnx_file(constants, tensors))
    assert found.pop("one").item() == 0.25
    assert found.pop("some").tolist() == [1.0, 2.0]
    short = torch.from_numpy(bits.astype(np.int32) << 16).view(torch.float32)
    assert torch.equal(found.pop("bfloat"), short)
    assert found.keys() == {"raw", "listed", "half", "half listed", "double", "double listed"}
    for name, value in found.items():
        assert value.dtype is torch.float32
        assert torch.equal(
            value, torch.from_numpy(half.astype(np.float32) if "half" in name else values)
        )


def changed(**fields):
    """Return a file with one tensor [2, 3] that says something else of itself."""
    tensor = numpy_helper.from_array(draw(2, 3), "w")
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(tensor, name)[:]
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return onnx_file([], [tensor])


def stored_elsewhere():
    tensor = numpy_helper.from_array(draw(2, 3), "w")
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    return onnx_file([], [tensor])


def field(number, body):
    """Return a field of a message of protobuf, whose content is `body`."""
    size, prefix = len(body), bytes([number << 3 | 2])
    while size > 127:
        prefix += bytes([size & 127 | 128])
        size >>= 7
    return prefix + bytes([size]) + body


def deep(levels=40):
    graph = field(1, b"")
    for _ in range(levels):  # a node's attribute is a graph
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def shallow(levels=25):
    """Return what `deep` does, with a tensor, and less deep."""
    graph = field(5, numpy_helper.from_array(draw(2), "w").SerializeToString())
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def test_a_tensor_within_many_graphs_is_found():
    assert read_onnx(shallow()).keys() == {"w"}


BAD_ONNX = {
    "empty": (lambda: b"", "no floating-point tensors"),
    "text": (lambda: b"not a model at all", "no ONNX file"),
    "no floats": (lambda: onnx_file([], {"i": np.arange(3)}), "no floating-point tensors"),
    "in another file": (stored_elsewhere, "'w' lies in another file, which is not read"),
    "a larger shape": (lambda: changed(dims=[1 << 40, 1 << 40]), "bytes where its shape has"),
    "a smaller shape": (lambda: changed(dims=[2, 2]), "24 bytes where its shape has 16"),
    "a negative side": (lambda: changed(dims=[-2, -3]), "no shape"),
    "many sides": (lambda: changed(dims=[1] * 9 + [6]), "no shape of at most 8 sides"),
    "no numbers": (lambda: changed(raw_data=b""), "0 bytes where its shape has 24"),
    "no name": (lambda: changed(name=""), "or one has none"),
    "twice": (
        lambda: onnx_file([], [numpy_helper.from_array(draw(2), "w")] * 3),
        "two tensors have the name 'main/w'",
    ),
    "too much": (
        lambda: onnx_file(
            [], {"a": np.zeros(9 << 20, np.float16), "b": np.zeros(9 << 20, np.float16)}
        ),
        "more than 64 MiB",
    ),
    "too long": (lambda: bytes(70 << 20), "at most"),
    "too deep": (deep, "too deep"),
    "a million empty tensors": (lambda: field(7, b"\x2a\x00" * 1_000_000), "parts"),
    "a million nodes": (lambda: field(7, b"\x0a\x00" * 1_000_000), "parts"),
    "four million packed numbers": (
        lambda: field(7, field(5, field(7, b"\x01" * (1 << 22)))),
        "parts",
    ),
}


@pytest.mark.parametrize(("make", "said"), BAD_ONNX.values(), ids=BAD_ONNX)
def test_a_wrong_onnx_file_is_refused_in_a_sentence(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_onnx(make())
    assert type(caught.value) is ValueError
    assert len(str(caught.value).splitlines()) == 1


# --- Keras ---


LAYOUTS = {
    "Keras 3, weights": ("layers/", hdf5(under("layers", KERAS3) | OPTIMIZER), KERAS3),
    "Keras 3, latest HDF5": ("layers/", hdf5(under("layers", KERAS3), libver="latest"), KERAS3),
    "Keras 3, inner model": ("dmodel/layers/", hdf5(under("dmodel/layers", KERAS3)), KERAS3),
    "Keras 3, archive": ("layers/", archive(hdf5(under("layers", KERAS3))), KERAS3),
    "Keras 3, deflated archive": (
        "layers/",
        archive(hdf5(under("layers", KERAS3)), compression=zipfile.ZIP_DEFLATED),
        KERAS3,
    ),
    "Keras 2, model": (
        "model_weights/",
        hdf5(under("model_weights", KERAS2) | under("optimizer_weights", KERAS2)),
        KERAS2,
    ),
    "Keras 2, weights": ("", hdf5(KERAS2), KERAS2),
}


@pytest.mark.parametrize(("prefix", "data", "variables"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read(prefix, data, variables):
    found = read_keras(data)
    assert found.keys() == {prefix + name for name in variables}
    first, bias, second, last = (found[prefix + name] for name in variables)
    for value, original in ((first, KERNELS[0]), (second, KERNELS[2])):
        assert torch.equal(value[:, :, 0, 0], torch.from_numpy(original[0, 0].T))
    assert torch.equal(bias, torch.from_numpy(KERNELS[1]))
    assert torch.equal(last, torch.from_numpy(KERNELS[3]))
    assert all(value.dtype is torch.float32 and value.is_contiguous() for value in found.values())


def test_layers_come_in_the_order_of_their_numbers():
    names = ["conv2d", *(f"conv2d_{number}" for number in range(1, 12))]
    found = read_keras(hdf5({f"layers/{name}/vars/0": draw(2) for name in reversed(names)}))
    assert list(found) == [f"layers/{name}/vars/0" for name in names]


def test_dense_layers_and_wider_numbers():
    variables = {
        "layers/dense/vars/0": draw(5, 3, kind=np.float64),
        "layers/dense/vars/1": draw(3, kind=np.float16),
        "layers/other/vars/0": draw(3).astype(">f4"),
        "layers/scale/vars/0": np.float32(2.5),
        "layers/seed_generator/vars/0": np.arange(2, dtype=np.uint32),
    }
    found = read_keras(hdf5(variables))
    assert torch.equal(found["layers/dense/vars/0"], torch.from_numpy(draw(5, 3)).T)
    assert found["layers/dense/vars/1"].dtype is torch.float32
    assert torch.equal(found["layers/other/vars/0"], torch.from_numpy(draw(3)))
    assert found["layers/scale/vars/0"].item() == 2.5
    assert "layers/seed_generator/vars/0" not in found


DEPTHWISE = {  # path, shapes of kernel and bias, whether it is depthwise
    "named": ("layers/depthwise_conv2d/vars", (4, 5), None, True),
    "Keras 2": ("d/d/depthwise_kernel:0", (4, 5), None, True),
    "an attribute, with its bias": ("perceive/vars", (4, 5), 20, True),
    "an attribute, few outputs": ("perceive/vars", (4, 3), None, True),
    "an attribute, many outputs": ("perceive/vars", (4, 5), None, False),
    "a full convolution": ("layers/conv2d_3/vars", (4, 3), None, False),
    "an attribute, a full convolution": ("mix/vars", (4, 3), 3, False),
}


@pytest.mark.parametrize("case", DEPTHWISE.values(), ids=DEPTHWISE)
def test_kernels_of_3x3(case):
    place, (channels, outputs), bias, depthwise = case
    kernel = draw(3, 3, channels, outputs)
    name = f"{place}/0" if place.endswith("vars") else place
    variables = {name: kernel} | ({f"{place}/1": draw(bias)} if bias else {})
    found = read_keras(hdf5(variables))[name]
    for c in range(channels):
        for k in range(outputs):
            expected = torch.from_numpy(kernel[:, :, c, k])
            assert torch.equal(found[c * outputs + k, 0] if depthwise else found[k, c], expected)


def linked(make):
    """Return a file with a good variable, and whatever `make` adds."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["layers/conv2d/vars/0"] = KERNELS[0]
        make(file)
    return buffer.getvalue()


def virtual(file):
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
    file.create_virtual_dataset("virtual", layout)


def ring(file):
    file["layers/ring"] = file["layers"]


def bomb(file):
    file.create_dataset("zeros", (1 << 13, 1 << 13), "f4", chunks=(64, 64), compression="gzip")


def nest(file):
    group = file
    for _ in range(40):
        group = group.create_group("g")


BAD_KERAS = {
    "empty": (lambda: b"", "no HDF5 file"),
    "text": (lambda: b"not a model at all", "no HDF5 file"),
    "no floats": (lambda: hdf5({"a": np.arange(3)}), "no floating-point variables"),
    "no inner file": (lambda: archive(b"", "other.h5"), r"without model\.weights\.h5"),
    "a bad inner file": (lambda: archive(b"oh no"), "no HDF5 file"),
    "a zip bomb": (
        lambda: archive(bytes(80 << 20), compression=zipfile.ZIP_DEFLATED),
        "has more than",
    ),
    "too long": (lambda: bytes(70 << 20), "at most"),
    "an external link": (
        lambda: linked(lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/"))),
        "'x' is a link to elsewhere, which is not followed",
    ),
    "a soft link to itself": (
        lambda: linked(lambda file: file.__setitem__("x", h5py.SoftLink("/x"))),
        "'x' is a link to elsewhere",
    ),
    "external storage": (
        lambda: linked(
            lambda file: file.create_dataset("x", (3,), "f4", external=[("/etc/passwd", 0, 12)])
        ),
        "'x' lies in another file",
    ),
    "a virtual dataset": (lambda: linked(virtual), "'virtual' lies in another file"),
    "a ring of groups": (lambda: linked(ring), "'layers/ring' is there under a second name"),
    "compressed": (lambda: linked(bomb), "'zeros' is in chunks or compressed"),
    "never written": (
        lambda: linked(lambda file: file.create_dataset("x", (1 << 40,), "f4")),
        "'x' has 0 bytes",
    ),
    "deep": (lambda: linked(nest), "more than 32 deep"),
    "many groups": (
        lambda: linked(lambda file: [file.create_group(str(each)) for each in range(10_001)]),
        "more than 10000 groups",
    ),
    "too much": (
        lambda: hdf5({"a": np.zeros(9 << 20, np.float16), "b": np.zeros(9 << 20, np.float16)}),
        "more than 64 MiB",
    ),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("make", "said"), BAD_KERAS.values(), ids=BAD_KERAS)
def test_a_wrong_keras_file_is_refused_in_a_sentence(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_keras(make())
    assert type(caught.value) is ValueError
    assert len(str(caught.value).splitlines()) == 1


# --- both ---


@pytest.mark.parametrize(("name", "read"), [("onnx", read_onnx), ("h5py", read_keras)])
def test_without_the_library_it_says_how_to_get_it(name, read, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install fastnca\[(onnx|keras)\]"):
        read(b"")
