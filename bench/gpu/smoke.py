"""The first look: versions, the device, and a few rollouts against the reference.

The last rollout is one of the texture rule, a torus without an alive test, against the oracle of
its tests. Outputs and every gradient are compared.

    python -m bench.gpu.smoke [--rehearse]

Every case is checked even if one before it fails; the exit status is 1 if one did.
"""

import argparse
import sys
import traceback
from dataclasses import replace

import torch
import triton

from fastnca.rule import CHANNELS, RULES
from tests.kernels.helpers import Case, make_problem, run_kernels, violations
from tests.kernels.variant_cases import Variant, make_variant, run_variant, variant_violations

SIZE = {"hidden": 128, "calm": True}
CASES = [
    Case(33, 17, batch=2, precision=precision, steps=steps, **SIZE)
    for precision in ("fp16", "bf16", "ieee")
    for steps in (1, 3, 8)
]
REHEARSED = [Case(9, 9, precision=precision, steps=2) for precision in ("fp16", "ieee")]
TEXTURE = Variant(RULES["texture"], CHANNELS["texture"], 33, 17, batch=2, steps=3, precision="fp16")
REHEARSED_TEXTURE = replace(TEXTURE, height=9, width=9, batch=1, steps=2)


def broken_rules(case: Case | Variant, device: torch.device) -> list[str]:
    """Run a case and list what of its results is too far from what it should be."""
    if isinstance(case, Variant):
        variant = make_variant(case)
        return variant_violations(case, variant, run_variant(case, variant, device))
    problem = make_problem(case)
    return violations(case, problem, run_kernels(case, problem, device))


def main() -> int:
    """Print what there is, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="small cases, on a CPU")
    rehearse = parser.parse_args().rehearse
    device = torch.device("cpu" if rehearse else "cuda")
    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}"
    )
    if not rehearse:
        properties = torch.cuda.get_device_properties(device)
        print(f"CUDA {torch.version.cuda}, {properties}", flush=True)
    failed = 0
    for case in (*REHEARSED, REHEARSED_TEXTURE) if rehearse else (*CASES, TEXTURE):
        try:
            broken = broken_rules(case, device)
        except Exception:  # the next case may say more
            broken = [traceback.format_exc()]
        failed += bool(broken)
        print(f"{case}: {'; '.join(broken) or 'ok'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
