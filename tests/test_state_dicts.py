"""State dicts that other programs saved: what loads, what is refused, nothing executed."""

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from fastnca import FileFormatError, NeuralCA, reference
from fastnca.storage import state_dict
from fastnca.testing import tutorial
from tests.helpers import excite


def make(seed=0, channels=6, hidden=5):
    torch.manual_seed(seed)
    return excite(NeuralCA(channels, hidden))


def assert_same(loaded, weights):
    """Compare every tensor of a model, bit for bit, with a state dict."""
    assert loaded.state_dict().keys() == weights.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
        assert tensor.dtype == weights[name].dtype
        assert tensor.is_contiguous()
    assert [p.requires_grad for p in loaded.parameters()] == [False, True, True, True, True]


def load(path, content, **options):
    """Save `content` with `torch.save` and load it as a model."""
    torch.save(content, path / "nca.pt", **options)
    return NeuralCA.load(path / "nca.pt")


def refuse(path, content, match, **options):
    with pytest.raises(FileFormatError, match=r"nca\.pt: .*" + match):
        load(path, content, **options)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_tutorials_state_dict_loads(tmp_path, zipped):
    theirs = excite(tutorial.NeuralCA(8, 12))
    ours = load(tmp_path, theirs.state_dict(), _use_new_zipfile_serialization=zipped)
    assert_same(ours, theirs.state_dict())
    state = torch.rand(1, 8, 6, 6)
    torch.testing.assert_close(ours.eval()(state), theirs.eval()(state), rtol=0, atol=1e-6)


def test_safetensors_load(tmp_path):
    weights = make().state_dict()
    save_file(
        {f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "a.safetensors"
    )
    assert_same(NeuralCA.load(tmp_path / "a.safetensors"), weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.ca."])
def test_a_prefix_of_all_names_is_removed(tmp_path, prefix):
    weights = make().state_dict()
    assert_same(load(tmp_path, {prefix + name: t for name, t in weights.items()}), weights)


def test_wrapped_modules_load(tmp_path):
    model = make()
    averaged = AveragedModel(model)
    assert "n_averaged" in averaged.state_dict()
    assert_same(load(tmp_path, averaged.state_dict()), model.state_dict())
    assert_same(load(tmp_path, nn.DataParallel(model).state_dict()), model.state_dict())
    compiled = torch.compile(model, backend="eager")
    assert_same(load(tmp_path, AveragedModel(compiled).state_dict()), model.state_dict())


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "model_state"])
def test_the_model_of_a_training_checkpoint_loads(tmp_path, name):
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 6, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint = {name: model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    assert_same(load(tmp_path, checkpoint), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_as_float32(tmp_path, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in make().state_dict().items()}
    assert_same(load(tmp_path, weights), {name: t.float() for name, t in weights.items()})


def test_mixed_precision_loads_as_the_highest(tmp_path):
    weights = make().double().state_dict()
    weights["perception.filters"] = weights["perception.filters"].half()
    weights["update_net.2.weight"] = weights["update_net.2.weight"].float()
    assert_same(load(tmp_path, weights), {name: t.double() for name, t in weights.items()})


def test_filters_and_biases_left_out_are_filled_in(tmp_path):
    model = make()
    for layer in (0, 2):
        nn.init.zeros_(model.update_net[layer].bias)
    weights = model.state_dict()
    given = {name: weights[name] for name in ("update_net.0.weight", "update_net.2.weight")}
    assert_same(load(tmp_path, given), weights)


def test_the_loaded_weights_have_storage_of_their_own(tmp_path):
    weights = make(channels=6, hidden=6).state_dict()
    weights["update_net.2.bias"] = weights["update_net.0.bias"] = torch.ones(1).expand(6)
    weights["update_net.2.weight"] = weights["update_net.2.weight"].transpose(0, 1)
    loaded = load(tmp_path, weights)
    assert_same(loaded, {name: tensor.clone() for name, tensor in weights.items()})
    with torch.no_grad():
        loaded.update_net[2].bias[0] = 5
    assert loaded.update_net[0].bias.tolist() == [1] * 6


def test_the_parameters_of_a_module_load(tmp_path):
    model = make()
    assert_same(load(tmp_path, dict(model.named_parameters())), model.state_dict())


def without(name):
    weights = make().state_dict()
    del weights[name]
    return weights


def scaled_filters():
    weights = make().state_dict()
    weights["perception.filters"] = weights["perception.filters"] * 8
    return weights


def sparse():
    weights = make().state_dict()
    return {**weights, "update_net.0.weight": weights["update_net.0.weight"].to_sparse()}


REFUSED = {
    "other dict": (
        lambda: {"a": torch.zeros(3)},
        "no 'update_net.2.weight' .* its entries 'a'; save",
    ),
    "a tensor": (lambda: torch.zeros(3), "not a state dict but a Tensor"),
    "a list": (lambda: [make().state_dict()], "not a state dict but a list"),
    "optimizer": (
        lambda: torch.optim.Adam(make().parameters()).state_dict(),
        "entries 'state', 'param_groups'; save",
    ),
    "two models": (
        lambda: {"model": make().state_dict(), "ema": make().state_dict()},
        "several models, 'model: update_net.2.weight', 'ema: update_net.2.weight'; save one",
    ),
    "two prefixes": (
        lambda: nn.ModuleDict({"a": make(), "b": make()}).state_dict(),
        r"several models, 'a\.update_net.2.weight', 'b\.update_net.2.weight'",
    ),
    "a loss beside": (
        lambda: {**nn.ModuleDict({"ca": make()}).state_dict(), "loss.scale": torch.ones(1)},
        "beside 'ca.update_net.2.weight' only dense tensors .*, got 'loss.scale'; save",
    ),
    "a number beside": (lambda: {**make().state_dict(), "epoch": 3}, "got 'epoch'; save"),
    "names of numbers": (lambda: {**make().state_dict(), 3: torch.ones(1)}, "got int; save"),
    "sparse": (sparse, "only dense tensors .*, got 'update_net.0.weight'"),
    "meta": (lambda: make().to("meta").state_dict(), "only dense tensors"),
    "extra tensor": (
        lambda: {**make().state_dict(), "more": torch.zeros(1)},
        "unknown tensors: more",
    ),
    "no first layer": (lambda: without("update_net.0.weight"), "missing: update_net.0.weight"),
    "other filters": (scaled_filters, "'perception.filters' must hold identity, Sobel-x / 8"),
    "linear layers": (
        lambda: {name: t.squeeze() for name, t in make().state_dict().items()},
        r"got \[6, 5\]; an nn.Linear leaves .* save weight\[:, :, None, None\]",
    ),
    "integers": (
        lambda: {name: t.int() for name, t in make().state_dict().items()},
        "floats of 16, 32 or 64 bits, got torch.int32",
    ),
    "not finite": (
        lambda: {name: t * float("nan") for name, t in make().state_dict().items()},
        "NaN or infinite",
    ),
    "expanded": (
        lambda: {
            **make().state_dict(),
            "update_net.2.weight": torch.ones(1).expand(6, 10**9, 1, 1),
        },
        "6 channels, 1000000000 hidden units: out of range",
    ),
    "expanded half": (
        lambda: {
            **make().state_dict(),
            "update_net.0.weight": torch.ones(1).half().expand(5, 10**12, 1, 1),
        },
        r"must be torch.float16 \[5, 18, 1, 1\]",
    ),
    "a whole module": (
        lambda: tutorial.NeuralCA(6, 5),
        r"pickled fastnca.testing.tutorial.NeuralCA, .* use torch.save\(model.state_dict\(\), path",
    ),
    "a function of the system": (
        lambda: {"update_net.2.weight": Payload("nowhere")},
        "holds a pickled (io.)?open, and nothing but tensors is unpickled",
    ),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", REFUSED)
def test_files_without_one_model_are_refused_with_the_cause(tmp_path, name, zipped):
    content, match = REFUSED[name]
    refuse(tmp_path, content(), match, _use_new_zipfile_serialization=zipped)


def test_8_bit_floats_are_refused(tmp_path):
    weights = {name: t.to(torch.float8_e4m3fn) for name, t in make().state_dict().items()}
    refuse(tmp_path, weights, "floats of 16, 32 or 64 bits, got torch.float8_e4m3fn")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def zip_pickle(file, content):
    """Write a zip archive as `torch.save` lays it out, around a pickle."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("nca/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("nca/version", "3\n")


CRAFTED = {
    "raw pickle": lambda file, payload: file.write_bytes(pickle.dumps(payload)),
    "zip": lambda file, payload: torch.save({"update_net.2.weight": payload}, file),
    "zip by hand": lambda file, payload: zip_pickle(file, payload),
    "legacy": lambda file, payload: torch.save(payload, file, _use_new_zipfile_serialization=False),
    "zip of nothing": lambda file, payload: zipfile.ZipFile(file, "w").close(),
    "zip of text": lambda file, payload: zipfile.ZipFile(file, "w").writestr("a", "b"),
    "text": lambda file, payload: file.write_text("model"),
    "empty": lambda file, payload: file.write_bytes(b""),
    "json": lambda file, payload: file.write_bytes(b"\x02" + b"\0" * 7 + b"{}"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused_and_never_executed(tmp_path, name):
    victim = tmp_path / "executed"
    CRAFTED[name](tmp_path / "model.pt", Payload(str(victim)))
    with pytest.raises(FileFormatError, match=r"model\.pt: .*torch.save\(model.state_dict\(\)"):
        NeuralCA.load(tmp_path / "model.pt")
    assert not victim.exists()


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(state_dict, "_MAX_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "nca.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("nca/data/0", bytes(20_000))
    with pytest.raises(FileFormatError, match="too large for a model once unpacked"):
        NeuralCA.load(tmp_path / "nca.pt")
    (tmp_path / "nca.pt").write_bytes(bytes(20_000))
    with pytest.raises(FileFormatError, match="too large: 20000 bytes where at most 10000"):
        NeuralCA.load(tmp_path / "nca.pt")


def legacy(content):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def refuse_bytes(path, data, match):
    (path / "nca.pt").write_bytes(data)
    with pytest.raises(FileFormatError, match=match):
        NeuralCA.load(path / "nca.pt")


def test_a_legacy_file_cannot_claim_more_memory_than_it_has_bytes(tmp_path):
    data = legacy({"update_net.2.weight": torch.zeros(70000)})
    claim = b"J" + struct.pack("<i", 70000)
    assert data.count(claim) >= 1
    data = data.replace(claim, b"J" + struct.pack("<i", 2**31 - 1))
    refuse_bytes(tmp_path, data, "its tensors claim more bytes than the file has")


def test_a_legacy_file_without_the_content_of_its_tensors_is_refused(tmp_path):
    data = legacy(OrderedDict(make().state_dict()))
    file = io.BytesIO(data)
    for _ in range(4):  # magic number, version, system, objects; then the keys of the storages
        list(pickletools.genops(file))
    data = data[: file.tell()] + pickle.dumps([], protocol=2) + bytes(len(data))
    refuse_bytes(tmp_path, data, "NaN or infinite")


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_no_truncated_file_of_a_format_without_checksums_loads(tmp_path, kind):
    weights = make().state_dict()
    save_file(weights, tmp_path / "whole")
    data = legacy(weights) if kind == "legacy" else (tmp_path / "whole").read_bytes()
    for part in range(100):
        refuse_bytes(
            tmp_path, data[: len(data) * part // 100], r"nca\.pt: (damaged|holds a pickled)"
        )


def test_filters_are_made_on_the_cpu_whatever_the_default_device(tmp_path):
    weights = without("perception.filters")
    with torch.device("meta"):
        model = load(tmp_path, weights)
    assert torch.equal(model.perception.filters, reference.NeuralCA(6).perception.filters)
