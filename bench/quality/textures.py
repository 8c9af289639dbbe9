"""Compare trained textures with their targets, and other samples of the material with them.

    fastnca train --target zebra --out runs/zebra
    python -m bench textures runs/zebra ... [--csv FILE] [--picture FILE]

For a run of a texture that is drawn by code it prints the texture loss of an untrained model, of
other samples of the same material (`create_texture(name, size, seed=1)` and so on), and of the
trained model, on grids of 96x96 and of 192x192 cells, all of them against the statistics of the
target that the model was trained on.
"""

import argparse
import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.machine import ROOT, describe
from bench.results import read_csv, write_csv
from fastnca import NeuralCA
from fastnca.losses import TextureLoss
from fastnca.pictures import encode_mosaic
from fastnca.pictures.render import seed_of
from fastnca.report import measure_texture
from fastnca.states import texture_rgba
from fastnca.textures import create_texture

RESULTS = ROOT / "bench" / "results" / "cpu-2core-textures.csv"
SIZES = (96, 192)
STEPS = (300, 480, 1000)
SAMPLES = (1, 2, 3, 4, 5)
RUNS = 3


@dataclass(frozen=True)
class Row:
    """One texture on one grid.

    Attributes:
        texture: its name.
        size: height and width of the grid in cells.
        steps: from the seed.
        untrained: loss of a model that has learned nothing.
        samples: mean loss of other samples of the material.
        lowest, highest: of those samples.
        trained: mean loss of the trained model over `RUNS` mask seeds.
        ratio: `trained / samples`.
        largest: largest absolute value of a state.
        seconds: that training took.
        threads: of torch while it trained.
        machine, torch, commit: where this was measured.
    """

    texture: str
    size: int
    steps: int
    untrained: float
    samples: float
    lowest: float
    highest: float
    trained: float
    ratio: float
    largest: float
    seconds: float
    threads: int
    machine: str
    torch: str
    commit: str


def measure(run: Path) -> list[Row]:
    """Measure a run of `fastnca train --target NAME`."""
    options = tomllib.loads((run / "run.toml").read_text())
    name, loss = options["target"], TextureLoss()
    target = create_texture(name, options["target_size"])
    wanted = loss.prepare(target)
    with (run / "metrics.csv").open() as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    model = NeuralCA.load(run).train()
    here = describe(torch.device("cpu"), malloc_is_tuned=False)
    rows = []
    for size in SIZES:
        seed = seed_of(model, size)
        others = [_as_state(create_texture(name, size, seed=number)) for number in SAMPLES]
        with torch.no_grad():
            untrained = float(loss([seed], wanted))
            samples = [float(loss([other], wanted)) for other in others]
        mean = sum(samples) / len(samples)
        for found in measure_texture(model, [seed], target, STEPS, runs=RUNS):
            (trained,) = found.losses
            rows.append(
                Row(
                    texture=name,
                    size=size,
                    steps=found.steps,
                    untrained=untrained,
                    samples=mean,
                    lowest=min(samples),
                    highest=max(samples),
                    trained=trained,
                    ratio=trained / mean,
                    largest=found.largest,
                    seconds=seconds,
                    threads=here.threads,
                    machine=here.machine,
                    torch=here.torch,
                    commit=here.commit,
                )
            )
    return rows


def _as_state(picture: Tensor) -> Tensor:
    """Return a state that looks like `[1, 4, H, W]`."""
    return picture[:, :3] - 0.5


def draw(runs: Sequence[Path]) -> bytes:
    """Draw the target of each run above what grew in 480 steps, as PNG."""
    targets, grown = [], []
    for run in runs:
        model, (size, _) = NeuralCA.load(run).train(), SIZES
        name = tomllib.loads((run / "run.toml").read_text())["target"]
        targets.append(create_texture(name, size))
        with torch.no_grad():
            state = model.run_steps(seed_of(model, size), STEPS[1], seed=0)
        grown.append(texture_rgba(state))
    return encode_mosaic(torch.cat([*targets, *grown]), columns=len(runs), scale=2)


def markdown(path: Path) -> str:
    """Return the table of docs/textures.md."""
    lines = ["| texture | grid | steps | untrained | other samples | trained | ratio |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in read_csv(path, Row):
        lines.append(
            f"| {row.texture} | {row.size}x{row.size} | {row.steps} | {row.untrained:.2f} | "
            f"{row.samples:.4f} ({row.lowest:.4f} to {row.highest:.4f}) | {row.trained:.4f} | "
            f"**{row.ratio:.2f}** |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench textures", description="Compare trained textures with their targets."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="directories of runs")
    parser.add_argument("--csv", type=Path, help="file to write")
    parser.add_argument("--picture", type=Path, help="PNG to write: targets above samples")
    options = parser.parse_args(arguments)
    rows = [row for run in options.runs for row in measure(run)]
    print("texture   grid     steps  untrained  other samples (lowest, highest)  trained  ratio")
    for row in rows:
        print(
            f"{row.texture:<9} {row.size:>3}x{row.size:<3} {row.steps:>6}  {row.untrained:9.3f}  "
            f"{row.samples:.4f} ({row.lowest:.4f}, {row.highest:.4f})         {row.trained:9.4f}"
            f"  {row.ratio:5.2f}"
        )
    for run in {row.texture: row for row in rows}.values():
        print(f"{run.texture}: trained in {run.seconds:.0f} s, values within {run.largest:.2f}")
    if options.picture is not None:
        options.picture.write_bytes(draw(options.runs))
    if options.csv is not None:
        write_csv(options.csv, rows, Row)
    return 0
