"""The backends on active cells, torch and cpp, against the reference: states and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnca import NeuralCA, create_seed, reference
from fastnca.checks import OutOfRangeError
from fastnca.masks import Updates, update_masks
from tests.helpers import (
    ACTIVE,
    PARAMETERS,
    copy_weights,
    excite,
    relative_error,
    roll_out,
    run_backend,
)

EXACT = 1e-12  # float64: only the order of additions differs from the reference


def compare(model, state, steps, seed, update_rate=0.5):
    """Return the relative error of the state and of every gradient against the reference."""
    fast = roll_out(model, state, steps, seed, update_rate)
    slow = roll_out(copy_weights(model), state, steps, seed, update_rate)
    errors = {name: relative_error(fast.gradients[name], g) for name, g in slow.gradients.items()}
    return {"end": relative_error(fast.state, slow.state), **errors}


def assert_exact(model, state, steps, seed, update_rate=0.5):
    for name, error in compare(model, state, steps, seed, update_rate).items():
        assert error <= EXACT, f"{name}: relative error {error}"


@ACTIVE
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_float64_from_grown_states(backend, grown, seed):
    assert_exact(grown.model(backend=backend), grown.states.double(), 20, seed)


@ACTIVE
def test_float64_from_seeds(backend, grown):
    assert_exact(grown.model(backend=backend), create_seed(28, batch=3).double(), 20, 4)


@ACTIVE
def test_float64_in_eval_mode(backend, grown):
    assert_exact(grown.model(backend=backend).eval(), grown.states.double(), 20, 0)


def test_grown_states_exercise_the_halo(grown):
    """Leaving out the cells around the living region must go wrong on the states used here."""
    model = grown.model(reference.NeuralCA).requires_grad_(False)
    state = grown.states.double()
    masks = update_masks(0, 0, 20, state.shape, 0.5)[:, :, None]
    right = wrong = state
    for mask in masks:
        right = model._step(right, mask.float())
        wrong = model._step(wrong, mask.float() * model.get_alive_mask(wrong))
    assert relative_error(wrong, right) > 1e-3


@ACTIVE
def test_float32_is_as_close_to_float64_as_the_reference(backend, grown):
    exact = roll_out(grown.model(reference.NeuralCA), grown.states.double(), 20, 3)
    theirs = roll_out(grown.model(reference.NeuralCA, torch.float32), grown.states, 20, 3)
    ours = roll_out(grown.model(dtype=torch.float32, backend=backend), grown.states, 20, 3)
    floor = 1e-7
    error = relative_error(theirs.state, exact.state)
    assert relative_error(ours.state, exact.state) <= 10 * error + floor
    for name, gradient in exact.gradients.items():
        error = relative_error(theirs.gradients[name], gradient)
        assert relative_error(ours.gradients[name], gradient) <= 10 * error + floor, name


sizes = st.integers(1, 9)


shapes = given(
    batch=st.integers(1, 3),
    channels=st.integers(4, 7),
    hidden=st.integers(1, 9),
    height=sizes,
    width=sizes,
    steps=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    share=st.floats(0, 1),
    training=st.booleans(),
    number=st.integers(0, 2**32),
)


@ACTIVE
@shapes
@settings(max_examples=30, deadline=None)
def test_any_shape(backend, **drawn):
    assert_shape(backend, **drawn)


@pytest.mark.long
@ACTIVE
@shapes
@settings(max_examples=150, deadline=None)
def test_many_shapes(backend, **drawn):
    assert_shape(backend, **drawn)


def assert_shape(
    backend, batch, channels, hidden, height, width, steps, rate, share, training, number
):
    torch.manual_seed(number)
    model = excite(NeuralCA(channels, hidden, backend=backend), 0.3).double().train(training)
    state = torch.randn(batch, channels, height, width, dtype=torch.float64) * 0.5
    state *= torch.rand(batch, 1, height, width) < share
    for name, error in compare(model, state, steps, number, rate).items():
        assert error <= 1e-9, f"{name}: relative error {error}"  # chaotic for random weights


BORDERS = {
    "all dead": lambda s: s.zero_(),
    "all alive": lambda s: s[:, 3].fill_(1.0),
    "top": lambda s: s[:, :, 1:].zero_(),
    "bottom": lambda s: s[:, :, :-1].zero_(),
    "left": lambda s: s[..., 1:].zero_(),
    "right": lambda s: s[..., :-1].zero_(),
    "one corner": lambda s: (s[:, :, 1:].zero_(), s[..., 1:].zero_()),
    "values outside the living region": lambda s: s[:, 3].zero_(),
}


@ACTIVE
@pytest.mark.parametrize("name", BORDERS)
def test_living_regions_at_the_border(backend, name):
    model = excite(NeuralCA(backend=backend)).double()
    state = torch.rand(2, 16, 7, 6, dtype=torch.float64) + 0.2
    BORDERS[name](state)
    assert_exact(model, state, 4, 1)


@ACTIVE
def test_first_step_of_a_zero_initialised_model(backend):
    model = NeuralCA(backend=backend).double()
    outcome = roll_out(model, create_seed(16).double(), 5, 0)
    assert outcome.gradients["update_net.0.weight"].abs().max() == 0
    assert_exact(model, create_seed(16).double(), 5, 0)


@ACTIVE
def test_batch_equals_single_states(backend, grown):
    model = grown.model(backend=backend).eval()
    state = grown.states.double()
    joint = model.run_steps(state, 12)
    single = torch.cat([model.run_steps(s[None], 12) for s in state])
    torch.testing.assert_close(joint, single, rtol=0, atol=1e-13)


@ACTIVE
def test_rollout_equals_repeated_steps(backend, grown):
    model = grown.model(backend=backend).eval()
    state = grown.states.double()
    repeated = state
    for _ in range(7):
        repeated = run_backend(model, backend, repeated, Updates(1))
    torch.testing.assert_close(model.run_steps(state, 7), repeated, rtol=0, atol=1e-13)


@ACTIVE
def test_training_at_rate_one_equals_eval(backend, grown):
    model = grown.model(backend=backend)
    state = grown.states.double()
    torch.testing.assert_close(
        model.train().run_steps(state, 9, 1.0), model.eval().run_steps(state, 9), rtol=0, atol=0
    )


@ACTIVE
def test_dead_regions_grow_by_one_cell_per_step(backend, grown):
    model = grown.model(backend=backend).eval()
    end = model.run_steps(create_seed(28).double(), 5)
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[8:21, 8:21] = False
    assert end[..., outside].abs().max() == 0


@ACTIVE
@pytest.mark.parametrize(
    "layout",
    [
        lambda s: s.contiguous(memory_format=torch.channels_last),
        lambda s: s.mT.contiguous().mT,
        lambda s: torch.cat([s, s], dim=3)[..., : s.shape[3]],
    ],
    ids=["channels_last", "transposed", "sliced"],
)
def test_any_strides_in_contiguous_out(backend, grown, layout):
    model = grown.model(backend=backend).eval()
    state = grown.states.double()
    expected, end = model.run_steps(state, 3), model.run_steps(layout(state), 3)
    assert torch.equal(end, expected)
    assert end.is_contiguous()


@ACTIVE
def test_repetition_gives_the_same_bits(backend, grown):
    model, state = grown.model(dtype=torch.float32, backend=backend), grown.states
    first, second = (roll_out(model, state, 15, 8) for _ in range(2))
    assert torch.equal(first.state, second.state)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[name]), name


@ACTIVE
def test_backward_twice_through_a_retained_graph(backend, grown):
    model = grown.model(backend=backend)
    loss = model.run_steps(grown.states.double(), 6, seed=1).square().sum()
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in once:
            assert torch.equal(parameter.grad, 2 * once[name]), name


@ACTIVE
@pytest.mark.parametrize("frozen", PARAMETERS)
def test_frozen_parameters_get_no_gradient_and_change_no_other(backend, grown, frozen):
    free = roll_out(grown.model(backend=backend), grown.states.double(), 4, 2)
    model = grown.model(backend=backend)
    model.get_parameter(frozen).requires_grad_(False)
    model.run_steps(grown.states.double(), 4, seed=2)[:, :4].sum().backward()
    assert model.get_parameter(frozen).grad is None
    assert set(free.gradients) - {"state"} == set(PARAMETERS)


@ACTIVE
def test_state_gradient_alone(backend, grown):
    model = grown.model(backend=backend).requires_grad_(False)
    slow = copy_weights(model).requires_grad_(False)
    gradients = []
    for each in (model, slow):
        state = grown.states.double().requires_grad_()
        each.run_steps(state, 5, seed=2).square().sum().backward()
        gradients.append(state.grad)
    assert relative_error(gradients[0], gradients[1]) <= EXACT


@ACTIVE
def test_without_gradients_nothing_is_recorded(backend, grown):
    model = grown.model(backend=backend)
    with torch.no_grad():
        end = model.run_steps(grown.states.double(), 3, seed=1)
    assert not end.requires_grad
    with torch.inference_mode():
        assert torch.equal(model.run_steps(grown.states.double(), 3, seed=1), end)


@ACTIVE
def test_second_derivatives_are_refused(backend, grown):
    model = grown.model(backend=backend)
    state = grown.states.double().requires_grad_()
    loss = model.run_steps(state, 2, seed=1).square().sum()
    (gradient,) = torch.autograd.grad(loss, state, create_graph=True)
    assert torch.isfinite(gradient).all()
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        (gradient.square().sum() + state.square().sum()).backward()


@ACTIVE
def test_forward_mode_is_refused(backend, grown):
    model = grown.model(backend=backend)
    state = grown.states.double()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(state, torch.ones_like(state))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            model.run_steps(dual, 2, seed=1)


SPOILED = {
    "nan in alpha": (3, float("nan")),
    "inf in alpha": (3, float("inf")),
    "nan in a hidden channel": (9, float("nan")),
    "-inf in colour": (0, float("-inf")),
    "about to overflow": (5, 1e30),
}


@ACTIVE
@pytest.mark.parametrize("name", SPOILED)
def test_values_that_are_not_finite_spread_as_in_the_reference(backend, grown, name):
    channel, value = SPOILED[name]
    model = grown.model(dtype=torch.float32, backend=backend)
    state = grown.states.clone()
    state[1, channel, 14, 14] = value
    fast, slow = (roll_out(m, state, 6, 3) for m in (model, copy_weights(model)))
    torch.testing.assert_close(fast.state, slow.state, rtol=0, atol=0, equal_nan=True)
    for gradient, expected in zip(fast.gradients.values(), slow.gradients.values(), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(OutOfRangeError):
        run_backend(model, backend, state, Updates(6, None, 3, 0, 0.5))


@ACTIVE
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_weights_that_are_not_finite_give_the_references_result(backend, grown, parameter):
    model = grown.model(dtype=torch.float32, backend=backend)
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[0] = float("nan")
    state = create_seed(28)
    fast, slow = (m.run_steps(state, 2, seed=1) for m in (model, copy_weights(model)))
    torch.testing.assert_close(fast, slow, rtol=0, atol=0, equal_nan=True)
    assert fast.isnan().any()


@ACTIVE
def test_the_saved_history_is_small(backend, grown):
    """Autograd keeps what was overwritten, not perception and hidden layer of every cell."""
    model = grown.model(dtype=torch.float32, backend=backend)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.run_steps(grown.states, 20, seed=1)
    distinct = {t.data_ptr(): t.numel() * t.element_size() for t in kept if t.numel()}
    per_cell_and_step = sum(distinct.values()) / (20 * grown.states[:, 0].numel())
    assert per_cell_and_step <= 1.5 * 16 * 4
