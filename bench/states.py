"""The states that cases start from, and how much of a rollout is alive."""

import torch
from torch import Tensor

from bench.cases import Case
from bench.grown import SIZE, Grown
from fastnca import NeuralCA, create_seed

ALIVE_SHARES = {"grown": 0.73, "full": 1.0}
"""Alive share that the pool's states are chosen for."""

FRAMES = 8


def make_state(kind: str, size: int, batch: int, grown: Grown) -> Tensor:
    """Make the states of a case.

    Args:
        kind: "fresh" for seeds; "grown" and "full" for a patchwork of the pool's states whose
            alive share is nearest to `ALIVE_SHARES`; grids below 32x32 get quarters of them.
        size: height and width in cells.
        batch: number of states.
        grown: the pool.

    Returns:
        `[batch, 16, size, size]` float32.
    """
    if kind == "fresh":
        return create_seed(size, batch=batch)
    side = min(size, SIZE)
    tiles = grown.pool.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
    tiles = tiles.reshape(-1, tiles.shape[3], side, side)
    shares = NeuralCA().get_alive_mask(tiles).mean(dim=(1, 2, 3))
    best = tiles[(shares - ALIVE_SHARES[kind]).abs().argsort(stable=True)[:64]]
    across = -(-size // side)
    count = batch * across * across
    chosen = best[torch.arange(count) % len(best)]
    rows = chosen.view(batch, across, across, -1, side, side).permute(0, 3, 1, 4, 2, 5)
    whole = rows.reshape(batch, -1, across * side, across * side)
    return whole[:, :, :size, :size].contiguous()


def alive_shares(case: Case, state: Tensor, weights: dict[str, Tensor]) -> tuple[float, float]:
    """Return the share of living cells at the start of a run, and its mean over the run.

    The rollout is one with the same weights and other masks than the timed ones.
    """
    model = NeuralCA(backend="torch").to(state.device)
    model.load_state_dict(weights)
    model.train(case.mode != "inference")
    every = max(1, case.steps // FRAMES)
    frames = model.trajectory(state, case.steps, every, seed=1)
    shares = [float(model.get_alive_mask(frame).mean()) for frame in frames]
    return shares[0], sum(shares) / len(shares)
