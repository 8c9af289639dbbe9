"""Compile every kernel for several GPUs, without one, and report what the compiler made of it.

    python -m bench kernels [--json FILE] [--targets sm_89,sm_90] [--rules texture,torus] \
        [--large] [--precision fp16] [--kernel step] [--variant c16-h128]

Registers, spills and instruction counts are read from the machine code, disassembled with the
tools that ship with Triton. They are static evidence, not timings.
"""

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import triton

from bench.kernels.variants import DEFAULT_RULES, VARIED, Variant, compile_variant, variants
from fastnca.kernels import OPERAND_DTYPES

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA)")
DIRECTIONS = {
    "single_step": "single_forward",
    "single_gradient": "single_backward",
    "single_gradient_end": "single_backward_end",
}
"""Names in the report of kernels whose own names do not say in which direction they go."""


@dataclass(frozen=True)
class Record:
    """What the compiler made of one variant for one target.

    Attributes:
        kernel: name of the kernel, with the direction in which it goes.
        variant: precision, padded channels, padded hidden units, the rule if it is not the
            tutorial's, and "eval" where no mask is drawn.
        target: architecture, as "sm_90".
        registers: of a thread.
        spill_bytes: of a thread, in local memory.
        shared_bytes: of a program.
        tensor_core_instructions: in the whole kernel.
        tensor_core_waits: how often a program waits for asynchronous ones; on sm_90 once for each
            product of matrices, and more often where the compiler lets its instructions wait for
            one another.
        barriers: at which the warps of a program wait for one another, in the whole kernel.
        warp_instructions_per_cell: of the main loop.
    """

    kernel: str
    variant: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core_instructions: int
    tensor_core_waits: int
    barriers: int
    warp_instructions_per_cell: float


def _run(tool: str, *arguments: str) -> str:
    """Run one of Triton's binary tools and return what it prints."""
    command = [str(TOOLS / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _main_loop(listing: str) -> tuple[list[str], int]:
    """Return all instructions of a listing, and how many its largest loop has (0: no loop)."""
    instructions: list[str] = []
    labels = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    longest = 0
    for index, instruction in enumerate(instructions):
        jump = re.search(r"\bBRA.*`\((\.L_x_\d+)\)", instruction)
        if jump and labels[jump[1]] < index:
            longest = max(longest, index + 1 - labels[jump[1]])
    return instructions, longest


def examine(variant: Variant, target: str) -> Record:
    """Compile a variant and count its registers, spills and instructions."""
    compiled = compile_variant(variant, target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    instructions, loop = _main_loop(listing)
    walks = "HIDDEN" in variant.constants and "HEIGHT" in variant.constants
    counted = loop if walks else len(instructions)
    resources = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    return Record(
        kernel=DIRECTIONS.get(variant.kernel, variant.kernel),
        variant=variant.name,
        target=target,
        registers=resources["REG"],
        spill_bytes=resources["STACK"] + resources["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        tensor_core_instructions=sum(bool(TENSOR_CORE.search(i)) for i in instructions),
        tensor_core_waits=sum("WARPGROUP.DEPBAR" in i for i in instructions),
        barriers=sum("BAR.SYNC" in i for i in instructions),
        warp_instructions_per_cell=counted * variant.num_warps / variant.cells,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the report, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m bench kernels", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="file to write the records to")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated, as sm_90")
    known = ", ".join(VARIED)
    parser.add_argument(
        "--rules", default=",".join(DEFAULT_RULES), help=f"comma-separated, or all: {known}"
    )
    parser.add_argument("--large", action="store_true", help="every size in every precision")
    parser.add_argument("--precision", help="only the variants of this precision")
    parser.add_argument("--kernel", default="", help="only the kernels with this in their names")
    parser.add_argument("--variant", default="", help="only the variants with this in their names")
    options = parser.parse_args(arguments)
    rules = tuple(VARIED) if options.rules == "all" else tuple(options.rules.split(","))
    if unknown := [rule for rule in rules if rule not in VARIED]:
        parser.error(f"unknown rule {', '.join(unknown)}; there are {known}")
    print(f"Triton {triton.__version__}, tiles with their warps and constants as launched")
    print(
        f"{'kernel':20} {'variant':30} {'target':7} {'registers':>9} {'spill B':>8} "
        f"{'shared B':>9} {'MMA':>4} {'waits':>5} {'barriers':>8} {'warp instr/cell':>15}"
    )
    records = []
    for target in options.targets.split(","):
        for variant in variants(target, options.large, rules):
            if options.precision and OPERAND_DTYPES[options.precision] != variant.operand:
                continue
            if options.variant not in variant.name or options.kernel not in variant.kernel:
                continue
            record = examine(variant, target)
            records.append(record)
            print(
                f"{record.kernel:20} {record.variant:30} {record.target:7} "
                f"{record.registers:9} {record.spill_bytes:8} {record.shared_bytes:9} "
                f"{record.tensor_core_instructions:4} {record.tensor_core_waits:5} "
                f"{record.barriers:8} {record.warp_instructions_per_cell:15.1f}",
                flush=True,
            )
    if options.json:
        rows = [asdict(record) for record in records]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0
