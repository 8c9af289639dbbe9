"""What only a GPU can show: races, large offsets, capture by others, training."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca import NeuralCA as FastCA
from fastnca.fused import fused_rollout
from fastnca.masks import update_mask
from fastnca.reference import NeuralCA
from fastnca.states import create_seed, get_visible_state
from tests.kernels.helpers import Case, make_problem, run_kernels, violations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BFLOAT_CASES = [
    Case(9, 17, precision="bf16"),
    Case(16, 8, batch=3, precision="bf16", hidden=128),
    Case(7, 9, precision="bf16", channels=32, hidden=64, rate=None),
]
LARGE_CASES = [
    Case(64, 64, batch=8, hidden=128, precision="fp16", steps=1),
    Case(65, 63, batch=5, hidden=128, precision="fp16", steps=1),
    Case(65, 63, batch=5, hidden=128, precision="ieee", steps=1),
]


def make_tensors(batch: int, size: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draw a state with patches of life and a network of the tutorial's size."""
    generator = torch.Generator("cuda").manual_seed(seed)
    options = {"generator": generator, "device": "cuda"}
    state = torch.randn(batch, 16, size, size, **options) * 0.3
    shapes = ((128, 48, 1, 1), (128,), (16, 128, 1, 1), (16,))
    return state, tuple(torch.randn(shape, **options) * 0.05 for shape in shapes)


def gradients(
    state: Tensor, parameters: tuple[Tensor, ...], steps: int, seed: int | Tensor, **options
) -> tuple[Tensor, ...]:
    """Run a rollout and differentiate its squared sum."""
    leaves = [tensor.detach().requires_grad_() for tensor in (state, *parameters)]
    result = fused_rollout(
        leaves[0],
        tuple(leaves[1:]),
        steps=steps,
        seed=seed,
        first_step=0,
        update_rate=0.5,
        precision="fp16",
        **options,
    )
    return result.detach(), *torch.autograd.grad(result.square().sum(), leaves)


@pytest.mark.parametrize("case", BFLOAT_CASES + LARGE_CASES, ids=str)
def test_parity(case: Case) -> None:
    """A case of one step is taken as a single step and as a rollout."""
    problem, device = make_problem(case), torch.device("cuda")
    for rollout in (False, True):
        found = run_kernels(case, problem, device, rollout=rollout)
        assert not violations(case, problem, found)


@pytest.mark.parametrize(
    ("batch", "options"),
    [(60, {}), (8, {}), (8, {"replay": False}), (8, {"persistent": True})],
    ids=["large", "replayed", "launched", "persistent"],
)
def test_race_250_repetitions_give_the_same_bits(batch: int, options: dict) -> None:
    """60 grids are too many to be replayed as a graph, 8 are not."""
    state, parameters = make_tensors(batch, 64)
    first = gradients(state, parameters, 8, seed=1, replay=False)
    for _ in range(250):
        again = gradients(state, parameters, 8, seed=1, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_race_single_steps_give_the_same_bits() -> None:
    state, parameters = make_tensors(60, 64)
    first = gradients(state, parameters, 1, seed=1)
    for _ in range(250):
        again = gradients(state, parameters, 1, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("size", [5, 63, 64, 130])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "ieee"])
def test_single_step_is_a_rollout_of_one_step(size: int, precision: str) -> None:
    state, parameters = make_tensors(8, size)
    leaf = state.clone().requires_grad_()
    settings = {"steps": 1, "seed": 3, "first_step": 0, "update_rate": 0.5, "precision": precision}
    single = fused_rollout(leaf, parameters, **settings)
    rollout = fused_rollout(leaf, parameters, count=torch.tensor(1, device="cuda"), **settings)
    assert torch.equal(single, rollout)
    weight = torch.randn_like(state)
    found, expected = (torch.autograd.grad(r, leaf, weight)[0] for r in (single, rollout))
    assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_determinism_across_checkpoints() -> None:
    state, parameters = make_tensors(4, 65)
    settings = {"steps": 13, "seed": 3, "first_step": 0, "update_rate": 0.5, "precision": "fp16"}
    results = []
    for every in (1, 4, 13):
        leaf = state.clone().requires_grad_()
        result = fused_rollout(leaf, parameters, checkpoint_every=every, **settings)
        results.append(torch.autograd.grad(result.sum(), leaf)[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_offsets_beyond_2_to_the_31() -> None:
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of free memory")
    _, parameters = make_tensors(1, 8)
    settings = {"steps": 1, "seed": None, "first_step": 0, "update_rate": 0.5}
    state = torch.rand(33_000, 16, 64, 64, device="cuda")
    for count in (None, torch.tensor(1, device="cuda")):  # a single step, and a rollout
        whole = fused_rollout(state, parameters, precision="fp16", count=count, **settings)
        for part in (slice(0, 16_500), slice(16_500, 33_000)):
            half = fused_rollout(state[part], parameters, precision="fp16", **settings)
            assert torch.equal(whole[part], half)
        del whole, half


@pytest.mark.parametrize("steps", [1, 8])
def test_graph_capture_and_replay(steps: int) -> None:
    state, parameters = make_tensors(4, 64)
    seed = torch.tensor(5, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        gradients(state, parameters, steps, seed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(state, parameters, steps, seed)
    for value in (5, 6, 7):
        seed.fill_(value)
        graph.replay()
        plain = gradients(state, parameters, steps, value)
        assert all(torch.equal(a, b) for a, b in zip(captured, plain, strict=True))


def test_graph_of_the_caller_changes_seed_and_step_count() -> None:
    """One capture of forward and backward, for every count up to its length."""
    state, parameters = make_tensors(4, 64)
    seed, count = torch.tensor(5, device="cuda"), torch.tensor(16, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(state, parameters, 16, seed, count=count)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(state, parameters, 16, seed, count=count)
    for value, steps in ((5, 16), (6, 9), (7, 1), (8, 0), (9, 16)):
        seed.fill_(value)
        count.fill_(steps)
        graph.replay()
        plain = gradients(state, parameters, steps, value, replay=False)
        assert all(torch.equal(a, b) for a, b in zip(captured, plain, strict=True))


def test_graph_capture_refuses_an_int_seed() -> None:
    state, parameters = make_tensors(1, 8)
    gradients(state, parameters, 1, seed=1)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        state.clone()  # torch warns of an empty graph
        with pytest.raises(RuntimeError, match="freeze the seed"):
            gradients(state, parameters, 1, seed=1)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_graph_of_the_compiler_runs_the_fused_model(mode: str) -> None:
    torch._dynamo.reset()
    model = FastCA(backend="triton", precision="fp16").cuda()
    torch.nn.init.normal_(model.update_net[2].weight, std=0.01)
    state, _ = make_tensors(4, 64)
    seed = torch.tensor(3, device="cuda")

    @torch.compile(fullgraph=True, mode=mode)
    def rollout(state: Tensor, seed: Tensor) -> Tensor:
        return model.run_steps(state, 16, seed=seed)

    for value in (3, 4, 5):
        seed.fill_(value)
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        result = rollout(state, seed)
        result.square().sum().backward()
        found = [result.detach().clone(), *(p.grad.clone() for p in model.update_net.parameters())]
        model.zero_grad()
        result = model.run_steps(state, 16, seed=value)
        result.square().sum().backward()
        expected = [result.detach(), *(p.grad for p in model.update_net.parameters())]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def train(seed: int, fused: bool, iterations: int = 500) -> float:
    """Grow a disc for some iterations and return the mean of the last losses."""
    torch.manual_seed(seed)
    model = NeuralCA().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = torch.arange(24.0, device="cuda") - 11.5
    disc = ((rows[:, None] ** 2 + rows[None, :] ** 2) < 64).float()
    start = create_seed(24, batch=4, device="cuda")
    losses = []
    for iteration in range(iterations):
        if fused:
            parameters = tuple(model.update_net.parameters())
            settings = {"first_step": 0, "update_rate": 0.5, "precision": "fp16"}
            state = fused_rollout(start, parameters, steps=32, seed=iteration, **settings)
        else:
            state = start
            for step in range(32):
                mask = update_mask(iteration, step, start.shape, 0.5, "cuda")
                state = model._step(state, mask.float())
        loss = F.mse_loss(get_visible_state(state), disc.expand(4, 4, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-50:]).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_parity_over_500_iterations(seed: int) -> None:
    plain, fused = train(seed, fused=False), train(seed, fused=True)
    assert math.isclose(plain, fused, rel_tol=0.05, abs_tol=1e-3)
