"""A whole training iteration as one graph, on the fused kernels.

`tests/test_graphed.py` holds what needs no kernels, `test_gpu_capture.py` captures that fail.
"""

import copy
import gc
from dataclasses import replace

import pytest
import torch

from fastnca import RULES, NeuralCA, create_target_circle
from fastnca.losses import TextureLoss
from fastnca.textures import create_texture
from fastnca.training import EmaTracker, PoolTrainer, TrainConfig
from fastnca.training.graphs import record_iteration
from tests.helpers import excite
from tests.kernels.conftest import INTERPRETED
from tests.runs import assert_same
from tests.stand_in import FIRST, Recorder, compare, make_trainer

on_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")


TEXTURE = replace(RULES["texture"], hidden=(10,))
KINDS = {
    "tutorial": (NeuralCA(4, 16, backend="triton"), {"size": 8}),
    "texture": (  # a torus without an alive test, three parameters, from nothing
        NeuralCA(5, rule=TEXTURE, backend="triton"),
        {
            "preset": "texture",
            "task": {
                "target": create_texture("coral", 6),
                "loss": TextureLoss(levels=1, patch=3, features=4),
            },
        },
    ),
}


@pytest.mark.long
@pytest.mark.skipif(not INTERPRETED, reason="a stand-in for the tests below")
@pytest.mark.parametrize("kind", KINDS)
def test_graph_of_an_iteration_gives_its_bits(kind: str) -> None:
    model, options = KINDS[kind]
    record, options = Recorder(), options | {"batch_size": 1, "min_steps": 1, "max_steps": 3}
    graph, plain = (
        make_trainer(each, model=excite(copy.deepcopy(model)), **options) for each in (record, None)
    )
    results = compare(graph, plain, FIRST + 3)
    assert len({result.loss for result in results}) == len(results)
    assert (record.recorded, record.replayed) == (1, 3)


class CountingRecorder:
    """Captures as the package does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, launches, device):
        run = record_iteration(launches, device)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def cuda_trainer(graphs: bool, preset: str, **options) -> tuple[PoolTrainer, CountingRecorder]:
    """Make a trainer on a GPU, which captures or does not."""
    torch.manual_seed(0)
    config = TrainConfig.preset(preset, **{"pool_size": 64, "seed": 1, **options})
    model = excite(NeuralCA(backend="triton", precision="fp16"), 0.02).cuda()
    each = PoolTrainer(model, create_target_circle(32, device="cuda"), config)
    record = CountingRecorder()
    each.iterate._record = record
    each.iterate._supported = each.iterate._supported and graphs
    return each, record


RECIPES = {
    "tutorial": {},
    "growing": {},
    "regenerating": {"milestones": (20,)},
    "persistent": {"half_pool": True, "micro_batches": 2},
}


@on_gpu
@pytest.mark.parametrize("preset", RECIPES)
def test_graph_of_an_iteration_gives_the_same_run(preset: str) -> None:
    graph, record = cuda_trainer(True, preset, **RECIPES[preset])
    plain, none = cuda_trainer(False, preset, **RECIPES[preset])
    results = compare(graph, plain, 220)
    assert {result.steps for result in results[FIRST:]} == set(range(64, 96))
    assert (record.recorded, record.replayed, none.recorded) == (1, 220 - FIRST, 0)


@on_gpu
def test_graph_of_an_iteration_skips_and_stops_as_ever() -> None:
    graph, _ = cuda_trainer(True, "tutorial")
    plain, _ = cuda_trainer(False, "tutorial")
    compare(graph, plain, FIRST + 2)
    for value in (float("nan"), 0.0):
        for each in (graph, plain):
            each.pool.states[:] = each.seed_state + value
        skipped = [result.skipped for result in compare(graph, plain, 3)]
        assert skipped == [value != 0.0] * 3
    graph.start(stop=True)
    assert graph.collect()[0].stop


@on_gpu
def test_graph_of_an_iteration_resumes_bit_for_bit(tmp_path) -> None:
    graph, record = cuda_trainer(True, "regenerating")
    for _ in range(20):
        graph.step()
    graph.save(tmp_path)
    for _ in range(20):
        graph.step()
    other, _ = cuda_trainer(True, "regenerating")
    other.resume(tmp_path)
    for _ in range(20):
        other.step()
    assert_same(graph, other)
    graph.resume(tmp_path)
    for _ in range(20):
        graph.step()
    assert_same(graph, other)
    assert record.recorded == 2


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_graph_of_an_iteration_waits_for_nothing_and_gives_its_memory_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graph, _ = cuda_trainer(True, "regenerating")
    best = graph.add_callback(EmaTracker())
    for _ in range(FIRST + 1):
        graph.start()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            graph.start()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(graph.collect()) == FIRST + 31
    assert torch.cuda.memory_reserved() - before > 2**25  # of a graph: 51 MB are the states alone
    del best, graph
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 2**24
