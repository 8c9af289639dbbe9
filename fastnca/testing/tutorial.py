"""The tutorial's definitions, copied as they stand: the oracle of the tests, and what users have."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import numpy as np
import matplotlib.pyplot as plt

device = torch.device('cpu')

def game_of_life_step(grid: torch.Tensor) -> torch.Tensor:
    """One step of Conway's Game of Life."""
    kernel = torch.tensor([[1, 1, 1],
                          [1, 0, 1],
                          [1, 1, 1]], dtype=torch.float32)
    kernel = kernel.view(1, 1, 3, 3)
    
    grid_4d = grid.float().view(1, 1, *grid.shape)
    neighbors = F.conv2d(grid_4d, kernel, padding=1).squeeze()
    
    birth = (grid == 0) & (neighbors == 3)
    survive = (grid == 1) & ((neighbors == 2) | (neighbors == 3))
    
    return (birth | survive).float()


NUM_CHANNELS = 16  # 4 visible (RGBA) + 12 hidden


def create_seed(size: int, num_channels: int = NUM_CHANNELS) -> torch.Tensor:
    """Create a seed state with a single active cell in the center."""
    state = torch.zeros(1, num_channels, size, size)
    center = size // 2
    state[0, 3, center, center] = 1.0  # Alpha channel
    return state


def get_visible_state(state: torch.Tensor) -> torch.Tensor:
    """Extract RGBA channels from state."""
    rgba = state[:, :4, :, :]
    return torch.clamp(rgba, 0, 1)


class PerceptionModule(nn.Module):
    """Perceive local neighborhood using Sobel filters."""
    
    def __init__(self, num_channels: int = NUM_CHANNELS):
        super().__init__()
        
        sobel_x = torch.tensor([[-1, 0, 1],
                                [-2, 0, 2],
                                [-1, 0, 1]], dtype=torch.float32) / 8.0
        
        sobel_y = torch.tensor([[-1, -2, -1],
                                [0, 0, 0],
                                [1, 2, 1]], dtype=torch.float32) / 8.0
        
        identity = torch.tensor([[0, 0, 0],
                                 [0, 1, 0],
                                 [0, 0, 0]], dtype=torch.float32)
        
        filters = torch.stack([identity, sobel_x, sobel_y])
        self.filters = nn.Parameter(
            filters.repeat(num_channels, 1, 1).view(-1, 1, 3, 3),
            requires_grad=False
        )
        self.num_channels = num_channels
    
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        perceived = F.conv2d(x, self.filters, padding=1, groups=self.num_channels)
        return perceived


class NeuralCA(nn.Module):
    """Neural Cellular Automaton."""
    
    def __init__(self, num_channels: int = NUM_CHANNELS, hidden_dim: int = 128):
        super().__init__()
        
        self.num_channels = num_channels
        self.perception = PerceptionModule(num_channels)
        
        perception_dim = num_channels * 3
        
        self.update_net = nn.Sequential(
            nn.Conv2d(perception_dim, hidden_dim, 1),
            nn.ReLU(),
            nn.Conv2d(hidden_dim, num_channels, 1),
        )
        
        nn.init.zeros_(self.update_net[-1].weight)
        nn.init.zeros_(self.update_net[-1].bias)
    
    def get_alive_mask(self, state: torch.Tensor, threshold: float = 0.1) -> torch.Tensor:
        alpha = state[:, 3:4, :, :]
        alive = F.max_pool2d(alpha, 3, stride=1, padding=1) > threshold
        return alive.float()
    
    def forward(self, state: torch.Tensor, update_rate: float = 0.5) -> torch.Tensor:
        pre_alive = self.get_alive_mask(state)
        perceived = self.perception(state)
        delta = self.update_net(perceived)
        
        if self.training:
            update_mask = (torch.rand_like(state[:, :1, :, :]) < update_rate).float()
        else:
            update_mask = 1.0
        
        state = state + delta * update_mask
        post_alive = self.get_alive_mask(state)
        alive_mask = pre_alive * post_alive
        state = state * alive_mask
        
        return state
    
    def run_steps(self, state: torch.Tensor, steps: int) -> torch.Tensor:
        for _ in range(steps):
            state = self(state)
        return state


def create_target_circle(size: int = 64) -> torch.Tensor:
    """Create a simple circle target pattern."""
    target = torch.zeros(1, 4, size, size)
    center = size // 2
    
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    y, x = y.float(), x.float()
    
    dist_from_center = torch.sqrt((x - center)**2 + (y - center)**2)
    circle_radius = size * 0.35
    circle_mask = dist_from_center < circle_radius
    
    target[0, 0][circle_mask] = 1.0  # R
    target[0, 1][circle_mask] = 0.5  # G
    target[0, 2][circle_mask] = 0.0  # B
    target[0, 3][circle_mask] = 1.0  # A
    
    return target


def train_nca(model, target, num_epochs=500, pool_size=256, batch_size=4, lr=2e-3):
    """Train NCA using a pool of states."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    size = target.shape[-1]
    pool = create_seed(size).repeat(pool_size, 1, 1, 1).to(device)
    losses = []
    
    for epoch in range(num_epochs):
        batch_indices = torch.randint(0, pool_size, (batch_size,))
        batch = pool[batch_indices].clone()
        num_steps = torch.randint(64, 96, (1,)).item()
        
        for _ in range(num_steps):
            batch = model(batch)
        
        visible = get_visible_state(batch)
        loss = F.mse_loss(visible, target.expand(batch_size, -1, -1, -1))
        
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        
        with torch.no_grad():
            pool[batch_indices] = batch.detach()
            batch_losses = F.mse_loss(visible, target.expand(batch_size, -1, -1, -1), reduction='none')
            batch_losses = batch_losses.mean(dim=(1, 2, 3))
            worst_idx = batch_indices[batch_losses.argmax()]
            pool[worst_idx] = create_seed(size).to(device).squeeze(0)
        
        losses.append(loss.item())
        
        if epoch % 100 == 0:
            print(f"Epoch {epoch}, Loss: {loss.item():.6f}")
    
    return losses


def visualize_growth(model, size=64, steps=100):
    """Visualize the NCA growing from seed."""
    model.eval()
    state = create_seed(size).to(device)
    history = [get_visible_state(state).cpu()]
    
    with torch.no_grad():
        for _ in range(steps):
            state = model(state)
            history.append(get_visible_state(state).cpu())
    
    fig, axes = plt.subplots(1, 6, figsize=(15, 3))
    for i, step in enumerate([0, 20, 40, 60, 80, 100]):
        img = history[step][0].permute(1, 2, 0).numpy()
        axes[i].imshow(img)
        axes[i].set_title(f'Step {step}')
        axes[i].axis('off')
    
    plt.suptitle('NCA Growth from Seed')
    plt.tight_layout()
    plt.show()


def test_regeneration(model, size=64, grow_steps=100, regen_steps=100):
    """Test NCA regeneration after damage."""
    model.eval()
    
    state = create_seed(size).to(device)
    with torch.no_grad():
        for _ in range(grow_steps):
            state = model(state)
    
    grown = state.clone()
    damaged = state.clone()
    damaged[:, :, 20:44, 20:44] = 0
    
    regenerating = damaged.clone()
    regen_history = [get_visible_state(regenerating).cpu()]
    
    with torch.no_grad():
        for _ in range(regen_steps):
            regenerating = model(regenerating)
            regen_history.append(get_visible_state(regenerating).cpu())
    
    fig, axes = plt.subplots(2, 5, figsize=(15, 6))
    
    axes[0, 0].imshow(get_visible_state(grown)[0].permute(1, 2, 0).cpu().numpy())
    axes[0, 0].set_title('Fully Grown')
    axes[0, 1].imshow(get_visible_state(damaged)[0].permute(1, 2, 0).cpu().numpy())
    axes[0, 1].set_title('After Damage')
    for i in range(3):
        axes[0, i+2].axis('off')
    
    for i, step in enumerate([0, 25, 50, 75, 100]):
        axes[1, i].imshow(regen_history[step][0].permute(1, 2, 0).numpy())
        axes[1, i].set_title(f'Regen Step {step}')
    
    for ax in axes.flat:
        ax.axis('off')
    
    plt.suptitle('NCA Regeneration After Damage')
    plt.tight_layout()
    plt.show()
