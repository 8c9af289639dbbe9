"""Who gets the threads while the trainer runs compiled rollouts."""

import pytest
import torch

from fastnca import RULES, NeuralCA, create_target_circle
from fastnca.backends.cpp import library, reserved_threads
from fastnca.textures import create_texture
from fastnca.training import PoolTrainer, TrainConfig
from tests.helpers import COMPILED

pytestmark = COMPILED

SHORT = {"pool_size": 6, "min_steps": 8, "max_steps": 12, "seed": 1}


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def make_trainer(backend, size=12):
    torch.manual_seed(0)
    config = TrainConfig.preset("quick", **SHORT)
    return PoolTrainer(NeuralCA(backend=backend), create_target_circle(size), config)


def make_texture():
    torch.manual_seed(0)
    config = TrainConfig.preset("texture", **SHORT)
    model = NeuralCA(12, rule=RULES["texture"], backend="cpp")
    return PoolTrainer(model, create_texture("zebra", 48), config)


def taken():
    """Threads of a call of the compiled functions."""
    return library._call((1, 16, 8, 8), 128).threads


@pytest.mark.parametrize(("backend", "operators"), [("cpp", 1), ("torch", 3), ("reference", 3)])
def test_operators_of_an_iteration_leave_the_threads_to_compiled_rollouts(
    backend, operators, three_threads, monkeypatch
):
    each, seen = make_trainer(backend), []
    prepare = each.iterate.prepare

    def spy(draw):
        seen.append((torch.get_num_threads(), taken()))
        return prepare(draw)

    monkeypatch.setattr(each.iterate, "prepare", spy)
    each.step()
    assert seen == [(operators, 3)]
    assert torch.get_num_threads() == taken() == 3


def test_threads_come_back_after_an_error(three_threads):
    def fail():
        with reserved_threads():
            assert torch.get_num_threads() == 1
            with reserved_threads():
                assert taken() == 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == taken() == 3


@pytest.mark.parametrize("family", ["growing", "texture"])
def test_training_gives_the_same_bits_for_any_number_of_threads(three_threads, family):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        each = make_trainer("cpp", size=64) if family == "growing" else make_texture()
        losses = [each.step().loss for _ in range(3)]
        found.append((losses, [p.detach().clone() for p in each.model.parameters()]))
    (losses, weights), *more = found
    for others, other_weights in more:
        assert losses == others
        assert all(map(torch.equal, weights, other_weights))
