"""A published lizard becomes violet: a model of somebody else is imported and trained further.

The file is one of "Growing Neural Cellular Automata" (Mordvintsev et al., Distill 2020), 8-bit JSON
as its article's page loads it. The target is what the model itself grows in 200 steps, with green
and blue exchanged.

Prints the mean squared error before and after training, and writes `recolour.png`: the imported
model's picture, the target, and what the trained one grows. Takes a minute on a 2-core CPU.

    python docs/examples/recolour.py ex3_lizard.json --out /tmp/recolour
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from fastnca import create_seed, get_visible_state, import_model
from fastnca.pictures import encode_mosaic
from fastnca.training import PoolTrainer, TrainConfig

SIZE = 56
STEPS = (96, 200, 1000)


def main(words: Sequence[str] | None = None) -> None:
    """Import, train, measure and draw."""
    parser = argparse.ArgumentParser(description="Train a published model to another colour.")
    parser.add_argument("model", type=Path, help="file of a growing model with 16 channels")
    parser.add_argument("--out", type=Path, default=Path("runs/recolour"))
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args(words)

    model = import_model(options.model)
    seed = create_seed(SIZE, fill_hidden=True)
    with torch.no_grad():
        picture = get_visible_state(model.run_steps(seed, 200, seed=0))
    target = picture[:, [0, 2, 1, 3]]
    config = TrainConfig.preset(
        "quick",
        iterations=options.iterations,
        pool_size=64,
        learning_rate=1e-3,
        warm_up=0,
        ramp=0,  # it grows already
        fill_hidden=True,
        seed=0,
    )
    PoolTrainer(model, target, config).fit()

    print(f"     before{(picture - target).square().mean():9.5f}")
    shown = [picture, target]
    with torch.no_grad():
        for steps in STEPS:
            shown.append(get_visible_state(model.run_steps(seed, steps, seed=1)))
            print(f"{steps:>5} steps{(shown[-1] - target).square().mean():9.5f}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "recolour.png").write_bytes(
        encode_mosaic(torch.cat(shown), columns=len(shown), scale=3)
    )


if __name__ == "__main__":
    main()
