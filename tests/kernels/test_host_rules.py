"""What lies around the kernels for rules that are not the tutorial's.

Operators, workspaces, which route is taken, and checks: with three or four parameters, and with no
flags where no cell is tested for life.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fastnca.backends.triton_fused import fused_rollout, graphs, limits, nodes
from fastnca.backends.triton_fused import single_step as single
from fastnca.rule import RULES, TUTORIAL, Rule
from tests.kernels.conftest import INTERPRETED

TEXTURE = replace(RULES["texture"], hidden=(10,))
RULES_HERE = {
    "unbiased": Rule(hidden=(10,), final_bias=False),
    "texture": TEXTURE,
    "inputs": Rule(("identity", "laplacian"), hidden=(10,), inputs=1, alive_threshold=0.25),
}
SETTINGS = {"seed": 3, "first_step": 0, "update_rate": 0.5, "precision": "ieee"}
CHANNELS = 5

on_rules = pytest.mark.parametrize("rule", RULES_HERE.values(), ids=RULES_HERE)
on_a_cpu = pytest.mark.skipif(not INTERPRETED, reason="the recorder launches on a CPU")


def draw(rule: Rule, device: torch.device, size: tuple[int, int] = (3, 4)) -> list[Tensor]:
    """Draw a state, half of whose cells live, and parameters."""
    generator = torch.Generator().manual_seed(1)
    shapes = (1, CHANNELS, *size), *list(rule.shapes(CHANNELS).values())[1:]
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def launch(tensors: list[Tensor], rule: Rule, **options) -> Tensor:
    return fused_rollout(tensors[0], tuple(tensors[1:]), rule=rule, **(SETTINGS | options))


def compiled(tensors: list[Tensor], rule: Rule, **options) -> Tensor:
    """Do what `launch` does, as a graph of torch.compile."""

    def rollout(*tensors: Tensor) -> Tensor:
        return launch(list(tensors), rule, **options)

    torch._dynamo.reset()
    return torch.compile(rollout, backend="aot_eager", fullgraph=True)(*tensors)


def outcome(
    tensors: list[Tensor], rule: Rule, rollout: Callable[..., Tensor] = launch, **options
) -> tuple[Tensor, ...]:
    """Return the last state and the gradients of all tensors."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = rollout(leaves, rule, **options)
    weight = torch.linspace(-1, 1, result.numel(), device=result.device).view_as(result)
    return result.detach(), *torch.autograd.grad((result * weight).sum(), leaves)


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.one_in(3)
@on_rules
def test_operators(rule: Rule, device: torch.device) -> None:
    state, *parameters = draw(rule, device)
    given = (*parameters, None) if len(parameters) == 3 else tuple(parameters)
    settings = (torch.tensor([1, 2, 2], device=device), rule.json, 2, 0.5, "ieee", 1, True)
    arguments = (state, *given, *settings, True)
    opcheck(torch.ops.fastnca.rollout_forward.default, arguments)
    result, states, flags = torch.ops.fastnca.rollout_forward(*arguments)
    assert (flags.numel() == 0) == (rule.alive == "none")
    back = (result, states, flags, *given, *settings)
    opcheck(torch.ops.fastnca.rollout_backward.default, back)
    grads = torch.ops.fastnca.rollout_backward(*back)
    shapes = [each.shape for each in (state, *parameters)]
    assert [grad.shape for grad in grads] == shapes + [torch.Size([0])] * (5 - len(shapes))


@pytest.mark.one_in(3)
@on_rules
def test_compiled_graphs(rule: Rule, device: torch.device) -> None:
    tensors = draw(rule, device)
    expected = outcome(tensors, rule, steps=2)
    assert all(each.any() for each in expected)
    assert equal(outcome(tensors, rule, compiled, steps=2), expected)


@pytest.mark.one_in(2)
@on_rules
def test_transforms(rule: Rule, device: torch.device) -> None:
    tensors = draw(rule, device)

    def loss(*tensors: Tensor) -> Tensor:
        return launch(list(tensors), rule, steps=2).square().sum()

    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    assert equal(torch.func.grad(loss, tuple(range(len(tensors))))(*tensors), expected)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let any rollout be captured and replayed; a replay launches again, and is counted."""
    counted = [0]

    def record(launches, device):
        def replay() -> None:
            counted[0] += 1
            launches()

        return replay

    monkeypatch.setattr(nodes, "GRAPHS", graphs.Graphs(record, "cpu"))
    monkeypatch.setattr(graphs, "MIN_STEPS", 1)
    monkeypatch.setattr(graphs, "ROUND_STEPS", 4)
    return counted


@pytest.mark.long
@on_a_cpu
@on_rules
def test_replays_give_the_bits_of_launches(rule: Rule, device: torch.device, replays) -> None:
    """Also where the workspace is full of NaN."""
    tensors = draw(rule, device)
    fewer = {"checkpoint_every": 7}  # is never captured
    for steps in (4, 4, 2, 3):
        expected = outcome(tensors, rule, steps=steps, **fewer)
        for _, workspace in nodes.GRAPHS._workspaces.values():
            for tensor in (workspace._saved.states, *workspace.buffers().tensors):
                tensor.fill_(torch.nan)
        assert equal(outcome(tensors, rule, steps=steps), expected)
    assert replays == [4]  # forward and backward of the third and the fourth
    assert len(nodes.GRAPHS._workspaces) == 1


@pytest.mark.long
@on_a_cpu
def test_a_texture_that_waits_keeps_its_workspace(device: torch.device, replays) -> None:
    """Its flags are empty: states, counter and weights alone tell that they are in use."""
    tensors = draw(TEXTURE, device)
    expected = [outcome(tensors, TEXTURE, steps=4, seed=seed) for seed in (1, 2, 3)]
    nodes.GRAPHS.release()
    outcome(tensors, TEXTURE, steps=4)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = [launch(leaves, TEXTURE, steps=4, seed=seed) for seed in (1, 2, 3)]
    spaces = [workspace for _, workspace in nodes.GRAPHS._workspaces.values()]
    assert [workspace.in_use for workspace in spaces] == [True, True]
    for number in (1, 0, 2):
        weight = torch.linspace(-1, 1, results[number].numel()).view_as(results[number])
        grads = torch.autograd.grad((results[number] * weight).sum(), leaves)
        assert equal((results[number].detach(), *grads), expected[number])
    assert not any(workspace.in_use for workspace in spaces)


@pytest.mark.long
@on_a_cpu
def test_workspaces_know_the_rule(device: torch.device, replays) -> None:
    """Of rules whose parameters have the same shapes."""
    tensors = draw(Rule(hidden=(10,)), device)
    rules = [
        replace(TUTORIAL, **fields)
        for fields in (
            {},
            {"padding": "circular"},
            {"alive": "none"},
            {"alive_threshold": 0.3},
            {"filters": ("sobel_x", "identity", "sobel_y")},
        )
    ]
    expected = [outcome(tensors, rule, steps=2, checkpoint_every=3) for rule in rules]
    for _ in range(3):
        for rule, right in zip(rules, expected, strict=True):
            assert equal(outcome(tensors, rule, steps=2), right)
    assert len(nodes.GRAPHS._workspaces) == len(rules)
    assert replays == [2 * len(rules)]


FREE = [{}, {"alive_threshold": 0.3}, {"hidden": (10,)}]
BOUND = [
    {"padding": "circular"},
    {"filters": ("sobel_x", "identity", "sobel_y")},
    {"alive": "none"},
    {"inputs": 1},
    {"final_bias": False},
]


@pytest.mark.parametrize("fields", FREE + BOUND, ids=str)
def test_which_rules_have_a_single_step(
    fields: dict, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' single step is a rollout."""
    monkeypatch.setattr(single, "_prepared", {})
    rule = replace(TUTORIAL, **({"hidden": (10,)} | fields))
    state, *parameters = tensors = draw(rule, device)
    launch(tensors, rule, steps=1)
    stepped = single.single_step(state, tuple(parameters), rule, 3, 0, 0.5, "ieee")
    assert (stepped is None) == (not single._prepared) == (fields in BOUND)


@on_rules
def test_shapes_are_those_of_the_rule(rule: Rule, device: torch.device) -> None:
    state, *parameters = draw(rule, device)
    limits.check_tensors(state, tuple(parameters), rule, "ieee")
    first, last = parameters[0], parameters[-1]
    short = (*parameters[:-1], last[1:])
    for given in (short, parameters[:-1], (*parameters, last), (first[:, 1:], *parameters[1:]), ()):
        with pytest.raises(ValueError, match="parameters for 5 channels must have the shapes"):
            limits.check_tensors(state, tuple(given), rule, "ieee")


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"padding": "reflect"}, "padding='reflect'"),
        ({"alive": "before"}, "alive='before'"),
        ({"filters": ("identity",) * 5}, "at most 4 filters"),
        ({"step_size": 0.5}, "step_size=0.5"),
    ],
    ids=str,
)
def test_rules_that_are_refused(fields: dict, words: str, steps: int, device: torch.device) -> None:
    rule = replace(TUTORIAL, hidden=(10,), **fields)
    with pytest.raises(RuntimeError, match=words):
        launch(draw(rule, device), rule, steps=steps)


@pytest.mark.parametrize("size", [(2, 5), (5, 1), (4, 1 << 23)])
def test_a_torus_beyond_the_limits_is_refused(size: tuple[int, int], device: torch.device) -> None:
    _, *parameters = draw(TEXTURE, device)
    state = torch.zeros(1, CHANNELS, 1, 1, device=device).expand(-1, -1, *size)
    for steps in (1, 2):
        with pytest.raises(RuntimeError, match="take a torus of"):
            launch([state, *parameters], TEXTURE, steps=steps)
