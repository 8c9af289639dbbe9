"""The host side carries any rule of one hidden layer, with three or four parameters.

The launchers are given a second bias of zeros where the rule has none; what is tested is what lies
around them: checks, both autograd nodes, the operators, workspaces, and which route is taken.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastnca import reference
from fastnca.backends.triton_fused import fused_rollout, graphs, limits, loops, nodes, operators
from fastnca.backends.triton_fused import single_step as single
from fastnca.rule import RULES, TUTORIAL, Rule
from tests.kernels.conftest import INTERPRETED
from tests.kernels.helpers import Case, make_problem

UNBIASED = Rule(final_bias=False)
SETTINGS = {"seed": 3, "first_step": 0, "update_rate": 0.5, "precision": "ieee"}


@pytest.fixture(autouse=True)
def _kernels_take_every_rule(monkeypatch: pytest.MonkeyPatch):
    """Let the host pass every rule on, and complete parameters and gradients for the kernels."""
    pack, reduce, poison = loops.pack_weights, loops.reduce_gradients, loops.poison

    def fill(tensors: tuple[Tensor, ...], wanted: int) -> tuple[Tensor, ...]:
        missing = wanted - len(tensors)
        return (*tensors, *(tensors[-1].new_zeros(tensors[-1].shape[0]) for _ in range(missing)))

    for user in (loops, nodes, operators):
        monkeypatch.setattr(user, "pack_weights", lambda p, *rest: pack(fill(p, 4), *rest))
    monkeypatch.setattr(
        loops,
        "reduce_gradients",
        lambda a, b, c, d, grads, e: reduce(a, b, c, d, fill(grads, 4), e),
    )
    monkeypatch.setattr(loops, "poison", lambda scale, grads: poison(scale, fill(grads, 5)))
    monkeypatch.setattr(limits, "rule_reasons", lambda rule: [])
    monkeypatch.setattr(single, "_prepared", {})
    limits._tensor_reasons.cache_clear()
    yield
    limits._tensor_reasons.cache_clear()


@pytest.fixture
def tensors(device: torch.device) -> tuple[Tensor, ...]:
    problem = make_problem(Case(3, 3))
    return tuple(t.detach().clone().to(device) for t in (problem.state, *problem.parameters))


def outcome(tensors: tuple[Tensor, ...], rule: Rule, rollout=fused_rollout, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = rollout(leaves[0], tuple(leaves[1:]), rule=rule, **(SETTINGS | options))
    weight = torch.linspace(-1, 1, result.numel(), device=result.device).view_as(result)
    return result.detach(), *torch.autograd.grad((result * weight).sum(), leaves)


def biased(tensors: tuple[Tensor, ...], **options) -> tuple[Tensor, ...]:
    """Compute the same with a bias of zeros, without its gradient."""
    zeros = torch.zeros_like(tensors[4])
    device_steps = torch.tensor(options["steps"], device=zeros.device)
    options = {"device_steps": device_steps} | options  # never the kernels of a single step
    if options.get("checkpoint_every", 1) > 1:
        del options["device_steps"]
    return outcome((*tensors[:4], zeros), TUTORIAL, **options)[:-1]


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 2}, {"precision": "fp16"}])
@pytest.mark.parametrize("steps", [1, 3])
def test_three_parameters_have_three_gradients(tensors, steps: int, options: dict) -> None:
    options = options | {"steps": steps}
    if steps == 1 and options.get("checkpoint_every"):
        pytest.skip("nothing is recomputed")
    found = outcome(tensors[:4], UNBIASED, **options)
    assert len(found) == 5
    assert equal(found, biased(tensors, **options))


@pytest.mark.skipif(not INTERPRETED, reason="the recorder launches on a CPU")
def test_workspaces_know_the_rule(tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    store = graphs.Graphs(lambda launches, device: launches, "cpu")
    monkeypatch.setattr(nodes, "GRAPHS", store)
    monkeypatch.setattr(graphs, "MIN_STEPS", 1)
    monkeypatch.setattr(graphs, "ROUND_STEPS", 2)
    expected = biased(tensors, steps=2)
    for _ in range(3):
        assert equal(outcome(tensors[:4], UNBIASED, steps=2), expected)
        assert len(outcome(tensors, TUTORIAL, steps=2)) == 6
    assert len(store._workspaces) == 2


def compiled(state: Tensor, parameters: tuple[Tensor, ...], *, rule: Rule, **options) -> Tensor:
    def rollout(state: Tensor, *parameters: Tensor) -> Tensor:
        return fused_rollout(state, parameters, rule=rule, **options)

    return torch.compile(rollout, backend="aot_eager", fullgraph=True)(state, *parameters)


def test_three_parameters_in_a_compiled_graph(tensors) -> None:
    found = outcome(tensors[:4], UNBIASED, compiled, steps=2)
    assert equal(found, biased(tensors, steps=2))
    torch._dynamo.reset()


def test_three_parameters_under_a_transform(tensors) -> None:
    state, *parameters = tensors[:4]

    def loss(w2: Tensor) -> Tensor:
        given = (*parameters[:2], w2)
        return fused_rollout(state, given, rule=UNBIASED, steps=2, **SETTINGS).square().sum()

    leaf = parameters[2].clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    assert torch.equal(torch.func.grad(loss)(parameters[2]), expected)


def test_opcheck_without_a_bias(tensors, device: torch.device) -> None:
    state, *parameters = tensors[:4]
    settings = (torch.tensor([1, 2, 2], device=device), UNBIASED.json, 2, 0.5, "ieee", 1, True)
    arguments = (state, *parameters, None, *settings, True)
    opcheck(torch.ops.fastnca.rollout_forward.default, arguments)
    result, states, flags = torch.ops.fastnca.rollout_forward(*arguments)
    back = (result, states, flags, *parameters, None, *settings)
    opcheck(torch.ops.fastnca.rollout_backward.default, back)
    *grads, missing = torch.ops.fastnca.rollout_backward(*back)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors[:4]]
    assert missing.numel() == 0


@pytest.mark.parametrize("steps", [1, 2])
def test_another_alive_threshold(tensors, steps: int) -> None:
    """Single steps and rollouts take the threshold of the rule."""
    rule = Rule(hidden=(16,), alive_threshold=0.95)
    state = torch.rand(1, 16, 5, 9, generator=torch.Generator().manual_seed(0))
    given = state.to(tensors[0].device), tensors[1:]
    model = reference.NeuralCA(16, 16, rule=rule)
    with torch.no_grad():
        for own, value in zip(model.update_net.parameters(), tensors[1:], strict=True):
            own.copy_(value)
    expected = model.run_steps(state, steps, 0.5, seed=3)
    found = fused_rollout(*given, rule=rule, steps=steps, **SETTINGS)
    assert expected.any()
    assert torch.allclose(found.cpu(), expected, atol=1e-5)
    plain = fused_rollout(*given, steps=steps, **SETTINGS)
    assert not torch.equal(found, plain)
    assert len(single._prepared) == (2 if steps == 1 else 0)


@pytest.mark.parametrize("name", ["padding", "filters", "alive", "step_size", "final_bias"])
def test_single_steps_of_other_rules_are_rollouts(tensors, name: str) -> None:
    """The kernels of a single step compute the tutorial's rule only."""
    changes = {
        "padding": "circular",
        "filters": ("sobel_x", "identity", "sobel_y"),
        "alive": "before",
        "step_size": 0.5,
        "final_bias": False,
    }
    rule = replace(TUTORIAL, **{name: changes[name]})
    given = tensors[1:4] if name == "final_bias" else tensors[1:]
    assert single.single_step(tensors[0], given, rule, 3, 0, 0.5, "ieee") is None
    fused_rollout(tensors[0], given, rule=rule, steps=1, **SETTINGS)
    assert not single._prepared


@pytest.mark.parametrize(
    "rule",
    [
        TUTORIAL,
        UNBIASED,
        RULES["texture"],
        Rule(filters=("identity",)),
        Rule(inputs=2),
        Rule(inputs=1, final_bias=False, filters=("identity", "laplacian")),
    ],
    ids=str,
)
def test_shapes_are_those_of_the_rule(rule: Rule, device: torch.device) -> None:
    hidden = replace(rule, hidden=(32,))
    shapes = list(hidden.shapes(12).values())[1:]
    state = torch.zeros(1, 12, 4, 4, device=device)
    parameters = tuple(torch.zeros(shape, device=device) for shape in shapes)
    limits.check_tensors(state, parameters, rule, "ieee")
    wrong = (*parameters[:-1], parameters[-1][1:])
    for given in (wrong, parameters[:-1], (*parameters, parameters[-1]), ()):
        with pytest.raises(ValueError, match="parameters for 12 channels must have the shapes"):
            limits.check_tensors(state, given, rule, "ieee")


def test_a_rule_that_the_kernels_do_not_have_is_refused(
    tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    limits._tensor_reasons.cache_clear()
    for steps in (1, 2):
        with pytest.raises(RuntimeError, match="padding='reflect'"):
            fused_rollout(
                tensors[0], tensors[1:], rule=Rule(padding="reflect"), steps=steps, **SETTINGS
            )
