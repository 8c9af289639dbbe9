"""The choice of a backend, and refusals in a sentence."""

import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from fastnca import BackendError, NeuralCA, Rule, backends, use_backend
from fastnca.backends import choose
from fastnca.backends.base import BACKENDS, RolloutCall, register
from fastnca.backends.choose import choose_backend
from fastnca.backends.triton_fused.limits import interpreter_reasons, size_reasons
from fastnca.masks import Updates
from fastnca.recognition import parameters_of
from fastnca.rule import TUTORIAL
from tests.helpers import COMPILED, CPU_DEFAULT, copy_weights, excite

STATE = torch.rand(1, 16, 5, 5)


def chosen(model, state=STATE):
    return choose_backend(model, model.backend, model.precision, state)


def test_the_cpu_default_is_active_cells():
    assert chosen(NeuralCA()) == CPU_DEFAULT


def test_order_argument_statement_environment(monkeypatch):
    assert chosen(NeuralCA(backend="reference")) == "reference"
    monkeypatch.setenv("FASTNCA_BACKEND", "reference")
    assert chosen(NeuralCA()) == "reference"
    assert chosen(NeuralCA(backend="torch")) == "torch"
    with use_backend("torch"):
        assert chosen(NeuralCA()) == "torch"
        with use_backend("reference"):
            assert chosen(NeuralCA()) == "reference"
            assert chosen(NeuralCA(backend="torch")) == "torch"
        assert chosen(NeuralCA()) == "torch"
    assert chosen(NeuralCA()) == "reference"


def test_use_backend_as_a_statement_stays():
    before = use_backend("auto")
    use_backend("reference")
    try:
        assert chosen(NeuralCA()) == "reference"
    finally:
        before.__exit__(None, None, None)
    assert chosen(NeuralCA()) == CPU_DEFAULT


@pytest.mark.parametrize("ask", ["argument", "statement", "environment"])
def test_triton_on_a_cpu_is_refused_with_every_reason(monkeypatch, ask):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model = NeuralCA(backend="triton" if ask == "argument" else "auto")
    if ask == "environment":
        monkeypatch.setenv("FASTNCA_BACKEND", "triton")
    choice = use_backend("triton" if ask == "statement" else "auto")
    try:
        for call in (model, lambda s: model.run_steps(s, 2), lambda s: model.trajectory(s, 2)):
            with pytest.raises(BackendError, match="backend 'triton' was asked for") as caught:
                call(STATE)
            assert any("CUDA" in reason for reason in caught.value.reasons)
            assert "Use backend='auto'" in str(caught.value)
    finally:
        choice.__exit__(None, None, None)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_that_only_the_kernels_have_is_not_ignored(precision, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for backend in ("auto", "cpp", "torch", "reference"):
        with pytest.raises(BackendError, match=f"precision='{precision}'"):
            NeuralCA(backend=backend, precision=precision)(STATE)
    assert chosen(NeuralCA(precision="ieee")) == CPU_DEFAULT


class Clamped(NeuralCA):
    def forward(self, state, update_rate=0.5):
        return super().forward(state, update_rate).clamp(-1, 1)


class Threshold(NeuralCA):
    def get_alive_mask(self, state, threshold=0.3):
        return super().get_alive_mask(state, threshold)


def changed_filters(model):
    with torch.no_grad():
        model.perception.filters[4] *= 2


def trained_filters(model):
    model.perception.filters.requires_grad_(True)


def other_network(model):
    model.update_net = nn.Sequential(nn.Conv2d(48, 8, 1), nn.Tanh(), nn.Conv2d(8, 16, 1))


def hooked(model):
    model.update_net[1].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [changed_filters, trained_filters, other_network, hooked])
def test_a_changed_model_is_computed_by_the_reference(change, caplog):
    model = excite(NeuralCA())
    change(model)
    with caplog.at_level(logging.INFO, logger="fastnca"):
        assert chosen(model) == "reference"
    model.backend = "torch"
    with pytest.raises(BackendError, match=r"perception|update_net|hooks"):
        model(STATE)


def test_hooks_of_a_submodule_are_called():
    model, seen = excite(NeuralCA()), []
    model.perception.register_forward_hook(lambda *_: seen.append(1))
    model.run_steps(STATE, 3)
    assert len(seen) == 3


@pytest.mark.parametrize("kind", [Clamped, Threshold])
def test_subclasses_keep_what_they_override(kind):
    model = excite(kind(), 0.5).eval()
    expected = STATE
    for _ in range(4):
        expected = model(expected)
    assert torch.equal(model.run_steps(STATE, 4), expected)
    assert torch.equal(list(model.trajectory(STATE, 4))[-1], expected)
    assert not torch.equal(copy_weights(model, NeuralCA).run_steps(STATE, 4), expected)
    with pytest.raises(BackendError, match="overrides"):
        kind(backend="torch")(STATE)


def test_a_seed_cannot_reach_the_masks_of_an_overridden_forward():
    with pytest.raises(TypeError, match="overrides forward"):
        Clamped().run_steps(STATE, 2, seed=3)


def test_autocast_rounds_as_the_reference_does():
    model = excite(NeuralCA()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        ours = model.run_steps(STATE, 2)
        theirs = copy_weights(model).run_steps(STATE, 2)
        with pytest.raises(BackendError, match="autocast"):
            copy_weights(model, lambda c, h: NeuralCA(c, h, backend="torch"))(STATE)
    assert torch.equal(ours, theirs)


def test_half_precision_states_go_through_the_reference():
    model = excite(NeuralCA()).to(torch.bfloat16).eval()
    assert chosen(model, STATE.bfloat16()) == "reference"
    assert torch.equal(model(STATE.bfloat16()), copy_weights(model)(STATE.bfloat16()))


def test_numpy_that_the_interpreter_of_triton_36_fails_with():
    (reason,) = interpreter_reasons("3.6.0", "2.4.6")
    assert "NumPy below 2.4, or Triton 3.7" in reason
    assert not interpreter_reasons("3.6.0", "2.3.5")
    assert not interpreter_reasons("3.7.1", "2.4.6")
    assert not interpreter_reasons("3.10.0", "2.10.0")


def test_sizes_that_a_compute_capability_cannot_hold():
    """Exact products run on consumer GPUs, of capability 8 and 12, but not on 10."""
    for capability in (8, 9, 12):
        assert not size_reasons("ieee", 16, 128, capability)
    (reason,) = size_reasons("ieee", 16, 128, 10)
    assert "compute capability 10; use fp16" in reason
    for capability in (8, 10, 12):
        assert size_reasons("fp16", 32, 256, capability)
        assert size_reasons("ieee", 32, 128, capability)
    assert not size_reasons("fp16", 32, 256, 9)


class Doubled:
    """A backend of a test: twice the state, for one hidden layer and the tutorial's padding."""

    name = "doubled"
    devices = frozenset(("cpu",))
    precisions: frozenset[str] = frozenset()
    draws_masks = False
    least_cells = 0

    def refuses(self, call):
        padding = call.rule.padding
        return [] if padding == "zeros" else [f"padding={padding!r}: doubled computes zeros"]

    def run(self, call):
        return 2 * call.state


@pytest.fixture
def doubled():
    before = dict(BACKENDS), list(backends._names)
    register(Doubled())
    yield
    BACKENDS.clear()
    BACKENDS.update(before[0])
    backends._names[:] = before[1]


def test_a_backend_is_registered_in_one_line(doubled):
    model = NeuralCA(backend="doubled")
    for end in (model(STATE), model.run_steps(STATE, 3), list(model.trajectory(STATE, 1))[-1]):
        assert torch.equal(end, 2 * STATE)
    with use_backend("doubled"):
        assert chosen(NeuralCA()) == "doubled"
    assert chosen(NeuralCA()) == CPU_DEFAULT  # the others are faster
    with pytest.raises(BackendError, match=r"padding='circular': doubled computes zeros"):
        NeuralCA(rule=Rule(padding="circular"), backend="doubled")(STATE)


def test_an_explanation_names_the_backend_and_what_keeps_the_faster_ones():
    model = NeuralCA(rule=Rule(learn_filters=True, padding="circular"))
    found = model.explain(STATE)
    assert found.backend == "torch"
    assert list(found.refused) == ["triton", "cpp"]
    assert found.refused["cpp"] == ["learn_filters=True: the cpp backend computes fixed filters"]
    assert "learn_filters=True: the fused kernels" in str(found)
    assert str(found).startswith("torch computes it\ntriton does not: ")
    asked = NeuralCA(backend="reference").explain(STATE)
    assert asked.backend == "reference"
    assert asked.refused["torch"] == ["backend='reference' was asked for"]
    changed = NeuralCA()
    changed.update_net[1] = nn.Tanh()
    reasons = changed.explain(STATE).refused["torch"]
    assert reasons == [
        "update_net has Tanh() where the rule has ReLU; use Rule(activation=...)",
    ]


def test_the_reference_is_said_to_be_taken_once(caplog):
    choose._log_once.cache_clear()
    model = NeuralCA()
    model.update_net[1] = nn.Tanh()
    with caplog.at_level(logging.INFO, logger="fastnca"):
        for _ in range(3):
            model.run_steps(STATE, 2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the reference backend is used" in record.getMessage()
    assert "Rule(activation=...)" in record.getMessage()


@COMPILED
def test_few_functions_are_entered_before_the_compiled_rollout():
    """Named functions of the package, up to the first memory that the C++ code asks for."""
    model, entered = NeuralCA(), []

    def profile(frame, event, argument):
        code = frame.f_code
        if event == "call" and "fastnca" in Path(code.co_filename).parts and code.co_name[0] != "<":
            entered.append(code.co_name)

    def run():
        return model.run_steps(STATE, 2, seed=1)

    run()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    assert len(entered[: entered.index("allocate")]) <= 20, entered


def test_learned_filters_must_have_the_weights_dtype():
    model = NeuralCA(rule=Rule(learn_filters=True))
    model.update_net.double()
    (reason,) = model.explain(STATE).refused["torch"]
    assert "ordinary tensors of one dtype" in reason


def test_triton_refuses_masks_that_are_given():
    masks = torch.ones(2, *STATE.shape[:1], *STATE.shape[2:], dtype=torch.bool)
    call = RolloutCall(STATE, parameters_of(NeuralCA()), TUTORIAL, Updates(2, masks))
    (reason,) = BACKENDS["triton"].refuses(call)
    assert reason.startswith("masks that are given: ")
    drawn = RolloutCall(STATE, parameters_of(NeuralCA()), TUTORIAL, Updates(2, seed=1))
    assert reason not in BACKENDS["triton"].refuses(drawn)
