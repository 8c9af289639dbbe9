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


def trained_filters(model):
    model.perception.filters.requires_grad_(True)


def no_bias(model):
    model.update_net[2] = nn.Conv2d(8, 16, 1, bias=False)


class Still(NeuralCA):
    def get_alive_mask(self, state, threshold=0.05):
        return super().get_alive_mask(state, threshold)


def alive_test(model):
    model.__class__ = Still


def hook(model):
    model.update_net[1].register_forward_hook(lambda module, args, output: output)


def no_filters(model):
    class Mean(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 3, 1, 1).repeat(1, 3, 1, 1)

    model.perception = Mean()


CHANGES = {
    circular: r"perception is a Circular, .*Rule\(filters=.*padding=",
    activation: r"update_net has Tanh\(\) where the rule has ReLU; use Rule\(activation=",
    extra_layer: r"update_net is not the 2 convolutions 1x1 .*Rule\(hidden=",
    other_filters: r"perception.filters are not those of the rule; use Rule\(filters=",
    trained_filters: r"perception.filters has a gradient; use Rule\(learn_filters=True\)",
    no_bias: r"update_net\[2\] has no bias; Rule\(final_bias=",
    hook: "update_net.1 has hooks",
    no_filters: r"perception is a Mean, .*Rule\(filters=",
    alive_test: r"overrides get_alive_mask; Rule\(alive=",
}
"""What is done to a model, and the sentence that names the field of the rule."""


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


@pytest.mark.one_in(5)
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


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_not_saved(tmp_path, change):
    model = NeuralCA(16, 8)
    change(model)
    with pytest.raises(ValueError, match=CHANGES[change]):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_subclass_that_overrides_the_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match=CHANGES[alive_test]):
        Still(16, 8).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=CHANGES[alive_test]):
        make(Still(16, 8)).save(tmp_path / "run")
    assert not (tmp_path / "model").exists()


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
