"""Habits of torch users: they work as with the reference, or one sentence says why not."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parameters_to_vector, parametrizations, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel

from fastnca import NeuralCA, create_target_circle, reference
from fastnca.training import PoolTrainer
from tests.helpers import excite

STATE = torch.rand(2, 6, 7, 8, generator=torch.Generator().manual_seed(4))


def make(kind=NeuralCA):
    torch.manual_seed(3)
    return excite(kind(6, 8), 0.2)


def both(change):
    """Return our model and the reference after the same change."""
    models = [make(kind) for kind in (NeuralCA, reference.NeuralCA)]
    return [change(model) or model for model in models]


def assert_equal(ours, theirs, state=STATE):
    torch.manual_seed(9)
    found = ours(state)
    torch.manual_seed(9)
    expected = theirs(state)
    assert found.dtype == expected.dtype == state.dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)
    found, expected = (m.run_steps(state, 3, seed=5) for m in (ours, theirs))
    assert found.dtype == expected.dtype == state.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_every_dtype_stays_what_it_is(dtype, training):
    ours, theirs = both(lambda model: model.to(dtype).train(training))
    state = STATE.to(dtype)
    for model in (ours, theirs):
        twice = model(model(state))
        assert twice.dtype == dtype
        assert model.run_steps(state, 3, seed=5).dtype == dtype
        assert model.get_alive_mask(state).dtype == dtype
    assert_equal(ours, theirs, state)


PRUNED = {
    "a bias": lambda m: prune.l1_unstructured(m.update_net[2], "bias", 1) and None,
    "a weight": lambda m: prune.l1_unstructured(m.update_net[0], "weight", 0.5) and None,
    "channels": lambda m: prune.ln_structured(m.update_net[0], "weight", 0.5, 2, 0) and None,
    "all": lambda m: prune.global_unstructured(
        [(m.update_net[0], "weight"), (m.update_net[2], "weight")], prune.L1Unstructured, amount=0.3
    ),
}


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_models_compute_and_learn(name):
    ours, theirs = both(PRUNED[name])
    assert_equal(ours, theirs)
    gradients = []
    for model in (ours, theirs):
        model.run_steps(STATE, 2, seed=5).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"cannot describe this model.*torch\.save"):
        ours.save("never")


def test_spectral_norm_iterates_as_with_the_reference():
    ours, theirs = both(lambda m: parametrizations.spectral_norm(m.update_net[0]) and None)
    for _ in range(3):
        assert_equal(ours, theirs)


def test_data_parallel_calls_the_model():
    ours, theirs = both(nn.DataParallel)
    torch.testing.assert_close(ours.eval()(STATE), theirs.eval()(STATE), rtol=0, atol=1e-6)


def test_wrappers_are_no_models_to_train():
    for wrapped in (nn.DataParallel(make()), AveragedModel(make()), torch.compile(make())):
        with pytest.raises(TypeError, match=r"model must be a NeuralCA, got .*pass model\."):
            PoolTrainer(wrapped, create_target_circle(8))


def test_averaged_models_average():
    ours, theirs = both(AveragedModel)
    for averaged in (ours, theirs):
        twin = make(type(averaged.module))
        averaged.update_parameters(twin)
        with torch.no_grad():
            twin.update_net[2].bias.add_(0.1)
        averaged.update_parameters(twin)
    torch.testing.assert_close(ours.eval()(STATE), theirs.eval()(STATE), rtol=0, atol=1e-6)
    assert_equal(ours.module, theirs.module)


def test_functional_call_takes_other_weights_and_goes_back():
    ours, theirs = both(lambda model: model.eval())
    doubled = {name: 2 * value.detach() for name, value in ours.update_net.named_parameters()}
    given = {f"update_net.{name}": value for name, value in doubled.items()}
    before = ours(STATE)
    found, expected = (torch.func.functional_call(m, given, (STATE,)) for m in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.equal(found, before)
    assert torch.equal(ours(STATE), before)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: torch.load(saved(m), weights_only=False),
    "share_memory": lambda m: m.share_memory(),
    "to": lambda m: m.to("cpu", torch.float32, memory_format=torch.channels_last),
    "to_empty and load": lambda m: loaded(copy.deepcopy(m).to_empty(device="cpu"), m),
    "vector": lambda m: from_vector(copy.deepcopy(m), m),
    "apply": lambda m: m.apply(lambda module: None),
    "half and back": lambda m: loaded(copy.deepcopy(m).half().float(), m),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def loaded(twin, model):
    twin.load_state_dict(model.state_dict())
    return twin


def from_vector(twin, model):
    vector_to_parameters(parameters_to_vector(model.parameters()).clone(), twin.parameters())
    return twin


@pytest.mark.parametrize("name", COPIES)
def test_copies_compute_the_same(name):
    model = make()
    twin = COPIES[name](model)
    assert torch.equal(twin.run_steps(STATE, 4, seed=5), make().run_steps(STATE, 4, seed=5))
    twin.run_steps(STATE, 2, seed=5).sum().backward()
    assert all(p.grad is not None for p in twin.update_net.parameters())


def test_weights_of_another_model_may_be_shared():
    """Tied weights learn from both uses."""
    ours, theirs = make(), make(reference.NeuralCA)
    twins = [make(NeuralCA), make(reference.NeuralCA)]
    for model, twin in zip((ours, theirs), twins, strict=True):
        twin.update_net[0].weight = model.update_net[0].weight
        (model.run_steps(STATE, 2, seed=5) + twin.run_steps(STATE, 3, seed=6)).sum().backward()
    torch.testing.assert_close(
        ours.update_net[0].weight.grad, theirs.update_net[0].weight.grad, rtol=1e-4, atol=1e-5
    )
