"""Models that a checkpoint cannot describe: refused before anything is computed or written."""

import os

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from fastnca import NeuralCA, create_target_circle, reference
from fastnca.training import CheckpointError, PoolTrainer, RunDirectory, TrainConfig
from tests.runs import SMALL


def circular(model):
    class Circular(reference.PerceptionModule):
        def forward(self, x):
            x = F.pad(x, (1,) * 4, "circular")
            return F.conv2d(x, self.filters, groups=self.num_channels)

    model.perception = Circular(16)


def activation(model):
    model.update_net[1] = nn.Tanh()


def extra_layer(model):
    model.update_net.append(nn.Tanh())


def other_filters(model):
    with torch.no_grad():
        model.perception.filters[1] *= 2


def hook(model):
    model.update_net[1].register_forward_hook(lambda module, args, output: output)


def no_filters(model):
    class Mean(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 3, 1, 1).repeat(1, 3, 1, 1)

    model.perception = Mean()


CHANGES = {
    circular: "perception is not the fixed",
    activation: "update_net is not convolution",
    extra_layer: "update_net is not convolution",
    other_filters: "perception is not the fixed",
    hook: "update_net.1 has hooks",
    no_filters: "perception is not the fixed",
}


class Still(NeuralCA):
    def get_alive_mask(self, state, threshold=0.05):
        return super().get_alive_mask(state, threshold)


def make(model=None, **options):
    torch.manual_seed(0)
    config = TrainConfig(**{**SMALL, "seed": 3, **options})
    return PoolTrainer(model or NeuralCA(16, 8), create_target_circle(12), config)


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_of_it_is_refused_before_the_first_iteration(tmp_path, change):
    trainer = make()
    change(trainer.model)
    run = RunDirectory(tmp_path / "run")
    with run.hold(), pytest.raises(ValueError, match=CHANGES[change]):
        trainer.fit(run=run, progress=False)
    assert trainer.iteration == 0
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith("ckpt")]
    with pytest.raises(CheckpointError, match=CHANGES[change]) as caught:
        trainer.save(tmp_path / "run")
    assert "free" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
def test_it_trains_without_a_directory(change):
    model = NeuralCA(16, 8)
    change(model)
    trainer = make(model, iterations=2)
    assert len(trainer.fit(progress=False)) == 2


@pytest.mark.parametrize("change", CHANGES)
def test_it_does_not_go_on_with_the_run_of_another_model(tmp_path, change):
    make().save(tmp_path)
    trainer = make()
    change(trainer.model)
    with pytest.raises(ValueError, match=CHANGES[change]):
        trainer.resume(tmp_path)


def test_a_class_that_overrides_the_step_resumes_its_own_runs_only(tmp_path):
    first = make(Still(16, 8))
    first.step()
    first.save(tmp_path)
    again = make(Still(16, 8))
    again.resume(tmp_path)
    assert again.iteration == 1
    with pytest.raises(ValueError, match=r"has class .*Still, this one None"):
        make().resume(tmp_path)


def test_a_partly_frozen_model_resumes(tmp_path):
    def frozen():
        model = NeuralCA(16, 8)
        model.update_net[0].requires_grad_(False)
        return make(model)

    whole, first, second = frozen(), frozen(), frozen()
    first.step()
    first.save(tmp_path)
    second.resume(tmp_path)
    for trainer in (whole, second):
        while trainer.iteration < 3:
            trainer.step()
    assert whole.losses == second.losses
    with pytest.raises(ValueError, match="has frozen"):
        make().resume(tmp_path)
