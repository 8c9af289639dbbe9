"""The drop-in module: the tutorial's class swapped, nothing else."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import fastnca
from fastnca import NeuralCA, create_seed, get_visible_state, reference
from fastnca.testing import tutorial
from tests.helpers import copy_weights, excite, relative_error


def tutorial_with(model_class):
    """Return the tutorial's training loop with the model's class swapped.

    `get_visible_state` is swapped too: since torch 2.15 the tutorial's own has no gradient where a
    seed's colours lie, and with it no class can learn.
    """
    names = dict(vars(tutorial), NeuralCA=model_class, get_visible_state=get_visible_state)
    train = type(tutorial.train_nca)(tutorial.train_nca.__code__, names)
    train.__defaults__ = tutorial.train_nca.__defaults__
    return SimpleNamespace(train_nca=train)


def test_the_tutorials_loop_runs_and_its_loss_falls():
    torch.manual_seed(42)
    target = tutorial.create_target_circle(16)
    losses = tutorial_with(NeuralCA).train_nca(
        NeuralCA(16, 32), target, num_epochs=36, pool_size=8, batch_size=4
    )
    assert len(losses) == 36
    assert sum(losses[-10:]) / 10 < 0.9 * losses[0]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("size", [16, 48])
def test_the_tutorials_loop_gives_the_same_losses(size):
    """Same random numbers, same masks: only rounding tells the two classes apart."""
    target = tutorial.create_target_circle(size)
    losses = []
    for kind in (tutorial.NeuralCA, NeuralCA):
        torch.manual_seed(1)
        model = kind(16, 24)
        train = tutorial_with(kind).train_nca
        losses.append(train(model, target, num_epochs=3, pool_size=4, batch_size=1))
    assert losses[0][2] != losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_from_fastnca_import_star_replaces_the_tutorials_definitions():
    names = {}
    exec("from fastnca import *", names)
    tutorial_names = [
        name
        for name, value in vars(tutorial).items()
        if getattr(value, "__module__", None) == tutorial.__name__ or name == "NUM_CHANNELS"
    ]
    assert len(tutorial_names) == 10
    assert set(tutorial_names) <= set(names)


def test_eval_states_equal_the_tutorials(grown):
    theirs = copy_weights(grown.model(dtype=torch.float32), tutorial.NeuralCA).eval()
    ours = grown.model(dtype=torch.float32).eval()
    exact = grown.model(reference.NeuralCA).eval()
    big = F.pad(grown.states, (10, 10, 10, 10))  # more than the fewest cells of an active step
    with torch.no_grad():
        torch.testing.assert_close(ours(big), theirs(big), rtol=0, atol=1e-6)
        end64 = exact.run_steps(big.double(), 64)
        their_error = (theirs.run_steps(big, 64).double() - end64).abs().max()
        one_by_one = big
        for _ in range(64):
            one_by_one = ours(one_by_one)
        for end in (ours.run_steps(big, 64), one_by_one):
            assert (end.double() - end64).abs().max() <= 3 * their_error + 1e-6


def test_training_steps_draw_the_tutorials_random_numbers(grown):
    theirs = copy_weights(grown.model(dtype=torch.float32), tutorial.NeuralCA)
    ours = grown.model(dtype=torch.float32)
    big = F.pad(grown.states, (10, 10, 10, 10))
    ends = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        state = big
        for rate in (0.5, 0.25, 0.9):
            state = model(state, rate)
        ends.append((state.detach(), torch.rand(2)))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=2e-6)
    assert torch.equal(ends[0][1], ends[1][1])


def test_initialisation_draws_the_tutorials_weights():
    torch.manual_seed(42)
    theirs = tutorial.NeuralCA()
    torch.manual_seed(42)
    ours = NeuralCA()
    for (name, a), (_, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.requires_grad == b.requires_grad, name


def test_state_dicts_load_strictly_in_both_directions():
    theirs, ours = excite(tutorial.NeuralCA(8, 12)), NeuralCA(8, 12)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    state = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(ours.eval()(state), theirs.eval()(state), rtol=0, atol=1e-6)
    theirs.load_state_dict(excite(ours).state_dict(), strict=True)


def test_run_steps_equals_the_reference_with_the_same_seed(grown):
    ours, theirs = grown.model(), grown.model(reference.NeuralCA)
    state = grown.states.double()
    with torch.no_grad():
        ends = [model.run_steps(state, 20, 0.4, seed=6) for model in (ours, theirs)]
    assert relative_error(*ends) <= 1e-12


def test_run_steps_without_seed_draws_one_number_from_torch(grown):
    model, state = grown.model(), grown.states.double()
    torch.manual_seed(5)
    seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
    after = torch.rand(1)
    torch.manual_seed(5)
    drawn = model.run_steps(state, 4)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(drawn, model.run_steps(state, 4, seed=seed))


def test_zero_steps_return_the_state_itself(grown):
    state = grown.states.double()
    assert grown.model().run_steps(state, 0) is state


def test_a_rollout_can_be_continued(grown):
    model, state = grown.model(), grown.states.double()
    whole = model.run_steps(state, 9, seed=1)
    parts = model.run_steps(model.run_steps(state, 4, seed=1), 5, seed=1, first_step=4)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-13)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_trajectory_visits_the_states_of_the_rollout(grown, backend, training):
    model = grown.model(backend=backend).train(training)
    state = grown.states.double()
    states = list(model.trajectory(state, 7, every=3, seed=2))
    assert len(states) == 4
    for steps, visited in zip((0, 3, 6, 7), states, strict=True):
        assert not visited.requires_grad
        expected = model.run_steps(state, steps, seed=2)
        torch.testing.assert_close(visited, expected, rtol=0, atol=1e-13)


def test_trajectory_goes_on_where_values_are_not_finite(grown):
    model = grown.model(dtype=torch.float32)
    state = grown.states.clone()
    state[0, 5, 3, 3] = float("nan")
    *_, last = model.trajectory(state, 4, seed=2)
    expected = model.run_steps(state, 4, seed=2)
    torch.testing.assert_close(last, expected, rtol=0, atol=0, equal_nan=True)


def test_deepcopy_pickle_and_dtype(grown):
    model = grown.model(dtype=torch.float32, backend="torch")
    state = grown.states
    expected = model.run_steps(state, 3, seed=1)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double().float()):
        assert torch.equal(twin.run_steps(state, 3, seed=1), expected)
        assert twin.backend == "torch"


def test_a_module_shared_with_functional_transforms_works(grown):
    """torch.func and vmap go through the reference operators."""
    model = grown.model().eval()
    weights = dict(model.named_parameters())

    def loss(weights, state):
        return torch.func.functional_call(model, weights, (state,)).square().sum()

    state = grown.states[:1].double()
    gradients = torch.func.grad(loss)(weights, state)
    model.zero_grad()
    model(state).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad)
    mapped = torch.func.vmap(lambda s: model(s[None])[0])(grown.states.double())
    torch.testing.assert_close(mapped, model(grown.states.double()))


def test_torch_compile_has_no_graph_break(grown):
    torch._dynamo.reset()
    model = grown.model(dtype=torch.float32).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(grown.states), model(grown.states), rtol=0, atol=1e-6)


def test_a_seed_of_one_cell_grid_and_an_empty_batch():
    model = excite(NeuralCA())
    for state in (create_seed(1), torch.zeros(0, 16, 5, 5), torch.ones(1, 16, 1, 3)):
        expected = copy_weights(model).run_steps(state, 3, seed=1)
        torch.testing.assert_close(model.run_steps(state, 3, seed=1), expected)
        torch.testing.assert_close(model.eval()(state), copy_weights(model).eval()(state))
        model.train()


def test_metadata_is_each_models_own():
    first, second = NeuralCA(), NeuralCA()
    first.metadata["size"] = 3
    assert second.metadata == {}
    assert "backend='auto'" in repr(fastnca.NeuralCA())
