"""A Neural CA removes noise from pictures, in 20 steps that see 3x3 cells each.

The noisy picture lies in the last channel of the state, an input of the rule: every cell reads it
and none writes it. All other channels start at zero. The loss compares channel 0 of the last state
with the clean picture. Every picture is a pair of seed and target; without a pool the trainer draws
a batch of pairs in each iteration.

Prints the mean squared error on pictures that training has not seen, and writes `denoise.png`:
clean pictures, noisy ones, the better of two box blurs, and what the Neural CA makes of them. Takes
less than a minute on a 2-core CPU.

    python docs/examples/denoise.py --out /tmp/denoise
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca import NeuralCA, Rule
from fastnca.pictures import encode_mosaic
from fastnca.training import PoolTrainer, TrainConfig

SIZE, CHANNELS, STEPS = 32, 16, 20
TRAINED, HELD_OUT = 1024, 64


def draw_shapes(count: int) -> Tensor:
    """Return pictures of four random ellipses and rectangles each, `[count, 1, SIZE, SIZE]`."""
    axis = torch.linspace(-1, 1, SIZE)
    pictures = torch.zeros(count, SIZE, SIZE)
    for _ in range(4):
        y, x, height, width, grey, kind = torch.rand(6, count, 1, 1)
        down = ((axis[:, None] - 2 * y + 1) / (0.2 + 0.6 * height)).abs()
        right = ((axis - 2 * x + 1) / (0.2 + 0.6 * width)).abs()
        inside = torch.where(kind < 0.5, down**2 + right**2, torch.maximum(down, right)) < 1
        pictures = torch.where(inside, grey, pictures)
    return pictures[:, None]


def create_states(noisy: Tensor) -> Tensor:
    """Return states `[N, CHANNELS, SIZE, SIZE]`: zeros, and the noisy picture in the last one."""
    return F.pad(noisy, (0, 0, 0, 0, CHANNELS - 1, 0))


def picture_loss(states: Sequence[Tensor], clean: Tensor) -> Tensor:
    """Return the mean squared error of channel 0 of each last state, `[B]`."""
    return (states[-1][:, :1] - clean).square().mean(dim=(1, 2, 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the errors and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("."), help="where denoise.png goes")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    pictures = draw_shapes(TRAINED + HELD_OUT)
    states = create_states(pictures + 0.3 * torch.randn_like(pictures))

    # the Laplacian sees the mean of the neighbours, which the Sobel filters do not
    filters = ("identity", "sobel_x", "sobel_y", "laplacian")
    rule = Rule(filters, inputs=1, alive="none", padding="replicate", hidden=(64,))
    model = NeuralCA(CHANNELS, rule=rule)
    config = TrainConfig(
        iterations=options.iterations,
        batch_size=8,
        learning_rate=4e-3,
        schedule="cosine",
        gradient="normalize",
        min_steps=STEPS,
        max_steps=STEPS + 1,
        use_pool=False,
        seed=0,
    )
    PoolTrainer(
        model, pictures[:TRAINED], config, loss=picture_loss, seed_state=states[:TRAINED]
    ).fit()

    clean, states = pictures[TRAINED:], states[TRAINED:]
    with torch.no_grad():
        restored = model.run_steps(states, STEPS, seed=0)[:, :1]
    noisy = states[:, -1:]
    blurs = [F.avg_pool2d(noisy, k, 1, k // 2, count_include_pad=False) for k in (3, 5)]
    blurred = min(blurs, key=lambda blur: F.mse_loss(blur, clean).item())
    rows = {"noisy": noisy, "box blur": blurred, "Neural CA": restored}
    for name, row in rows.items():
        print(f"{name:10} {F.mse_loss(row, clean):.5f}")

    shown = torch.cat([row[:8] for row in (clean, *rows.values())])
    rgba = torch.cat([shown.expand(-1, 3, -1, -1), torch.ones_like(shown)], 1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "denoise.png").write_bytes(encode_mosaic(rgba, columns=8, scale=2))


if __name__ == "__main__":
    main()
