"""The ONNX graph against the reference's step, for many rules, and over a hundred steps."""

import json
import sys

import pytest
import torch

import fastnca
from fastnca import NeuralCA, Rule, create_seed, reference, update_mask
from fastnca.exporting.onnx import export_onnx
from tests.helpers import excite
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.published import read_growing
from tests.rule_cases import CASES

onnx = pytest.importorskip("onnx", reason="ONNX files need onnx: pip install fastnca[onnx]")
runtime = pytest.importorskip("onnxruntime", reason="running ONNX files needs onnxruntime")


class Step:
    """An exported file in a runtime of somebody else's."""

    def __init__(self, data):
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def __call__(self, state, mask):
        inputs = {"state": state.numpy(), "mask": mask.float().numpy()}
        return torch.from_numpy(self.session.run(["next_state"], inputs)[0])


def reference_step(model, state, mask):
    slow = reference.NeuralCA(model.num_channels, rule=model.rule)
    slow.load_state_dict(model.state_dict())
    with torch.no_grad():
        return slow._step(state, mask.float())


def make_model(case):
    model = NeuralCA(case.channels, rule=case.rule)
    model.load_state_dict({name: each.float() for name, each in case.weights().items()})
    return model


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_is_the_references(case):
    """Whatever batch and grid: one file computes all four."""
    model = make_model(case)
    data = export_onnx(model)
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    step, draws = Step(data), torch.Generator().manual_seed(case.number)
    largest = 0.0
    for grid in case.grids():
        state = case.state(grid).float()
        mask = torch.rand(grid.batch, 1, *grid.size, generator=draws) < 0.6
        expected = reference_step(model, state, mask)
        found = step(state, mask)
        assert found.shape == expected.shape
        scale = max(1.0, float(expected.abs().max()))
        largest = max(largest, float((found - expected).abs().max()) / scale)
    print(f"{case.name}: {largest:.2g}")
    assert largest <= 1e-5


def test_there_are_many_cases():
    assert len(CASES) > 100


def test_a_published_lizard_grows_the_same_for_100_steps():
    model = NeuralCA().train().requires_grad_(False)
    model.load_state_dict(read_growing("ex3_lizard"), strict=False)
    step, state = Step(export_onnx(model)), create_seed(40, fill_hidden=True, batch=2)
    expected = model.run_steps(state, 100, 0.5, seed=11)
    for number in range(100):
        state = step(state, update_mask(11, number, state.shape, 0.5))
    assert (state[:, 3] > 0.1).sum() > 800
    assert (state - expected).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 64, 64), (5, 7, 40), (16, 12, 9)])
@pytest.mark.parametrize("padding", ["zeros", "circular", "reflect", "replicate"])
def test_batch_and_grid_are_free(shape, padding):
    torch.manual_seed(1)
    model = excite(NeuralCA(6, rule=Rule(padding=padding, hidden=(10,))))
    batch, height, width = shape
    state, mask = torch.rand(batch, 6, height, width), torch.rand(batch, 1, height, width) < 0.5
    found = Step(export_onnx(model))(state, mask)
    assert (found - reference_step(model, state, mask)).abs().max() < 1e-5


def test_a_reflection_needs_two_cells_in_the_runtime_too():
    model = excite(NeuralCA(6, rule=Rule(padding="reflect", hidden=(10,))))
    with pytest.raises(Exception, match=r"(?i)kernel|dimension|shape|invalid"):
        Step(export_onnx(model))(torch.rand(1, 6, 1, 5), torch.ones(1, 1, 1, 5))


def test_the_clamp_leaves_cells_alone_that_do_not_update():
    model = excite(NeuralCA(6, rule=Rule(alive="none", clamp=(-0.5, 0.5), hidden=(10,))))
    state, mask = 3 * torch.ones(1, 6, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    found = Step(export_onnx(model))(state, mask)
    assert torch.equal(found[..., 2:], state[..., 2:])
    assert found[..., :2].max() <= 0.5


def test_the_file_says_what_it_is():
    model = NeuralCA(9, rule=Rule(inputs=2, hidden=(5,)))
    model.metadata = {"update_rate": 0.25, "fill_hidden": True, "start": "cell", "size": 40}
    file = onnx.load_model_from_string(export_onnx(model))
    assert (file.producer_name, file.producer_version) == ("fastnca", fastnca.version.__version__)
    facts = {each.key: each.value for each in file.metadata_props}
    assert Rule.from_dict(json.loads(facts["rule"])) == model.rule
    assert json.loads(facts["update_rate"]) == 0.25
    assert (facts["start"], facts["fill_hidden"]) == ("cell", "true")
    assert [(each.domain, each.version) for each in file.opset_import] == [("", 13)]
    shapes = {
        each.name: [side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in (*file.graph.input, *file.graph.output)
    }
    assert shapes == {
        "state": ["batch", 9, "height", "width"],
        "mask": ["batch", 1, "height", "width"],
        "next_state": ["batch", 9, "height", "width"],
    }
    assert model.state_dict().keys() <= {each.name for each in file.graph.initializer}


def test_a_float64_model_becomes_float32():
    model = excite(NeuralCA(5, 8)).double()
    state, mask = torch.rand(1, 5, 6, 6), torch.ones(1, 1, 6, 6)
    found = Step(export_onnx(model))(state, mask)
    assert (found - reference_step(model.float(), state, mask)).abs().max() < 1e-5


def test_a_model_that_its_rule_does_not_describe_is_refused():
    model = NeuralCA(5, 8)
    model.update_net[1] = torch.nn.Tanh()
    with pytest.raises(ValueError, match=r"cannot describe .*Tanh"):
        export_onnx(model)


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install fastnca\[onnx\]"):
        export_onnx(NeuralCA(5, 8))
