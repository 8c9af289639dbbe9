"""What torch does with functions: transforms, tracing, modes, export. Right, or one sentence."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from fastnca import BackendError, NeuralCA, reference
from fastnca.backends.choose import choose_backend
from fastnca.backends.operators import rollout
from fastnca.fixed_filters import expected_filters
from tests.helpers import ACTIVE, CPU_DEFAULT, compiled, copy_weights, excite, operators_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")  # torch 2.14


@pytest.fixture
def model():
    torch.manual_seed(2)
    return excite(NeuralCA(6, 8), 0.2)


@pytest.fixture
def state():
    return torch.rand(2, 6, 5, 4, generator=torch.Generator().manual_seed(3))


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_forward_mode(model, state, frozen, steps):
    """`auto` computes the tangent with the reference; a fast backend refuses."""
    model.requires_grad_(not frozen).eval()
    if not frozen:
        model.perception.filters.requires_grad_(False)
    exact = copy_weights(model)

    def tangent(model):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(state, torch.ones_like(state))
            result = model(dual) if steps == 1 else model.run_steps(dual, steps)
            return forward_ad.unpack_dual(result).tangent

    expected = tangent(exact)
    assert expected is not None
    close(tangent(model), expected)
    model.backend = "torch"
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        tangent(model)
    if CPU_DEFAULT == "cpp":
        model.backend = "cpp"
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            tangent(model)


TRANSFORMS = {
    "grad": lambda call, s: torch.func.grad(lambda x: call(x).square().sum())(s),
    "jvp": lambda call, s: torch.func.jvp(call, (s,), (torch.ones_like(s),)),
    "vjp": lambda call, s: torch.func.vjp(call, s)[1](torch.ones_like(s)),
    "vmap": lambda call, s: torch.func.vmap(lambda x: call(x[None])[0])(s),
    "jacrev": lambda call, s: torch.func.jacrev(call)(s[:, :, :2, :2]),
    "jacfwd": lambda call, s: torch.func.jacfwd(call)(s[:, :, :2, :2]),
    "hessian": lambda call, s: hessian(lambda x: call(x).square().sum(), s[:1, :, :2, :2]),
    "jacobian": lambda call, s: jacobian(call, s[:, :, :2, :2]),
    "vectorized jacobian": lambda call, s: jacobian(call, s[:, :, :2, :2], vectorize=True),
    "functionalize": lambda call, s: torch.func.functionalize(call)(s),
    "make_fx": lambda call, s: make_fx(call)(s)(s),
    "symbolic make_fx": lambda call, s: make_fx(
        call, tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(s)(s),
    "pre-dispatch make_fx": lambda call, s: make_fx(call, pre_dispatch=True)(s)(s),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_what_the_reference_gives(model, state, name, whole):
    model.eval()
    transform, found = TRANSFORMS[name], []
    for each in (model, copy_weights(model)):
        call = partial(each.run_steps, steps=2) if whole else each
        if name == "hessian" and each is model:
            with pytest.raises(NotImplementedError, match="second derivatives"):
                transform(call, state)
            each.backend = "reference"
        found.append(transform(call, state))
    close(*found)


@pytest.mark.parametrize("call", [lambda m, s: m(s), lambda m, s: m.run_steps(s, 3)])
def test_a_state_that_a_transform_left_over(model, state, call):
    left = []
    torch.func.grad(lambda s: (left.append(s), s.sum())[1])(state)
    model.eval()
    close(call(model, left[0]), call(copy_weights(model), state))


def test_vmap_over_weights(model, state):
    """One model for each set of weights."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    several = {name: torch.stack([value, 2 * value]) for name, value in weights.items()}
    several["perception.filters"] = torch.stack([weights["perception.filters"]] * 2)
    found = []
    for each in (model.eval(), copy_weights(model).eval()):
        call = partial(torch.func.functional_call, each, args=(state,))
        found.append(torch.func.vmap(call)(several))
    close(*found)


@ACTIVE
@pytest.mark.parametrize("wanted", ["state", "weights", "both"])
def test_several_gradients_at_once(model, state, backend, wanted):
    """`is_grads_batched=True` differentiates a rollout under vmap."""
    model.backend = backend
    leaf = state.clone().requires_grad_(wanted != "weights")
    model.update_net.requires_grad_(wanted != "state")
    inputs = [t for t in (leaf, *model.update_net.parameters()) if t.requires_grad]
    grads = torch.rand(3, *state.shape)
    end = model.run_steps(leaf, 3, seed=5)
    together = torch.autograd.grad(end, inputs, grads, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(end, inputs, grad, retain_graph=True) for grad in grads]
    for batched, single in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(batched, torch.stack(single))


@ACTIVE
def test_gradients_that_negate_lazily(model, state, backend):
    """The gradient of an imaginary part may arrive as a view with its sign to come."""
    model.backend = backend
    found = []
    for each in (model, copy_weights(model)):
        leaf = state.clone().requires_grad_()
        end = each.run_steps(leaf, 2, seed=5)
        grad = torch.complex(torch.zeros_like(end), torch.ones_like(end)).conj().imag
        assert grad.is_neg()
        found.append(torch.autograd.grad(end, (leaf, *each.update_net.parameters()), grad))
    for ours, expected in zip(*found, strict=True):
        close(ours, expected)


@pytest.mark.parametrize("single", [True, False])
def test_states_that_negate_lazily(model, state, single):
    negative = torch.complex(torch.zeros_like(state), -state).conj().imag
    assert negative.is_neg()
    model.eval()
    call = (lambda m, s: m(s)) if single else (lambda m, s: m.run_steps(s, 2))
    close(call(model, negative), call(copy_weights(model), state))


@pytest.mark.parametrize("frozen", [True, False])
def test_jit_trace_records_the_reference_operators(model, state, frozen):
    model.eval().requires_grad_(not frozen)
    model.perception.filters.requires_grad_(False)
    traced = torch.jit.trace(model, state)
    for other in (state, torch.rand(2, 6, 5, 4)):
        close(traced(other), model(other))


@pytest.mark.parametrize("call", [lambda m, s: m(s), lambda m, s: m.run_steps(s, 2, seed=1)])
def test_a_call_with_fake_tensors_leaves_nothing_behind(model, state, call):
    expected = call(model.eval(), state)
    expected_filters.cache_clear()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = call(model, mode.from_tensor(state))
        assert fake.shape == state.shape
        for backend in ("torch", "cpp"):
            with pytest.raises((BackendError, RuntimeError)):
                call(NeuralCA(6, 8, backend=backend), mode.from_tensor(state))
    close(call(model, state), expected)
    with torch._subclasses.FakeTensorMode() as mode:
        twin = NeuralCA(6, 8)
        assert call(twin, torch.rand(state.shape)).shape == state.shape
    close(call(model, state), expected)
    make_fx(lambda s: call(model, s))(state)
    close(call(model, state), expected)


@pytest.mark.parametrize("call", [lambda m, s: m(s), lambda m, s: m.run_steps(s, 3)])
def test_masks_are_recorded_not_frozen(model, state, call):
    """What traces a call in training records how masks are drawn, and draws them in every call."""

    class Steps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, state):
            return call(self.model, state)

    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert call(model, mode.from_tensor(state)).shape == state.shape
    traced = torch.jit.trace(Steps(), state, check_trace=False)
    recorded = make_fx(lambda s: call(model, s))(state)
    exported = torch.export.export(Steps(), (state,)).module()
    for function in (traced, recorded, exported):
        assert not torch.equal(function(state), function(state))


def test_a_mode_that_counts_operations_sees_the_reference(model, state):
    counted = []
    for each in (model, copy_weights(model)):
        with FlopCounterMode(display=False) as counter:
            each.eval().run_steps(state, 3)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


@ACTIVE
def test_a_mode_sees_a_requested_backend_as_one_operator(model, state, backend):
    model.backend = backend
    expected = model.run_steps(state, 4, seed=2)

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names = []
    with Names():
        found = model.run_steps(state, 4, seed=2)
    assert torch.equal(found, expected)
    assert names.count("fastnca.rollout.default") == 1
    assert not any("conv" in name for name in names)


@pytest.mark.parametrize("call", [lambda m, s: m(s), lambda m, s: m.run_steps(s, 3)])
@pytest.mark.parametrize("name", ["auto", "torch", "cpp"])
def test_a_state_of_inference_mode_can_be_trained_on(model, state, call, name):
    if name == "cpp" and CPU_DEFAULT != "cpp":
        pytest.skip("there is no compiler")
    model.backend = name
    model.eval()
    with torch.inference_mode():
        start = call(model, state)
    assert start.is_inference()
    found = []
    for each in (model, copy_weights(model)):
        call(each, start).square().sum().backward()
        found.append([p.grad for p in each.update_net.parameters()])
    for ours, expected in zip(*found, strict=True):
        close(ours, expected)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_rollouts_of_36_counts_share_two_graphs(model, state, training):
    graphs = []
    model.train(training)
    compiled_rollout = compiled(lambda s, n: model.run_steps(s, n, seed=9), graphs)
    leaf = state.clone().requires_grad_()
    inputs = (leaf, *model.update_net.parameters())
    for steps in range(1, 37):
        result = compiled_rollout(leaf, steps)
        assert torch.equal(result, model.run_steps(leaf, steps, seed=9)), steps
    assert len(graphs) <= 2
    assert all(len(operators_of(graph)) == 1 for graph in graphs)
    expected = model.run_steps(leaf, 36, seed=9)
    found = torch.autograd.grad(result.square().sum(), inputs)
    for ours, other in zip(
        found, torch.autograd.grad(expected.square().sum(), inputs), strict=True
    ):
        assert torch.equal(ours, other)


def test_a_compiled_rollout_draws_new_masks_in_every_call(model, state):
    compiled_rollout = compiled(lambda s: model.run_steps(s, 3), [])
    assert not torch.equal(compiled_rollout(state), compiled_rollout(state))


def test_a_compiled_rollout_beyond_the_range_of_active_cells(model, state):
    """The operator computes it with the reference, gradients too."""
    state[0, 5, 0, 0] = float("inf")
    graphs, found = [], []
    compiled_rollout = compiled(lambda s: model.run_steps(s, 2, seed=9), graphs)
    for call in (compiled_rollout, lambda s: copy_weights(model).run_steps(s, 2, seed=9)):
        leaf = state.clone().requires_grad_()
        end = call(leaf)
        grad = torch.autograd.grad(end[1].square().sum(), leaf)[0]
        found.append((end.detach(), grad))
    assert operators_of(graphs[0])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("change", ["activation", "hook", "method", "shape"])
def test_a_changed_model_is_not_compiled_as_the_rule(model, state, change):
    if change == "activation":
        model.update_net[1] = torch.nn.Tanh()
    elif change == "hook":
        model.update_net[1].register_forward_hook(lambda m, args, output: output * 0.5)
    elif change == "method":
        model.update_net[1].forward = torch.tanh
    else:
        model.update_net[2] = torch.nn.Conv2d(8, 1, 1)
    graphs = []
    model.eval()
    compiled_rollout = compiled(lambda s: model.run_steps(s, 2), graphs)
    expected = reference.NeuralCA.run_steps(model, state, 2)
    close(compiled_rollout(state), expected)
    assert not operators_of(graphs[0])


def test_a_model_changed_after_compilation_is_recognised_anew(model, state):
    model.eval()
    compiled_rollout = compiled(lambda s: model.run_steps(s, 2), [])
    compiled_rollout(state)
    model.update_net[1] = torch.nn.Tanh()
    close(compiled_rollout(state), reference.NeuralCA.run_steps(model, state, 2))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_operators_are_as_torch_wants_them(model, state):
    counter = torch.tensor([5, 2, 3])
    leaf, parameters = state.clone().requires_grad_(), list(model.update_net.parameters())
    for backend in ("torch", CPU_DEFAULT):
        arguments = (leaf, parameters, counter, 0.5, True, backend, model.rule.json)
        opcheck(rollout, arguments)
        end = rollout(*arguments)
        model.backend = backend
        assert torch.equal(end, model.run_steps(state, 3, seed=5, first_step=2))
        (grad,) = torch.autograd.grad(end.pow(3).sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            grad.square().sum().backward()
    none = torch.tensor([5, 2, 0])
    nothing = rollout(state, parameters, none, 0.5, True, "", model.rule.json)
    assert torch.equal(nothing, state)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_exported_models_take_any_batch_and_size(model, whole, strict):
    class Steps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, state):
            return self.model.run_steps(state, 3) if whole else self.model(state)

    steps = Steps().eval()
    axes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example = torch.rand(2, 6, 12, 10)
    program = torch.export.export(steps, (example,), dynamic_shapes=(axes,), strict=strict).module()
    for shape in ((2, 6, 12, 10), (3, 6, 7, 9), (5, 6, 64, 80)):
        other = torch.rand(shape)
        close(program(other), steps(other))


def test_explicit_backends_say_what_they_cannot_do(model, state):
    model.eval()
    for backend in ("torch", "cpp"):
        model.backend = backend
        with pytest.raises(BackendError, match=r"torch\.func transforms"):
            torch.func.grad(lambda s: model(s).sum())(state)
        with pytest.raises(BackendError, match=r"torch\.jit\.trace records"):
            torch.jit.trace(model, state)
        with torch.overrides.BaseTorchFunctionMode(), pytest.raises(BackendError, match="Mode"):
            choose_backend(model, backend, "auto", state)
