"""A short rollout and its gradients, for profilers and memory checkers to look at.

    python -m bench.gpu.profile [--batch 8] [--rule texture] [--rehearse]

What happens before and after the profiled part is compilation. Steps are launched one by one.
"""

import argparse
import os

import torch
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout
from fastnca.rule import CHANNELS, RULES, Rule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_leaves(batch: int, size: int, rule: Rule, channels: int) -> list[Tensor]:
    """Draw a state with patches of life and a network of the rule."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    options = {"generator": generator, "device": DEVICE}
    state = torch.randn(batch, channels, size, size, **options) * 0.3
    state = state[..., : size // 2 + 1] if batch == 2 else state.abs()  # all alive, if large
    _, *shapes = rule.shapes(channels).values()  # the filters are fixed
    tensors = [state, *(torch.randn(shape, **options) * 0.05 for shape in shapes)]
    return [tensor.detach().requires_grad_() for tensor in tensors]


def main() -> None:
    """Run it twice, the second time with the profiler switched on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="grids; of 2, an odd size is taken")
    parser.add_argument("--rule", choices=list(RULES), default="growing", help="a named rule")
    parser.add_argument("--rehearse", action="store_true", help="a small grid, on a CPU")
    options = parser.parse_args()
    os.environ["FASTNCA_GRAPHS"] = "0"
    batch, size = (1, 8) if options.rehearse else (options.batch, 33 if options.batch == 2 else 64)
    rule, channels = RULES[options.rule], CHANNELS[options.rule]
    leaves = make_leaves(batch, size, rule, channels)
    settings = {"steps": 2, "seed": 1, "first_step": 0, "update_rate": 0.5, "precision": "fp16"}
    settings["rule"] = rule
    for profiled in (False, True):
        if profiled and DEVICE == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        result = fused_rollout(leaves[0], tuple(leaves[1:]), **settings)
        torch.autograd.grad(result.square().sum(), leaves)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
