"""Grow a disc on the fused kernels or in plain PyTorch, from the same seed and masks."""

import torch
import torch.nn.functional as F

from fastnca.backends.triton_fused import fused_rollout
from fastnca.masks import update_mask
from fastnca.reference import NeuralCA
from fastnca.states import create_seed


def train(
    seed: int,
    fused: bool,
    device: torch.device,
    iterations: int = 500,
    size: int = 24,
    steps: int = 32,
) -> float:
    """Grow a disc for some iterations and return the mean of the last 50 losses.

    The loss is that of raw RGBA. With clamped RGBA and no pool nothing keeps the states small:
    after 400 iterations they reach 7e4, more than operands in fp16 can be.
    """
    torch.manual_seed(seed)
    model = NeuralCA().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = torch.arange(float(size), device=device) - (size - 1) / 2
    disc = ((rows[:, None] ** 2 + rows[None, :] ** 2) < size**2 / 9).float()
    start = create_seed(size, batch=4, device=device)
    losses = []
    for iteration in range(iterations):
        if fused:
            parameters = tuple(model.update_net.parameters())
            settings = {"first_step": 0, "update_rate": 0.5, "precision": "fp16"}
            state = fused_rollout(start, parameters, steps=steps, seed=iteration, **settings)
        else:
            state = start
            for step in range(steps):
                mask = update_mask(iteration, step, start.shape, 0.5, device)
                state = model._step(state, mask.float())
        loss = F.mse_loss(state[:, :4], disc.expand(4, 4, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-50:]).mean())
