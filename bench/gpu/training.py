"""Train from one seed on the fused kernels and in plain PyTorch, and write both losses.

    python -m bench.gpu.training ROWS.jsonl [--rehearse]

Runs are chaotic, so this is a look, not a proof; `pytest -m full tests/kernels/test_gpu.py`
compares six seeds.
"""

import argparse
import time
from pathlib import Path

import torch

from bench.gpu.measure import Rows
from tests.kernels.growth import train


def main() -> None:
    """Train twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="file to append rows to")
    parser.add_argument("--rehearse", action="store_true", help="two iterations, on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.rehearse else "cuda")
    sizes = {"iterations": 2, "size": 8, "steps": 2} if options.rehearse else {}
    rows = Rows(options.rows, device)
    for provider in ("replayed", "tutorial"):
        began = time.perf_counter()
        loss = train(0, provider == "replayed", device, **sizes)
        seconds = time.perf_counter() - began
        rows.add(provider=provider, mode="final loss", loss=loss, milliseconds=1e3 * seconds)


if __name__ == "__main__":
    main()
