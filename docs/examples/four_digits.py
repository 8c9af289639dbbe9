"""One Neural CA grows four digits from the same cell; a class vector says which.

The last four channels of a state are inputs of the rule: every cell reads them and none writes
them. They hold the class as a one-hot vector, the same in every cell. The digits are four targets
of one training run, and slot i of the pool belongs to digit i mod 4.

Prints the mean squared error of each digit, grown from the seed, and writes `digits.png`: the
targets, and below them what grew. Takes about a minute and a half on a 2-core CPU.

    python docs/examples/four_digits.py --out /tmp/digits
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastnca import NeuralCA, Rule, create_seed, get_visible_state
from fastnca.pictures import encode_mosaic
from fastnca.training import EmaTracker, PoolTrainer, TrainConfig

DIGITS = {"1": "#d62828", "2": "#f08c00", "3": "#2b8a3e", "4": "#1c5fc0"}
SIZE = 28
WRITTEN = 16
STEPS = (64, 200, 1000)


def draw_digit(digit: str, color: str) -> Tensor:
    """Return a digit in the middle of the grid as premultiplied RGBA, `[4, SIZE, SIZE]`."""
    alpha = Image.new("L", (SIZE, SIZE))
    font = ImageFont.load_default(size=28)
    middle = (SIZE / 2, SIZE / 2)
    ImageDraw.Draw(alpha).text(middle, digit, 255, font, anchor="mm", stroke_width=1)
    opacity = torch.tensor(list(alpha.tobytes())).reshape(1, SIZE, SIZE) / 255
    rgb = torch.tensor([int(color[k : k + 2], 16) for k in (1, 3, 5)]).reshape(3, 1, 1) / 255
    return torch.cat([rgb * opacity, opacity])


def create_seeds() -> Tensor:
    """Return a seed per digit, `[4, C, SIZE, SIZE]`: one cell, and the class in every cell."""
    cell = create_seed(SIZE, WRITTEN, batch=len(DIGITS), fill_hidden=True)
    classes = torch.eye(len(DIGITS))[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    return torch.cat([cell, classes], 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the error of each digit and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=Path("."), help="where digits.png goes")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    targets = torch.stack([draw_digit(digit, color) for digit, color in DIGITS.items()])
    seeds = create_seeds()
    model = NeuralCA(WRITTEN + len(DIGITS), rule=Rule(inputs=len(DIGITS), hidden=(96,)))
    # without `overflow`, which limits the hidden channels, digits fray within 1,000 steps
    config = TrainConfig.preset("quick", damage=0, overflow=0.1, seed=0)
    config = config.scaled_to(options.iterations)
    best = EmaTracker()
    trainer = PoolTrainer(model, targets, config, seed_state=seeds, callbacks=[best])
    trainer.fit()
    model.load_state_dict(best.weights)

    print("      digit" + "".join(f"{digit:>9}" for digit in DIGITS))
    shown = [targets]
    with torch.no_grad():
        for steps in STEPS:
            shown.append(get_visible_state(model.run_steps(seeds, steps, seed=0)))
            errors = (shown[-1] - targets).square().mean(dim=(1, 2, 3))
            print(f"{steps:>6} steps" + "".join(f"{error:9.5f}" for error in errors.tolist()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "digits.png").write_bytes(
        encode_mosaic(torch.cat(shown), columns=len(DIGITS), scale=4)
    )


if __name__ == "__main__":
    main()
