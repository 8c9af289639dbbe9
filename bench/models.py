"""The models and states that cases start from, and how much of a rollout is alive."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import Case
from bench.grown import SIZE, Grown
from bench.machine import ROOT
from bench.runners import Loss, circle_loss, square_loss
from fastnca import NeuralCA, create_seed, import_model
from fastnca.rule import CHANNELS, RULES, TUTORIAL, Rule
from fastnca.training.optimizer import copy_weights

ALIVE_SHARES = {"grown": 0.73, "full": 1.0}
"""Alive share that the pool's states are chosen for."""

LIZARD = ROOT.parent / "shared" / "weights" / "distill-growing" / "ex3_lizard.json"
"""The published file, which lies beside the repository and is not part of it."""

LIZARD_STEPS = 200
FRAMES = 8

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A network and its rule.

    Attributes:
        weights: the `state_dict`.
        rule: what its cells do.
        channels: channels of a state.
    """

    weights: Weights
    rule: Rule = TUTORIAL
    channels: int = 16

    @property
    def loss(self) -> Loss:
        """The loss of a last state: the tutorial's, if its visible channels are a picture."""
        return square_loss if self.rule == RULES["texture"] else circle_loss


def prepare(case: Case, grown: Grown) -> tuple[Model, Tensor]:
    """Return the model of a case and its first states, `[batch, channels, size, size]` float32.

    Raises:
        FileNotFoundError: the published model is not beside the repository.
    """
    if case.state == "texture":
        return _texture(case)
    if case.state == "lizard":
        return _lizard(case)
    return Model(grown.weights), make_state(case.state, case.size, case.batch, grown)


def _texture(case: Case) -> tuple[Model, Tensor]:
    """Return a model of the texture rule with random weights, and random states."""
    generator = torch.Generator().manual_seed(0)
    channels, rule = CHANNELS["texture"], RULES["texture"]
    model = NeuralCA(channels, rule=rule)
    for layer, scale in ((model.update_net[0], 0.2), (model.update_net[-1], 0.02)):
        torch.nn.init.normal_(layer.weight, 0, scale, generator=generator)
    torch.nn.init.zeros_(model.update_net[0].bias)
    state = torch.rand(case.batch, channels, case.size, case.size, generator=generator) - 0.5
    return Model(copy_weights(model), rule, channels), state


def _lizard(case: Case) -> tuple[Model, Tensor]:
    """Return the regenerating lizard of Mordvintsev et al. (Distill 2020), grown from seeds."""
    if not LIZARD.exists():
        raise FileNotFoundError(f"the published model is not beside the repository: {LIZARD.name}")
    model = import_model(LIZARD).train()
    seeds = create_seed(case.size, batch=case.batch, fill_hidden=True)
    with torch.no_grad():
        state = model.run_steps(seeds, LIZARD_STEPS, seed=1)
    return Model(copy_weights(model), model.rule, state.shape[1]), state


def make_state(kind: str, size: int, batch: int, grown: Grown) -> Tensor:
    """Make states of the tutorial's recipe.

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


def alive_shares(case: Case, state: Tensor, model: Model) -> tuple[float, float]:
    """Return the share of living cells at the start of a run, and its mean over the run.

    The rollout is one with the same weights and other masks than the timed ones.
    """
    module = NeuralCA(model.channels, rule=model.rule, backend="torch").to(state.device)
    module.load_state_dict(model.weights)
    module.train(case.mode != "inference")
    every = max(1, case.steps // FRAMES)
    frames = module.trajectory(state, case.steps, every, seed=1)
    shares = [float(module.get_alive_mask(frame).mean()) for frame in frames]
    return shares[0], sum(shares) / len(shares)
