"""Values that are not finite reach the result: whatever the alive test clears, they stay."""

from functools import cache

import pytest
import torch
from torch import Tensor

from fastnca import NeuralCA, create_target_circle
from fastnca.backends.triton_fused import fused_rollout
from fastnca.masks import update_mask
from fastnca.training import PoolTrainer, TrainConfig
from tests.helpers import COMPILED, excite
from tests.kernels.helpers import Case, draw
from tests.kernels.scenarios import forms, not_finite_errors, zero_network

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter

NAN, INF = float("nan"), float("inf")
SETTINGS = {"first_step": 0, "update_rate": 0.5}


@pytest.mark.long
def test_not_finite_values_stay(device: torch.device) -> None:
    for form in forms(device):
        assert not not_finite_errors(device, form)


@pytest.mark.parametrize("precision", ["ieee", "fp16"])
def test_relu_passes_nan_on(precision: str, device: torch.device) -> None:
    """Infinity minus infinity in the first layer is NaN in the result, and in every gradient."""
    w1, b1, w2, b2 = zero_network(4, 16, device)
    w1[0, 0], w1[0, 3] = 1.0, -1.0
    w2[0, 0] = 1.0
    state = torch.zeros(1, 4, 3, 3, device=device)
    state[:, 3] = 1.0
    state[:, :2, 1, 1] = INF
    for form in forms(device):
        leaves = [tensor.clone().requires_grad_() for tensor in (state, w1, b1, w2, b2)]
        options = form | {"steps": 1, "precision": precision}
        result = fused_rollout(leaves[0], tuple(leaves[1:]), **options)
        assert result[0, 0, 1, 1].isnan()
        grads = torch.autograd.grad(result[:, 0].sum(), leaves)
        assert grads[1].isnan().any()
        assert grads[3].isnan().any()


def reference(model, state: Tensor, steps: int) -> Tensor:
    for step in range(steps):
        state = model._step(state, update_mask(1, step, state.shape, 0.5).to(state))
    return state


def samples_not_finite(states: Tensor) -> list[bool]:
    """Tell of each sample whether a value that a loss would see is not finite."""
    return (~states[:, :4].isfinite()).any(dim=(1, 2, 3)).tolist()


def draw_grids() -> tuple[NeuralCA, Tensor]:
    model, state, _ = draw(Case(5, 18, batch=4, pattern="left", hidden=20), seed=0)
    state[0] = 0.0
    return model, state


@cache
def roll_out_finite(precision: str, device: torch.device) -> Tensor:
    model, state = draw_grids()
    parameters = tuple(p.detach().float().to(device) for p in model.update_net.parameters())
    options = SETTINGS | {"steps": 3, "seed": 1, "precision": precision}
    return fused_rollout(state.to(device), parameters, **options)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("precision", ["ieee", "fp16"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("channel", [3, 7])
def test_the_same_samples_as_in_the_reference(
    channel: int, value: float, precision: str, device: torch.device
) -> None:
    """A grid that is dead, one that lives elsewhere, one that lives there, and one without."""
    model, state = draw_grids()
    parameters = tuple(p.detach().float().to(device) for p in model.update_net.parameters())
    options = SETTINGS | {"steps": 3, "seed": 1, "precision": precision}
    finite = roll_out_finite(precision, device)
    assert samples_not_finite(finite) == [False] * 4
    state[0, channel, 3, 12] = state[1, channel, 3, 12] = state[2, channel, 3, 1] = value
    expected = samples_not_finite(reference(model.float(), state, 3))
    assert expected == [True, True, True, False]
    found = fused_rollout(state.to(device), parameters, **options)
    assert samples_not_finite(found) == expected
    assert torch.equal(found[3], finite[3])


@pytest.mark.long
@pytest.mark.parametrize("scale", [1.0, 1e9, 1e14])
def test_networks_that_diverge(scale: float, device: torch.device) -> None:
    """Updates so large that alpha overflows, in either direction, and its cells die with it."""
    model, state, _ = draw(Case(5, 6, batch=6, hidden=20), seed=2)
    with torch.no_grad():
        for parameter in model.update_net.parameters():
            parameter *= scale
    parameters = tuple(p.detach().float().to(device) for p in model.update_net.parameters())
    options = SETTINGS | {"seed": 1, "precision": "ieee"}
    for steps in (1, 2, 3):
        expected = samples_not_finite(reference(model.float(), state, steps))
        found = fused_rollout(state.to(device), parameters, steps=steps, **options)
        assert samples_not_finite(found) == expected
    assert any(expected) == (scale > 1)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("poison", ["alpha", "hidden channel", "diverging weights", None])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=COMPILED), "triton"])
def test_a_trainer_skips_the_same_iterations(
    backend: str, poison: str | None, device: torch.device
) -> None:
    """NaN in every dead cell of the pool, or weights whose cells overflow and die at once."""
    skipped, place = [], device if backend == "triton" else torch.device("cpu")
    for name in ("reference", backend):
        torch.manual_seed(0)
        model = excite(NeuralCA(6, 16, backend=name, precision="ieee"), 0.05).to(place)
        options = {"pool_size": 4, "batch_size": 2, "min_steps": 2, "max_steps": 5, "seed": 0}
        config = TrainConfig(learning_rate=1e-3, reseed="none", **options)
        trainer = PoolTrainer(model, create_target_circle(8, device=place), config)
        if poison == "alpha":
            trainer.pool.states[:, 3] = NAN
        elif poison == "hidden channel":
            trainer.pool.states[::2, 5, 0, 0] = NAN
        elif poison is not None:
            with torch.no_grad():
                for parameter in model.update_net.parameters():
                    parameter *= 1e20
        skipped.append([trainer.step().skipped for _ in range(5)])
    assert skipped[0] == skipped[1]
    assert any(skipped[0]) == (poison is not None)
