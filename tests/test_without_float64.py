"""Training where the device has no float64, as Apple's Metal has none."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastnca import RULES, NeuralCA, Rule, create_target_circle
from fastnca.training import PRESETS, EmaTracker, PoolTrainer, TrainConfig
from fastnca.training.optimizer import ModelOptimizer
from tests.helpers import excite
from tests.runs import SMALL


class WithoutFloat64(TorchDispatchMode):
    """Refuses what returns float64."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        outputs = function(*arguments, **(options or {}))
        for leaf in tree_leaves(outputs):
            assert not isinstance(leaf, torch.Tensor) or leaf.dtype != torch.float64, function
        return outputs


@pytest.mark.long
@pytest.mark.parametrize("on_device", [False, True], ids=["host decides", "device decides"])
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_float32_model_trains_without_float64(preset, backend, on_device):
    options = {**SMALL, "iterations": 2, "damage": int(preset == "regenerating")}
    config = TrainConfig.preset(preset, **options)
    with WithoutFloat64():
        rule = replace(RULES["texture"] if preset == "texture" else Rule(), hidden=(6,))
        model = excite(NeuralCA(8, rule=rule, backend=backend))
        each = PoolTrainer(model, create_target_circle(8), config)
        if on_device:
            each.optimizer = each.iterate._optimizer = ModelOptimizer(model, config, on_device=True)
        best = EmaTracker(every=1)
        losses = each.fit(progress=False, callbacks=[best])
        with pytest.raises(AssertionError, match="_to_copy"):
            each.target.double()
    assert len(losses) == 2
    assert best.loss < (1 if preset != "texture" else math.inf)


def test_losses_keep_the_bits_that_the_model_computed():
    each = PoolTrainer(excite(NeuralCA(8, 6)), create_target_circle(8), TrainConfig(**SMALL))
    seen = []
    real = each.iterate._differentiate

    def differentiate(*arguments):
        seen.append(real(*arguments))
        return seen[-1]

    each.iterate._differentiate = differentiate
    losses = [each.step().loss for _ in range(3)]
    assert losses == [float(sample_losses.mean()) for _, sample_losses in seen]
    assert each.iterate.run(each.sampler.next(), 1e-3).dtype == torch.float32
