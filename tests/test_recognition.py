"""Models that are no longer the tutorial's rule: computed by the reference, or refused.

A fast backend may compute a model only if it has recognised it. Every change of `changes.py` is
made to a reference and to our model, and their states must be equal.
"""

import pytest
import torch

from fastnca import BackendError, NeuralCA, reference
from fastnca.backends.choose import choose_backend
from fastnca.recognition import model_reasons, overridden
from tests.changes import CHANGES, HARMLESS, changed, make
from tests.helpers import CPU_DEFAULT, copy_weights


def outcome(call):
    """Return the state that `call` gives, or the type of its error."""
    try:
        return call().detach()
    except (BackendError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return error


CALLS = {
    "a step in training": lambda m, s: m(s, 0.6),
    "a step in evaluation": lambda m, s: m.eval()(s),
    "a rollout in evaluation": lambda m, s: m.eval().run_steps(s, 3),
    "a rollout with a seed": lambda m, s: m.run_steps(s, 3, 0.6, seed=5),
    "a rollout of every cell": lambda m, s: m.run_steps(s, 3, 1.0),
}

STATE = torch.rand(2, 8, 9, 7, generator=torch.Generator().manual_seed(4))


def test_there_are_enough_ways():
    assert len(CHANGES) >= 55


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", CHANGES)
def test_auto_computes_what_the_reference_computes_or_refuses(name):
    equal = 0
    for call in CALLS.values():
        found = []
        for kind in (reference.NeuralCA, NeuralCA):
            model, context = changed(kind, name)
            torch.manual_seed(11)
            with context:
                found.append(outcome(lambda model=model, call=call: call(model, STATE.clone())))
        expected, ours = found
        if isinstance(ours, Exception):
            refused = isinstance(ours, TypeError) and "leave seed=None" in str(ours)
            assert refused or type(ours) is type(expected), (ours, expected)
        else:
            assert isinstance(expected, torch.Tensor), expected
            torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
            equal += 1
    invalid = isinstance(expected, Exception)
    assert equal >= (0 if invalid else len(CALLS) - 1)


@pytest.mark.parametrize("name", CHANGES)
def test_only_harmless_changes_are_computed_by_a_fast_backend(name):
    model, context = changed(NeuralCA, name)
    with context:
        chosen = choose_backend(model, "auto", "auto", STATE)
        assert (chosen == CPU_DEFAULT) == (name in HARMLESS), chosen
        for backend in ("torch", "cpp"):
            if name not in HARMLESS and name != "a dispatch mode":
                with pytest.raises(BackendError):
                    choose_backend(model, backend, "auto", STATE)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_gradients_after_harmless_changes(name):
    """The fast backends differentiate what they have recognised."""
    found = []
    for kind in (reference.NeuralCA, NeuralCA):
        model, context = changed(kind, name)
        state = STATE.clone().requires_grad_()
        with context:
            model.run_steps(state, 3, 0.6, seed=5).square().sum().backward()
        named = dict(model.update_net.named_parameters())
        found.append([state.grad, *(p.grad for p in named.values() if p.requires_grad)])
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_new_model_is_recognised():
    for model in (NeuralCA(), NeuralCA(4, 1), copy_weights(make(reference.NeuralCA), NeuralCA)):
        assert model_reasons(model) == []
        assert overridden(model) == []


def test_a_subclass_that_replaces_nothing_is_recognised():
    class Mine(NeuralCA):
        def loss(self, state):
            return self(state).sum()

    assert model_reasons(Mine(8, 12)) == []


def test_hooks_of_the_model_see_every_step():
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model, seen = make(NeuralCA), []
        getattr(model, register)(lambda *_, seen=seen: seen.append(1))
        model.run_steps(STATE, 3)
        assert len(seen) == 3
        list(model.trajectory(STATE, 4, every=2))
        assert len(seen) == 7
        with pytest.raises(TypeError, match=r"hooks on its calls.*leave seed=None"):
            model.run_steps(STATE, 3, seed=5)


def test_functional_call_is_computed_with_the_parameters_it_is_given():
    model, other = make(NeuralCA), make(NeuralCA)
    with torch.no_grad():
        other.update_net[0].weight.mul_(2)
    weights = {name: value.detach() for name, value in other.named_parameters()}
    for state in (STATE, torch.rand(1, 8, 60, 50)):  # below and above the fewest active cells
        found = torch.func.functional_call(model.eval(), weights, (state,))
        torch.testing.assert_close(found, other.eval()(state), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CHANGES)
def test_a_saved_model_loads_as_the_same_or_is_refused(name, tmp_path):
    model, context = changed(NeuralCA, name)
    with context:
        try:
            model.save(tmp_path / "model")
        except (TypeError, ValueError):
            assert name not in HARMLESS or name.startswith("a buffer")
            assert not (tmp_path / "model").exists()
            return
        loaded = type(model).load(tmp_path / "model")
        assert torch.equal(loaded.eval()(STATE), model.eval()(STATE))


def test_a_class_that_overrides_the_step_is_not_saved(tmp_path):
    class Half(NeuralCA):
        def get_alive_mask(self, state, threshold=0.5):
            return super().get_alive_mask(state, threshold)

    with pytest.raises(ValueError, match=r"overrides get_alive_mask; Rule\(alive="):
        make(Half).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
