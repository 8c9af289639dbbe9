"""Micro-benchmarks of the public calls.

    python -m pytest bench --benchmark-only

The results are compared with the reference first, as everywhere.
"""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastnca import NeuralCA, create_seed, get_visible_state, reference
from fastnca.masks import update_masks
from fastnca.training.pool import SamplePool

SIZE, BATCH, STEPS = 64, 4, 80


def make_state() -> Tensor:
    """Return states that are alive in a disc, `[4, 16, 64, 64]`."""
    state = torch.rand(BATCH, 16, SIZE, SIZE)
    axis = torch.arange(SIZE) - SIZE // 2
    disc = axis[:, None] ** 2 + axis**2 < (0.35 * SIZE) ** 2
    return state * disc


@pytest.fixture
def models() -> SimpleNamespace:
    """Return the drop-in and the reference with the same weights that change little."""
    torch.manual_seed(0)
    ours, exact = NeuralCA(), reference.NeuralCA()
    with torch.no_grad():
        ours.update_net[2].weight.normal_(0, 0.003)
    exact.load_state_dict(ours.state_dict())
    return SimpleNamespace(ours=ours, exact=exact)


def test_one_step(benchmark, models):
    """One call in eval mode, without gradient."""
    state = make_state()
    models.ours.eval(), models.exact.eval()
    with torch.no_grad():
        found = benchmark(models.ours, state)
        torch.testing.assert_close(found, models.exact(state), rtol=0, atol=1e-5)


def test_rollout_with_gradient(benchmark, models):
    """80 steps forward and backward."""
    state = make_state()

    def run(model: torch.nn.Module, steps: int) -> Tensor:
        model.zero_grad()
        end = model.run_steps(state, steps, seed=1)
        get_visible_state(end).square().mean().backward()
        return end

    torch.testing.assert_close(run(models.ours, 4), run(models.exact, 4), rtol=0, atol=1e-4)
    pairs = zip(models.ours.parameters(), models.exact.parameters(), strict=True)
    for ours, exact in pairs:
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-3, atol=1e-6)
    benchmark.pedantic(run, (models.ours, STEPS), rounds=10, warmup_rounds=1)


def test_masks(benchmark):
    """The masks of a rollout."""
    masks = benchmark(update_masks, 1, 0, STEPS, (BATCH, 16, SIZE, SIZE), 0.5)
    assert masks.shape == (STEPS, BATCH, SIZE, SIZE)
    assert abs(float(masks.float().mean()) - 0.5) < 0.01


def test_pool_sample_and_commit(benchmark):
    """Draw a batch from a pool of 256 and write it back."""
    pool = SamplePool(create_seed(SIZE), 256)
    generator = torch.Generator().manual_seed(0)

    def run() -> Tensor:
        slots, states = pool.sample(BATCH, generator=generator)
        pool.commit(slots, states + 1)
        return slots

    slots = benchmark(run)
    assert all(bool((pool.states[slot, 0, 0, 0] >= 1).all()) for slot in slots)


def test_import(benchmark):
    """`import fastnca` in a fresh process, torch included."""
    command = [sys.executable, "-c", "import fastnca; print(fastnca.__version__)"]

    def run() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert benchmark.pedantic(run, rounds=5, warmup_rounds=1).strip()
