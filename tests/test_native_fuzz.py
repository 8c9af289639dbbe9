"""Wrong shapes, strides, dtypes and sizes at every entry to native code: a result, or a sentence.

Each entry is called with arguments of which some are wrong in one way. The outcome must be that of
the reference, within rounding, or an exception with a message; a crash ends the process. A tenth of
the counts runs by default, all of them with `-m full`.
"""

import random
import warnings

import pytest
import torch
import torch.nn as nn

from fastnca import NeuralCA, reference
from fastnca.backends.cpp import library, rule_reasons
from fastnca.backends.operators import rollout, rollout_gradients
from fastnca.backends.torch_active import active_rollout
from fastnca.backends.triton_fused import fused_reasons, fused_rollout
from fastnca.checks import OutOfRangeError
from fastnca.masks import Updates, update_masks
from fastnca.rule import ALIVE, PADDINGS, TUTORIAL, Rule
from tests.helpers import COMPILED, PARAMETERS
from tests.test_cpp_rules import SKEW, VARIANTS, expected_rollout, make

FEW = 200
MANY = pytest.param(2000, marks=pytest.mark.full)
ERRORS = (NotImplementedError, OverflowError, RuntimeError, TypeError, ValueError, MemoryError)
CHANNELS, HIDDEN, SIZE = 5, 7, (2, 4, 6)


def tensors(rng, dtype=torch.float32):
    """Return a state and parameters that fit."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    batch, height, width = SIZE
    shapes = (
        (batch, CHANNELS, height, width),
        (HIDDEN, 3 * CHANNELS, 1, 1),
        (HIDDEN,),
        (CHANNELS, HIDDEN, 1, 1),
        (CHANNELS,),
    )
    state, *rest = (torch.rand(s, generator=generator, dtype=dtype) for s in shapes)
    return [state, *(0.2 * (each - 0.5) for each in rest)]


def fitting(rng):
    """Return a state and parameters of 16 hidden units, the fewest of the fused kernels."""
    state, w1, b1, w2, b2 = tensors(rng)
    w1, b1, w2 = w1.repeat(3, 1, 1, 1)[:16], b1.repeat(3)[:16], w2.repeat(1, 3, 1, 1)[:, :16]
    return [state[:1], w1, b1, w2, b2]


def spoil(rng, tensor):
    """Return a tensor that is wrong in one way, or only laid out in another one."""
    shape = list(tensor.shape)
    axis, size = rng.randrange(len(shape)), rng.choice((0, 1, 2, 3, 33))
    ways = [
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.long(),
        lambda: tensor > 0.5,
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to("meta"),
        lambda: tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor.new_zeros([n if i != axis else size for i, n in enumerate(shape)]),
        lambda: tensor.new_zeros([*shape, 1]),
        lambda: tensor.new_zeros([max(1, s + rng.randrange(-2, 3)) for s in shape]),
        lambda: tensor.new_ones(()).expand(shape),
        lambda: tensor.flip(0).flip(0)[..., :1].expand(shape),
        lambda: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor,
        lambda: torch.stack([tensor, tensor], -1)[..., 1],
        lambda: torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(shape),
        lambda: torch.complex(tensor.float(), tensor.float()).conj().imag,
        lambda: tensor.to_sparse(),
        lambda: freed(tensor),
        lambda: tensor.clone().float().requires_grad_(),
        lambda: tensor.detach().as_subclass(Mine),
    ]
    return rng.choice(ways)()


class Mine(torch.Tensor):
    """A subclass of tensors that adds nothing."""


def freed(tensor):
    """Return a tensor whose memory has been given back, as sharded training does."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def outcome(call):
    """Return what a call gives, or its exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except (OutOfRangeError, *ERRORS) as error:
            return error


def by_reference(state, parameters, steps, seed, rate=0.5, first_step=0):
    """Compute a rollout with the reference."""
    model = reference.NeuralCA(CHANNELS, HIDDEN).to(state.dtype).train(seed is not None)
    given = dict(zip(PARAMETERS, parameters, strict=True))
    model.load_state_dict({"perception.filters": model.perception.filters, **given})
    return model.run_steps(state, steps, rate, seed=seed, first_step=first_step)


def same(found, expected, tolerance=1e-4):
    torch.testing.assert_close(
        found.detach().as_subclass(torch.Tensor), expected.detach(), rtol=tolerance, atol=tolerance
    )


def spoiled(rng):
    """Return arguments of which one, or none, has been spoilt, and whether they still are equal."""
    right = tensors(rng)
    wrong = list(right)
    number = rng.randrange(len(right) + 1)
    if number < len(right):
        wrong[number] = spoil(rng, right[number])
    return wrong


def is_sound(arguments):
    """Tell whether the reference can be asked: dense float32 tensors that fit each other."""
    state, *parameters = arguments
    shapes = [each.shape for each in tensors(random.Random(0))[1:]]
    return (
        state.dim() == 4
        and state.shape[1] == CHANNELS
        and [parameter.shape for parameter in parameters] == shapes
        and all(each.dtype == torch.float32 and each.device.type == "cpu" for each in arguments)
        and all(each.untyped_storage().nbytes() > 0 for each in arguments)
    )


def check_rollout(call, count, entry):
    """Compare a rollout with the reference for spoilt tensors and numbers."""
    rng = random.Random(entry)
    computed = 0
    for _ in range(count):
        arguments = spoiled(rng)
        steps = rng.choice((1, 2, 3))
        seed = rng.choice((None, 0, 5, 2**63 + 1))
        found = outcome(lambda a=arguments, n=steps, s=seed: call(a[0], tuple(a[1:]), n, s))
        if isinstance(found, torch.Tensor):
            assert is_sound(arguments)
            same(found, by_reference(arguments[0], arguments[1:], steps, seed))
            computed += 1
        else:
            assert str(found) or isinstance(found, OutOfRangeError)
    assert computed > count / 10


@COMPILED
@pytest.mark.parametrize("count", [FEW, MANY])
def test_cpp_forward(count):
    def call(state, parameters, steps, seed):
        updates = Updates(steps, None, seed, 0, 0.5 if seed is not None else 1.0)
        return library.forward(state, parameters, updates, keep=True)[0]

    check_rollout(call, count, "cpp")


@pytest.mark.parametrize("count", [FEW, MANY])
def test_active_rollout(count):
    def call(state, parameters, steps, seed):
        updates = Updates(steps, None, seed, 0, 0.5 if seed is not None else 1.0)
        return active_rollout(state, parameters, updates.masks(state))

    check_rollout(call, count, "torch")


@COMPILED
@pytest.mark.parametrize("count", [FEW, MANY])
def test_cpp_forward_with_other_rules(count):
    """Any rule with tensors that fit it, another one, or none."""
    rng = random.Random("rules")
    computed = 0
    for number in range(count):
        rule = any_rule(rng)
        other = rule if rng.random() < 0.5 else any_rule(rng)
        channels = rng.choice((1, 3, 5, 8, 9, 17))
        height, width = rng.choice((1, 2, 3, 6)), rng.choice((1, 2, 5))
        if channels <= other.inputs:
            continue
        state, parameters = make(other, (2, channels, height, width), seed=number)
        if rng.random() < 0.2:
            which = rng.randrange(len(parameters))
            parameters[which] = spoil(rng, parameters[which])
        updates = Updates(2, None, 5, 0, 0.5)

        def call(state=state, parameters=parameters, rule=rule, updates=updates):
            end, kept, pieces = library.forward(state, parameters, updates, True, rule)
            return [end, *library.backward(kept, pieces, end, True, True)]

        found = outcome(call)
        if isinstance(found, Exception):
            assert str(found) or isinstance(found, OutOfRangeError)
            continue
        assert not rule_reasons(rule)
        masks = update_masks(5, 0, 2, state.shape, 0.5)
        expected = expected_rollout(state, parameters, masks, rule)
        same(found[0], expected, 1e-9)
        assert [g.shape for g in found[1:]] == [t.shape for t in (state, *parameters)]
        computed += 1
    assert computed > count / 10


def any_rule(rng):
    """Return a rule, one in four of which the kernels do not compute."""
    named = ("identity", "sobel_x", "sobel_y", "laplacian", SKEW)
    return Rule(
        filters=tuple(rng.choices(named, k=rng.choice((1, 2, 3, 3, 4, 4, 4, 5)))),
        learn_filters=rng.random() < 0.05,
        padding=rng.choice(PADDINGS),
        alive=rng.choice(ALIVE),
        alive_threshold=rng.choice((0.0, 0.1, 1e30)),
        hidden=rng.choice(((9,), (9,), (9,), (9,), (9,), (), (9, 9))),
        activation=rng.choice(("relu", "relu", "relu", "relu", "relu", "tanh")),
        final_bias=rng.random() < 0.5,
        inputs=rng.choice((0, 0, 1, 4)),
        clamp=rng.choice((None, None, (-1.0, 0.5), (0.0, 1e30))),
        step_size=rng.choice((1.0, 1.0, 1.0, 0.5, 1e-30, 1e30)),
    )


@COMPILED
@pytest.mark.parametrize("count", [FEW, MANY])
def test_masks_and_numbers_of_cpp_forward(count):
    rng = random.Random("masks")
    batch, height, width = SIZE
    numbers = (-(2**70), -1, 0, 1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 2**70)
    computed = 0
    for _ in range(count):
        state, *parameters = tensors(rng)
        masks = torch.rand(2, batch, height, width) < 0.5
        if rng.random() < 0.5:
            updates = Updates(2, spoil(rng, masks), None)
        else:
            steps = rng.choice(numbers[:6])
            updates = Updates(steps, None, 5, rng.choice(numbers), rng.choice((0.0, 0.5, 1.0)))
        found = outcome(lambda s=state, p=parameters, u=updates: library.forward(s, p, u, True)[0])
        if isinstance(found, torch.Tensor):
            computed += 1
            if updates.given is None:
                same(
                    found,
                    by_reference(
                        state, parameters, updates.steps, 5, updates.update_rate, updates.first_step
                    ),
                )
            else:
                assert updates.given.shape == masks.shape
                assert updates.given.dtype == torch.bool
                same(found, active_rollout(state, tuple(parameters), iter(updates.given)))
    assert computed > count / 20


@COMPILED
@pytest.mark.parametrize("count", [FEW, MANY])
def test_cpp_backward(count):
    """Gradients and saved memory that hooks may have replaced."""
    rng = random.Random("backward")
    computed = 0
    for number in range(count):
        rule = rng.choice(list(VARIANTS.values()))
        size = (66, 64) if number % 25 == 0 else (4, 6)  # a large grid is shared by threads
        state, parameters = make(rule, (1, 7, *size), seed=number, dtype=torch.float32)
        updates = Updates(2, None, 5, 0, 0.5)
        _, kept, pieces = library.forward(state, parameters, updates, True, rule)
        grad = torch.rand(state.shape)
        expected = library.backward(kept, pieces, grad, True, True)
        given, memory = grad, list(pieces)
        number = rng.randrange(len(pieces) + 2)
        if number < len(pieces):
            memory[number] = spoil(rng, pieces[number])
        elif number == len(pieces):
            given = spoil(rng, grad)
        found = outcome(lambda k=kept, m=memory, g=given: library.backward(k, m, g, True, True))
        if not isinstance(found, Exception):
            assert given.shape == grad.shape
            computed += 1
            if number != len(pieces) and memory_is_equal(memory, pieces):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert computed > count / 10


def memory_is_equal(found, pieces):
    return all(torch.equal(a, b) for a, b in zip(found, pieces, strict=True))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=COMPILED)])
def test_operators(count, backend):
    rng = random.Random("operators")
    computed = 0
    for _ in range(count):
        arguments = spoiled(rng)
        counter = torch.tensor([5, 0, 2])
        if rng.random() < 0.2:
            counter = spoil(rng, counter)
        rest = counter, 0.5, True, backend, TUTORIAL.json
        found = outcome(lambda a=arguments, r=rest: rollout(a[0], list(a[1:]), *r))
        grad = torch.rand(arguments[0].shape) if rng.random() < 0.8 else torch.rand(3, 2)
        grads = outcome(
            lambda a=arguments, r=rest, g=grad: rollout_gradients(g, a[0], list(a[1:]), *r)
        )
        if isinstance(found, torch.Tensor) and found.device.type == "cpu":
            assert counter.device.type == "cpu"
            assert counter.shape == (3,)
            if counter.tolist() == [5, 0, 2]:
                assert is_sound(arguments)
                same(found, by_reference(arguments[0], arguments[1:], 2, 5))
            computed += 1
        if isinstance(grads, list):
            assert [g.shape for g in grads] == [a.shape for a in arguments]
    assert computed > count / 40


@pytest.mark.long
@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.parametrize("steps", [1, 2])
def test_fused_rollout(count, steps):
    if reasons := fused_reasons("cpu", torch.float32, CHANNELS, 16, "ieee"):
        pytest.skip(" ".join(reasons))
    rng = random.Random("fused")
    computed = 0
    for _ in range(count):
        right = fitting(rng)
        wrong, number = list(right), rng.randrange(6)
        if number < 5:
            wrong[number] = spoil(rng, right[number])
        found = outcome(
            lambda a=wrong: fused_rollout(
                a[0],
                tuple(a[1:]),
                steps=steps,
                seed=5,
                first_step=0,
                update_rate=0.5,
                precision="ieee",
            )
        )
        if isinstance(found, torch.Tensor):
            assert wrong[0].shape[1] == CHANNELS
            assert [a.shape for a in wrong[1:]] == [a.shape for a in right[1:]]
            assert all(a.dtype == torch.float32 for a in wrong)
            model = reference.NeuralCA(CHANNELS, 16)
            given = dict(zip(PARAMETERS, wrong[1:], strict=True))
            model.load_state_dict({"perception.filters": model.perception.filters, **given})
            same(found, model.run_steps(wrong[0], steps, seed=5))
            computed += 1
    assert computed > count / 20


@pytest.mark.long
@pytest.mark.parametrize("count", [FEW, MANY])
def test_gradients_of_the_fused_operators(count):
    if reasons := fused_reasons("cpu", torch.float32, CHANNELS, 16, "ieee"):
        pytest.skip(" ".join(reasons))
    from fastnca.backends.triton_fused import operators  # noqa: F401 - defines them

    rng = random.Random("fused operators")
    state, *parameters = fitting(rng)
    settings = (TUTORIAL.json, 1, 0.5, "ieee", 1, True)
    counter = torch.tensor([5, 0, 1])
    forward, backward = torch.ops.fastnca.rollout_forward, torch.ops.fastnca.rollout_backward
    _, states, flags = forward(state, *parameters, counter, *settings, True)
    right = [torch.rand(state.shape), states, flags, *parameters, counter]
    expected = backward(*right, *settings)
    computed = 0
    for _ in range(count):
        wrong, number = list(right), rng.randrange(len(right) + 1)
        if number < len(right):
            wrong[number] = spoil(rng, right[number])
        found = outcome(lambda a=wrong: backward(*a, *settings))
        if not isinstance(found, Exception):
            assert [each.shape for each in wrong] == [each.shape for each in right]
            assert [each.dtype for each in wrong] == [each.dtype for each in right]
            if all(torch.equal(a, b) for a, b in zip(wrong, right, strict=True)):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            computed += 1
    assert computed > count / 20


@pytest.mark.long
@pytest.mark.parametrize("count", [FEW, MANY])
def test_models_whose_layers_do_not_fit(count):
    """What the reference computes, or its error."""
    rng = random.Random("layers")
    computed = 0
    for _ in range(count):
        ours = NeuralCA(CHANNELS, HIDDEN)
        theirs = reference.NeuralCA(CHANNELS, HIDDEN)
        theirs.load_state_dict(ours.state_dict())
        number = rng.choice((0, 2))
        sizes = (1, 2, CHANNELS, HIDDEN, 3 * CHANNELS, 20, 200_000)
        width = rng.choice(sizes), rng.choice(sizes)
        if width[0] * width[1] > 10**6:
            continue
        layer = nn.Conv2d(*width, 1)
        ours.update_net[number] = theirs.update_net[number] = layer
        state = tensors(rng)[0]
        calls = (lambda m, s=state: m.run_steps(s, 3, 1.0), lambda m, s=state: m.eval()(s))
        for call in calls:
            found, expected = (outcome(lambda m=m, c=call: c(m)) for m in (ours, theirs))
            assert isinstance(found, Exception) == isinstance(expected, Exception), (
                found,
                expected,
            )
            if isinstance(found, torch.Tensor):
                same(found, expected)
                computed += 1
    assert computed > 0


def test_the_widest_layer_that_is_broadcast():
    """Once the end of the process: 200,000 inputs and one output instead of 16."""
    torch.manual_seed(1)
    ours, theirs = NeuralCA(16, 200_000), reference.NeuralCA(16, 200_000)
    theirs.load_state_dict(ours.state_dict())
    ours.update_net[2] = theirs.update_net[2] = nn.Conv2d(200_000, 1, 1)
    state = torch.rand(1, 16, 4, 4)
    same(ours.run_steps(state, 3, seed=1), theirs.run_steps(state, 3, seed=1))


def test_numbers_beyond_64_bits_are_refused():
    model, state = NeuralCA(CHANNELS, HIDDEN), tensors(random.Random(1))[0]
    for steps, first_step in ((2**64 + 3, 0), (1, 2**64 + 5), (3, 2**63 - 2)):
        with pytest.raises(ValueError, match=r"numbered up to 2\*\*63 - 1"):
            model.run_steps(state, steps, seed=1, first_step=first_step)
    for seed in (torch.tensor(0.5), torch.tensor([1, 2])):
        with pytest.raises((TypeError, ValueError), match="seed must"):
            model.run_steps(state, 2, seed=seed)
