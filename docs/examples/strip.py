"""The picture at the top of README: a seed, what it grows, a wound, and the wound healed.

The model is the regenerating lizard of "Growing Neural Cellular Automata" (Mordvintsev et al.,
Distill 2020). Half of the cells update in each step, at random; a disc of cells is set to zero.

Prints the share of living cells in each panel and writes `strip.png`.

    python docs/examples/strip.py ex3_lizard.json --out /tmp/strip
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fastnca import create_seed, import_model
from fastnca.pictures import to_pixels
from fastnca.states import clear_cells, disc

SIZE = 56
GROWN, HEALED = 200, 200
CENTER, RADIUS = (0.0, 0.3), 0.3
"""Of the disc: 0 is the middle of the grid, 1 half of its side."""


def main(words: Sequence[str] | None = None) -> None:
    """Grow, damage, heal and draw."""
    parser = argparse.ArgumentParser(description="Draw a model growing and healing.")
    parser.add_argument("model", type=Path, help="file of a growing model with 16 channels")
    parser.add_argument("--out", type=Path, default=Path("runs/strip"))
    options = parser.parse_args(words)

    model = import_model(options.model)
    seed = create_seed(SIZE, fill_hidden=True)
    with torch.no_grad():
        grown = model.run_steps(seed, GROWN, seed=7)
        wound = disc(SIZE, SIZE, torch.tensor([CENTER]), torch.tensor([RADIUS]))
        damaged = clear_cells(grown, wound[0])
        half = model.run_steps(damaged, 20, seed=8)
        healed = model.run_steps(damaged, HEALED, seed=8)
    panels = {
        "seed": seed,
        f"{GROWN} steps": grown,
        "damaged": damaged,
        "20 steps later": half,
        f"{HEALED} steps later": healed,
    }

    figure = Figure(figsize=(10, 2.3), layout="constrained")
    for axis, (title, state) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axis.imshow(to_pixels(state), interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
        print(f"{title:<16}  {(state[:, 3] > 0.1).float().mean():.3f}")
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "strip.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
