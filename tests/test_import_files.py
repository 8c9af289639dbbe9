"""Files of other programs: the formats, what is refused by name, hostile and damaged ones."""

import base64
import io
import json
import pickle
import random
import resource
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image
from safetensors.torch import save as save_safetensors

from fastnca import FileFormatError, NeuralCA, import_model
from fastnca.importing import read_networks
from fastnca.importing.growth import build, certify
from fastnca.importing.layouts import parse_layout
from tests.published import find

MUTATIONS = 500
CHANNELS, HIDDEN = 4, 5


def make_weights(seed=0, filters=3, channels=CHANNELS, hidden=HIDDEN):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((hidden, filters * channels), (hidden,), (channels, hidden), (channels,))
    return [torch.rand(*shape, generator=generator) - 0.5 for shape in shapes]


def make_distill():
    first, bias, last, last_bias = make_weights()
    layers = []
    for weight, row in ((first, bias), (last, last_bias)):
        values = torch.cat([weight.T, row[None]]).numpy()
        data = np.round((values + 0.5) * 255).astype(np.uint8).tobytes()
        layer = {"in_ch": weight.shape[1], "out_ch": len(weight), "type": "uint8"}
        scales = {"weight_scale": 1.0, "bias_scale": 1.0}
        layers.append(layer | scales | {"data_b64": base64.b64encode(data).decode()})
    return json.dumps(layers).encode()


def make_graph():
    first, bias, last, last_bias = make_weights()
    nodes = [{"op": "Placeholder", "name": "x"}]
    for name, value in (
        ("a/Conv2D/ReadVariableOp/resource", first.T[None, None]),
        ("a/BiasAdd/ReadVariableOp/resource", bias),
        ("b/Conv2D/ReadVariableOp/resource", last.T[None, None]),
        ("b/BiasAdd/ReadVariableOp/resource", last_bias),
    ):
        content = base64.b64encode(value.contiguous().numpy().tobytes()).decode()
        shape = {"dim": [{"size": str(side)} for side in value.shape]}
        tensor = {"dtype": "DT_FLOAT", "tensorShape": shape, "tensorContent": content}
        nodes.append({"op": "Const", "name": name, "attr": {"value": {"tensor": tensor}}})
    return json.dumps({"modelTopology": {"node": nodes}}).encode()


def make_textures(models=2):
    layers = []
    for rows, columns in ((4 * CHANNELS + 1, 8), (9, CHANNELS)):
        pixels = np.random.default_rng(rows).integers(
            0, 256, (rows, models * columns // 4, 4), np.uint8
        )
        file = io.BytesIO()
        Image.fromarray(pixels, "RGBA").save(file, "PNG")
        data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        layers.append({"scale": 1.0, "data": data, "shape": [rows, columns], "layout": [models, 1]})
    names = [f"texture/models/t{n}" for n in range(models)]
    return json.dumps({"model_names": names, "layers": layers}).encode()


def make_state_dict():
    first, bias, last, last_bias = make_weights()
    return OrderedDict(
        {
            "net.0.weight": first[:, :, None, None],
            "net.0.bias": bias,
            "net.2.weight": last[:, :, None, None],
            "net.2.bias": last_bias,
        }
    )


def save(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def make_module(zipped=True):
    model = nn.Sequential(
        nn.Conv2d(12, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, CHANNELS, 1)
    ).half()
    return save(model, _use_new_zipfile_serialization=zipped)


def make_archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/one.json", make_distill())
        archive.writestr("models/two.pt", save(make_state_dict()))
        archive.writestr("models/read.me", b"words")
    return file.getvalue()


def make_checkpoint():
    archive = zipfile.ZipFile(find("google-planarian.zip"))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as small:
        for name in archive.namelist():
            if not name.endswith((".json", ".jpg")):
                small.writestr(name, archive.read(name))
    return file.getvalue()


FORMATS = {
    "distill.json": make_distill,
    "graph.json": make_graph,
    "textures.json": make_textures,
    "zip.pt": lambda: save(make_state_dict()),
    "legacy.pth": lambda: save(make_state_dict(), _use_new_zipfile_serialization=False),
    "module.pt": make_module,
    "module-legacy.pt": lambda: make_module(zipped=False),
    "weights.safetensors": lambda: save_safetensors(dict(make_state_dict())),
    "archive.zip": make_archive,
    "checkpoint.zip": make_checkpoint,
}


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def refuse(folder, name, data, match):
    with pytest.raises(FileFormatError, match=match):
        read_networks(write(folder, name, data))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path, name):
    networks = read_networks(write(tmp_path, name, FORMATS[name]()))
    assert len(networks) == (2 if name in ("textures.json", "archive.zip") else 1)
    first, bias, last, last_bias = make_weights()
    for network in networks.values():
        assert [w.dtype for w in network.weights] == [torch.float32] * 2
        if "module" in name or name in ("textures.json", "checkpoint.zip"):
            continue
        for found, expected in zip(
            (*network.weights, *network.biases), (first, last, bias, last_bias), strict=True
        ):
            assert (found - expected).abs().max() <= 0.51 / 255


def mutate(data, chance):
    """Return a copy with bytes changed, removed, inserted, repeated or cut off."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[place] = chance.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[place : place + chance.choice((1, 4, 100))]
        elif kind == 3:
            data[place:place] = chance.randbytes(chance.choice((1, 4, 8)))
        elif kind == 4:
            data[place : place + 8] = struct.pack("<q", chance.choice((-1, 2**31, 2**40, 2**62)))
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", FORMATS)
def test_mutations_give_models_or_one_exception(tmp_path, name):
    """No other exception, no memory beyond what a model needs; nothing is printed or hangs."""
    data, chance = FORMATS[name](), random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults = []
    for _ in range(MUTATIONS):
        path = write(tmp_path, name, mutate(data, chance))
        networks, error = attempt(path)
        if error is not None:
            faults.append(error.fault)
            assert str(path) in str(error)
        assert all(w.isfinite().all() for n in networks.values() for w in n.weights)
    assert all(fault and "\n" not in fault for fault in faults)
    assert len(faults) > MUTATIONS / 10
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB


def attempt(path):
    """Return the networks of a file, or none and the fault."""
    try:
        return read_networks(path), None
    except FileFormatError as error:
        return {}, error


class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _write_sentinel(path):
    raise AssertionError("this function was called by a file")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [exec, eval, _write_sentinel, __import__])
def test_nothing_in_a_pickle_is_called(tmp_path, function, zipped):
    content = {"model": make_state_dict(), "more": _Call(function, "import antigravity")}
    data = save(content, _use_new_zipfile_serialization=zipped)
    (network,) = read_networks(write(tmp_path, "a.pt", data)).values()
    assert network.channels == CHANNELS
    assert "antigravity" not in sys.modules


def replace_pickle(pickled):
    """Return a torch file whose pickle is another one."""
    source = zipfile.ZipFile(io.BytesIO(save(make_state_dict())))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in source.namelist():
            content = pickled if name.endswith("data.pkl") else source.read(name)
            archive.writestr(name, content)
    return file.getvalue()


HOSTILE = {
    "a memo of 2^31 entries": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a byte array of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "an extension": b"\x80\x02\x82\x01.",
    "a string of 2^60": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "deep lists": b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b".",
    "no end": b"\x80\x02}",
    "another object": pickle.dumps({"a": 1}),
    "a number of 10,000 digits": b"I" + b"9" * 10_000 + b"\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, name):
    refuse(tmp_path, "a.pt", replace_pickle(HOSTILE[name]), ".")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, zipped):
    weights = make_state_dict()
    weights["net.0.weight"] = torch.zeros(1).expand(
        1 << 20, 1 << 12
    )  # of 16 GiB, stored as 4 bytes
    data = save(weights, _use_new_zipfile_serialization=zipped)
    refuse(tmp_path, "a.pt", data, "no layers of 1x1 convolutions")


def test_a_module_that_holds_itself_many_times_is_read_once(tmp_path):
    """Shared parts would be 2^40 modules if every path to them counted."""
    part = nn.Sequential(nn.Conv2d(12, HIDDEN, 1), nn.Conv2d(HIDDEN, CHANNELS, 1))
    for _ in range(12):
        part = nn.ModuleList([part, part, part])
    (network,) = read_networks(write(tmp_path, "a.pt", save(part))).values()
    assert network.hidden == (HIDDEN,)


def test_archives_that_unpack_to_too_much_are_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", bytes(1 << 27))
    refuse(tmp_path, "a.zip", file.getvalue(), "too large")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 27))
    refuse(tmp_path, "a.pt", file.getvalue(), "too large")
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("inner.json", make_archive())
    refuse(tmp_path, "a.zip", file.getvalue(), "an archive in an archive")


def test_a_tar_archive_is_refused(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        fifo = tarfile.TarInfo("\x80storages")
        fifo.type = tarfile.FIFOTYPE
        archive.addfile(fifo)
    data = bytearray(file.getvalue())
    refuse(tmp_path, "a.tar", bytes(data), "no format that is known")


def test_pictures_of_another_size_are_refused_before_they_are_unpacked(tmp_path):
    content = json.loads(make_textures())
    file = io.BytesIO()
    Image.new("RGBA", (8000, 8000)).save(file, "PNG")
    bomb = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content["layers"][0]["data"] = bomb
    refuse(tmp_path, "a.json", json.dumps(content).encode(), r"a picture of \(8000, 8000\)")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, "damaged JSON"),
        ("{}", "JSON, but neither"),
        ("[]", "0 layers"),
        ("[1]", "'in_ch' is missing"),
        ('[{"in_ch": 1e400}]', "'in_ch' is missing or has a wrong type"),
        ('{"modelTopology": {"node": [{"op": "Const"}]}}', "'name' is missing"),
        ('{"modelTopology": {"node": []}}', "no matrix at all"),
        ("", "no format that is known"),
        ("words", "no format that is known"),
    ],
)
def test_texts_that_are_no_model(tmp_path, text, match):
    refuse(tmp_path, "a.json", text.encode(), match)


REFUSED = {
    "a 3x3 convolution": ({"p.weight": torch.zeros(4, 4, 3, 3)}, "3x3 convolution across channels"),
    "three dimensions": ({"c.weight": torch.zeros(4, 4, 1, 1, 1)}, "three-dimensional convolution"),
    "a batch norm": ({"n.running_mean": torch.zeros(5)}, "normalises over the batch"),
    "another vector": ({"embedding": torch.zeros(7)}, "nothing in a rule corresponds to"),
    "another filter": ({"f": torch.ones(1, 1, 3, 3)}, "the filter 'f' is none of identity"),
    "nan": ({"net.0.bias": torch.full((5,), float("nan"))}, "NaN or infinite"),
    "conditioning": ({"net.0.weight": torch.zeros(5, 13, 1, 1)}, "no layers of 1x1 conv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_expresses_is_refused_by_name(tmp_path, name):
    more, match = REFUSED[name]
    refuse(tmp_path, "a.pt", save({**make_state_dict(), **more}), match)


WRAPPINGS = {
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 3)}}}},
    "module.": lambda w: {f"module.{name}": value for name, value in w.items()},
    "_orig_mod.": lambda w: {f"_orig_mod.module.{name}": value for name, value in w.items()},
    "half": lambda w: {name: value.half() for name, value in w.items()},
    "bfloat16": lambda w: {name: value.bfloat16() for name, value in w.items()},
    "linear": lambda w: {name: value.flatten(1) for name, value in w.items() if value.dim() > 1},
    "averaged": lambda w: (
        {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in w.items()}
    ),
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrapped_state_dicts_are_read(tmp_path, name, zipped):
    weights = make_state_dict()
    data = save(WRAPPINGS[name](weights), _use_new_zipfile_serialization=zipped)
    (network,) = read_networks(write(tmp_path, "a.pt", data)).values()
    tolerance = 4e-3 if name == "bfloat16" else 5e-4
    for found, entry in zip(network.weights, ("net.0.weight", "net.2.weight"), strict=True):
        assert (found - weights[entry].flatten(1)).abs().max() <= tolerance
    assert [bias is None for bias in network.biases] == [name == "linear"] * 2


def test_files_of_one_name_in_an_archive_are_told_apart(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a/m.pt", "b/m.pt", "b/m.pth"):
            archive.writestr(name, save(make_state_dict()))
    networks = read_networks(write(tmp_path, "a.zip", file.getvalue()))
    assert list(networks) == ["m", "b/m", "b/m.pth"]


def test_two_models_in_a_file_are_told_apart(tmp_path):
    content = {"state_dict": make_state_dict(), "ema": make_state_dict()}
    path = write(tmp_path, "a.pt", save(content))
    assert list(read_networks(path)) == ["state_dict", "ema"]
    with pytest.raises(FileFormatError, match="several models; choose by name or number"):
        import_model(path)
    with pytest.raises(FileFormatError, match="holds no model 'x'"):
        import_model(path, name="x")


def test_deeper_networks_and_filters_in_the_file_become_a_rule(tmp_path):
    """Every channel's own filters are a rule that learns them; common ones are fixed."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(15, 6, 1), nn.ReLU(), nn.Conv2d(6, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, 1))
    weights = dict(nn.Sequential(*layers).state_dict())
    for common in (True, False):
        taps = torch.rand(1 if common else 5, 3, 3, 3).repeat(5 if common else 1, 1, 1, 1)
        file = save({**weights, "perceive.weight": taps.reshape(15, 1, 3, 3)})
        (network,) = read_networks(write(tmp_path, "a.pt", file)).values()
        (trial,) = [t for t in certified_or_not(network) if t.layout.arrangement == "interleaved"]
        model = build(network, trial.layout, trial.family)
        assert model.rule.hidden == (6, 7)
        assert model.rule.learn_filters is not common
        assert torch.equal(model.perception.filters.detach(), taps.reshape(15, 1, 3, 3))
        assert torch.equal(model.update_net[2].weight, weights["2.weight"])


def certified_or_not(network):
    from fastnca.importing.growth import FAMILIES, try_layout
    from fastnca.importing.layouts import layouts_to_try

    return [try_layout(network, each, FAMILIES["growing"]) for each in layouts_to_try(network)]


def test_our_own_files_are_imported_with_the_tutorials_seed(tmp_path):
    """A model trained by the tutorial starts from alpha alone; its filters say the layout."""
    torch.manual_seed(0)
    model = NeuralCA(8, 6)
    with torch.no_grad():
        model.update_net[2].bias[3] = 0.1
    path = write(tmp_path, "a.pt", save(model.state_dict()))
    certificate = certify(next(iter(read_networks(path).values())), "interleaved")
    assert certificate.chosen.fits
    loaded = import_model(path)
    assert loaded.rule.hidden == (6,)
    assert "fill_hidden" not in loaded.metadata
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("auto2", "layout must be auto, interleaved or blocks"),
        ("blocks:", "'' is none of identity"),
        ("blocks:identity,sobel_x", "must name 3 different filters"),
        ("blocks:identity,sobel_x,sobel_x", "must name 3 different filters"),
        ("blocks:identity,0*sobel_x,sobel_y", "none of identity"),
        ("blocks:identity;sobel_x", "none of identity"),
    ],
)
def test_layouts_that_are_none(text, match):
    with pytest.raises(ValueError, match=match):
        parse_layout(text, 3)


@pytest.mark.parametrize(
    "text", ["blocks:identity,-sobel_y,8*sobel_x", "interleaved:sobel_x,-2.5*sobel_y,identity"]
)
def test_a_layout_is_written_as_it_is_read(text):
    assert str(parse_layout(text, 3)) == text


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileFormatError, match="a directory; give the file"):
        read_networks(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_networks(tmp_path / "nothing")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 27)
    with pytest.raises(FileFormatError, match="too large"):
        read_networks(tmp_path / "large")
