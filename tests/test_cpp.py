"""The cpp backend: shapes beyond a vector, threads, memory."""

import gc
import hashlib
import os
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from fastnca import BackendError, NeuralCA
from fastnca.backends.cpp import build, library
from fastnca.checks import OutOfRangeError
from fastnca.masks import Updates, update_masks
from tests.helpers import (
    COMPILED,
    copy_weights,
    cpp_rollout,
    excite,
    relative_error,
    roll_out,
    run_backend,
)
from tests.test_cpp_rules import VARIANTS, differentiate, make

ROOT = Path(__file__).parent.parent
STATE = torch.rand(1, 16, 5, 5)


def compare(channels, hidden, shape, dtype=torch.float64, steps=3):
    """Return the largest relative error of the state and of every gradient."""
    torch.manual_seed(channels * hidden)
    model = excite(NeuralCA(channels, hidden, backend="cpp"), 0.2).to(dtype)
    state = torch.rand(shape[0], channels, *shape[1:], dtype=dtype)
    state[:, 3] *= torch.rand(shape[0], *shape[1:]) < 0.4
    fast, slow = (roll_out(each, state, steps, 5) for each in (model, copy_weights(model)))
    errors = [relative_error(fast.state, slow.state)]
    errors += [relative_error(fast.gradients[name], g) for name, g in slow.gradients.items()]
    return max(errors)


@COMPILED
@pytest.mark.parametrize("hidden", [1, 15, 33, 48, 80, 112, 130])
@pytest.mark.parametrize("channels", [4, 8, 17, 24, 33])
def test_channels_and_hidden_units_around_whole_vectors(channels, hidden):
    assert compare(channels, hidden, (2, 9, 7)) <= 1e-10


@COMPILED
def test_lists_of_cells_around_whole_tiles():
    for width in (46, 47, 48, 49, 95, 97):
        assert compare(16, 32, (1, 1, width)) <= 1e-10


@COMPILED
def test_more_grids_than_groups_of_gradients():
    assert compare(6, 9, (131, 3, 4)) <= 1e-10


@COMPILED
def test_float32_in_shapes_beyond_a_vector():
    assert compare(20, 70, (3, 11, 13), torch.float32) <= 1e-5


@COMPILED
@pytest.mark.parametrize("rate", [0.0, 1e-7, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345, 2**64 - 1])
def test_masks_that_are_drawn_are_update_masks(rate, seed):
    """To the bit: also from a cell on that is no multiple of 4, and in steps beyond 2³²."""
    model = excite(NeuralCA(4, 3, backend="cpp"), 0.5).double()
    state = torch.rand(3, 4, 5, 7, dtype=torch.float64) + 0.2
    for first_step in (0, 2**33 + 5):
        drawn = Updates(3, None, seed, first_step, rate)
        given = drawn._replace(given=update_masks(seed, first_step, 3, state.shape, rate))
        assert torch.equal(*(run_backend(model, "cpp", state, each) for each in (drawn, given)))


@COMPILED
def test_the_number_of_threads_changes_no_bit(grown):
    model = grown.model(dtype=torch.float32, backend="cpp")
    state = torch.cat([grown.states, grown.states.flip(3), grown.states.flip(2)])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(roll_out(model, state, 12, 4))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.state, found[0].state)
        for name, gradient in found[0].gradients.items():
            assert torch.equal(other.gradients[name], gradient), name


@COMPILED
def test_threads_that_share_a_step_change_no_bit():
    torch.manual_seed(4)
    model = excite(NeuralCA(5, 3, backend="cpp"), 0.1).double().eval()
    state = torch.rand(1, 5, 101, 97, dtype=torch.float64)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(roll_out(model, state, 2, 4))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].state, found[1].state)
    expected = copy_weights(model).run_steps(state, 2).detach()
    assert relative_error(found[0].state, expected) <= 1e-13
    state[0, 2, 60, 60] = 1e200  # its square is infinite
    torch.set_num_threads(3)
    try:
        with pytest.raises(OutOfRangeError):
            run_backend(model, "cpp", state, Updates(1))
    finally:
        torch.set_num_threads(before)


@COMPILED
def test_saved_memory_may_move(grown):
    """Hooks on saved tensors may hand back copies: the backward pass reads what it is given."""
    model, state = grown.model(backend="cpp"), grown.states.double()
    expected = roll_out(model, state, 8, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        found = roll_out(model, state, 8, 4)
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name


@COMPILED
def test_nothing_is_read_where_a_rollout_of_zeros_kept_nothing(monkeypatch):
    addresses = library._addresses
    monkeypatch.setattr(library, "_addresses", lambda some: addresses(some) if some else None)
    state = torch.zeros(1, 4, 3, 3, requires_grad=True)
    NeuralCA(4, 2, backend="cpp").run_steps(state, 2).sum().backward()
    assert torch.equal(state.grad, torch.zeros(1, 4, 3, 3))


@COMPILED
def test_an_input_changed_in_place_before_the_backward_pass_is_an_error(grown):
    model = grown.model(backend="cpp")
    loss = model.run_steps(grown.states.double(), 3, seed=1).sum()
    with torch.no_grad():
        model.update_net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@COMPILED
def test_the_backward_pass_frees_the_history(grown, monkeypatch):
    model, kept = grown.model(backend="cpp"), []
    forward = library.forward

    def watched(*arguments, **options):
        result, handle, pieces = forward(*arguments, **options)
        kept.extend(weakref.ref(each) for each in (handle, *pieces))
        return result, handle, pieces

    monkeypatch.setattr(library, "forward", watched)
    end = model.run_steps(grown.states.double(), 6, seed=1)
    loss = end.square().sum()
    gc.collect()
    assert all(each() is not None for each in kept)
    loss.backward()
    assert all(piece() is None for piece in kept[1:])  # while `loss` and `end` are still there
    del loss, end
    assert kept[0]() is None


@COMPILED
@pytest.mark.parametrize(
    "error", [RuntimeError("can't allocate memory"), MemoryError(), KeyboardInterrupt()], ids=repr
)
def test_what_goes_wrong_while_memory_is_allocated_is_raised(grown, monkeypatch, error):
    model = grown.model(backend="cpp")

    def fail(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(library, "_new_piece", fail)
        with pytest.raises(type(error)):
            model.run_steps(grown.states.double(), 3, seed=1)
    assert torch.isfinite(model.run_steps(grown.states.double(), 3, seed=1)).all()


@COMPILED
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_makes_all_of_them_nan(grown, value):
    model = grown.model(backend="cpp")
    state = grown.states.double().requires_grad_()
    end = model.run_steps(state, 3, seed=1)
    grad = torch.zeros_like(end)
    grad[0, 0, 0, 0] = value  # a dead cell, where masking by selection would hide it
    grads = torch.autograd.grad(end, (state, *model.update_net.parameters()), grad)
    assert all(each.isnan().all() for each in grads)


@pytest.mark.long
@COMPILED
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 options")
@pytest.mark.parametrize("options", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors_compute_the_same(options, tmp_path):
    """On processors without AVX-512, or without AVX, as far as this one can play them."""
    code = (
        "import tests.test_cpp as t, tests.test_cpp_rules as r, torch\n"
        "for shape in ((17, 33, (2, 9, 7)), (16, 128, (1, 12, 11))):\n"
        "    assert t.compare(*shape) <= 1e-10\n"
        "    assert t.compare(*shape, torch.float32) <= 1e-5\n"
        "for rule in r.VARIANTS.values():\n"
        "    assert r.compare(rule, (1, 7, 5, 4)) <= 1e-10\n"
        "print(t.bits())\n"
    )
    compiler = " ".join([*build._compiler(), options])
    own = {"CXX": compiler, build.DIRECTORY: str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        env={**os.environ, **own},
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert len(list(tmp_path.glob("rollout-*.so"))) == 2
    if "avx512" in options:  # there is a fused multiply-add in both
        assert said.strip() == bits()


def bits():
    """Return a digest of states and their gradients for some rules, in float32."""
    torch.manual_seed(6)
    model = excite(NeuralCA(16, 128, backend="cpp"), 0.1)
    state = torch.rand(2, 16, 15, 13)
    outcome = roll_out(model, state, 4, 5)
    tensors = [outcome.state, *outcome.gradients.values()]
    for name in ("texture", "four skew filters", "clamp, dense"):
        rule, updates = VARIANTS[name], Updates(4, None, 5, 0, 0.5)
        start, parameters = make(rule, (1, 12, 45, 47), dtype=torch.float32)
        tensors += differentiate(
            lambda s, p, rule=rule, updates=updates: cpp_rollout(s, p, updates, rule),
            start,
            parameters,
        )
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def test_other_dtypes_and_devices_are_refused_in_a_sentence():
    with pytest.raises(BackendError, match="float32 or float64"):
        NeuralCA(backend="cpp").bfloat16()(STATE.bfloat16())
    with pytest.raises(BackendError, match="no values"):
        NeuralCA(backend="cpp").to("meta")(STATE.to("meta"))
    assert NeuralCA().to("meta").run_steps(STATE.to("meta"), 2).shape == STATE.shape


@COMPILED
def test_a_large_grid_with_a_small_pattern():
    """Lines far from the pattern are not looked at; masks are drawn for the others only."""
    model = excite(NeuralCA(8, 12, backend="cpp"), 0.3).double()
    state = torch.zeros(2, 8, 61, 33, dtype=torch.float64)
    state[0, :, 2, 3] = state[1, :, 58, 30] = 0.9
    fast, slow = (roll_out(each, state, 9, 2) for each in (model, copy_weights(model)))
    assert relative_error(fast.state, slow.state) <= 1e-12
    for name, gradient in slow.gradients.items():
        assert relative_error(fast.gradients[name], gradient) <= 1e-11, name
