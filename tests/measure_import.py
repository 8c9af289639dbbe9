"""Import every model of a folder of published weights, and draw what they grow: a contact sheet.

    python -m tests.measure_import ../shared/weights sheet.png

Prints a row for each model: its layout, how clearly it was chosen, and what 200 steps became.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from fastnca.importing import certify_model, read_networks
from fastnca.pictures import encode_mosaic
from fastnca.pictures.render import seed_of, visible
from fastnca.storage.bundle import FileFormatError

STEPS = 200
SIZE = 64


def find_files(folder: Path) -> list[Path]:
    """Return what may be a model in a folder and in those in it."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".json", ".zip", ".pt", ".pth", ".h5", ".keras", ".onnx")
    ]


def main(folder: str, picture: str) -> None:
    """Import, print, draw."""
    states: list[Tensor] = []
    refused, start = 0, time.perf_counter()
    for path in find_files(Path(folder)):
        networks = read_networks(path)
        for name in networks:
            title = f"{path.name} {name}".strip()
            try:
                model, certificate = certify_model(path, networks, name)
            except FileFormatError as error:
                refused += 1
                print(f"{title}: REFUSED: {error.fault}")
                continue
            seed = seed_of(model, SIZE)
            state = model.requires_grad_(False).run_steps(seed, STEPS, 0.5, seed=7)
            alive = int((state[:, 3] > 0.1).sum())
            print(
                f"{title}: {certificate}; after {STEPS} steps values within "
                f"{float(state.abs().max()):.3g}, {alive} cells with alpha above 0.1"
            )
            states.append(visible(model, state)[:, :4])
    print(
        f"{len(states)} imported, {refused} refused, {time.perf_counter() - start:.0f} s, "
        f"torch {torch.__version__}, threads {torch.get_num_threads()}"
    )
    Path(picture).write_bytes(encode_mosaic(torch.cat(states), columns=16, scale=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
