"""The experimental persistent kernel with programs that really wait for each other."""

import pytest
import torch

from fastnca.backends.triton_fused.experimental import persistent_rollout
from fastnca.backends.triton_fused.plan import make_plan
from fastnca.backends.triton_fused.rollout import run_forward
from fastnca.kernels import persistent
from tests.kernels.gpu_cases import make_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("batch", [1, 3, 8, 300])
@pytest.mark.parametrize("size", [8, 33, 64])
def test_persistent_kernel_gives_the_bits_of_many_launches(batch: int, size: int) -> None:
    state, parameters = make_tensors(batch, size)
    for steps, keep in ((1, True), (2, False), (17, True), (17, False)):
        plan = make_plan(steps, 0.5, "fp16", 1, keep, True)
        expected, launched = run_forward(state, parameters, plan, numbers=(steps, 0, steps, None))
        for _ in range(20):
            found, stored = persistent_rollout(
                state, parameters, steps=steps, seed=steps, keep=keep
            )
            assert torch.equal(found, expected)
            assert torch.equal(stored.states, launched.states)
            assert torch.equal(stored.flags, launched.flags)


def test_persistent_grid_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver refuses programs that could not be resident at once, instead of hanging."""
    state, parameters = make_tensors(64, 64)
    monkeypatch.setattr(persistent, "choose_groups", lambda *_: (64, 64))
    with pytest.raises(RuntimeError):
        persistent_rollout(state, parameters, steps=2, seed=1)
