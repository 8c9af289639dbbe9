"""Compile every kernel for several GPUs, without one, and report what the compiler made of it.

    python -m bench.kernel_report [--json FILE] [--targets sm_80,sm_90,sm_100] [--large] \
        [--precision fp16]

Registers, spills and instruction counts are read from the machine code, disassembled with the
tools that ship with Triton. They are static evidence, not timings.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastnca.fused.support import size_reasons
from fastnca.kernels import DTYPES, OPERAND_DTYPES, SINGLE_NETWORK, choose_launch
from fastnca.kernels.gradients import BLOCK, FILL_BLOCK, ROWS
from fastnca.kernels.launch import OPTIONS, RUN_CELLS
from fastnca.kernels.single_gradient_end import TALL, WIDE
from fastnca.kernels.weights import PACK_BLOCK

TARGETS = ("sm_80", "sm_90", "sm_100")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA)")
FLOATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
INTEGERS = {"source", "target", "step", "batch", "height", "width", "flag_rows", "flag_pitch"}
INTEGERS |= {
    "update_limit",
    "groups",
    "members",
    "most",
    "slots",
    "base",
    "rows",
    "channels",
    "hidden",
    "tiles",
    "blocks",
}
LONG_INTEGERS = {"seed", "first_step", "steps", "words", "pair_numbers"}
LONG_INTEGERS.add("numbers")
LONG_INTEGERS |= {f"{name}_size" for name in ("state", "w1", "b1", "w2", "b2")}


DIRECTIONS = {
    "single_step": "single_forward",
    "single_gradient": "single_backward",
    "single_gradient_end": "single_backward_end",
}
"""Names in the report of kernels whose own names do not say in which direction they go."""


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel.

    Attributes:
        kernel: name of the kernel.
        name: the variant's name in the report.
        module: the module that holds the kernel.
        constants: its compile-time constants.
        operand: type of the MMA operands.
        num_warps: warps of a program.
    """

    kernel: str
    name: str
    module: str
    constants: dict[str, Any]
    operand: torch.dtype
    num_warps: int

    @property
    def cells(self) -> int:
        """Cells of one tile; for kernels that do not walk over cells, numbers of one block."""
        if "TALL" in self.constants:
            return int(self.constants["TALL"] * self.constants["WIDE"])
        if "HEIGHT" in self.constants:
            return int(self.constants["HEIGHT"]) * RUN_CELLS
        return int(self.constants["BLOCK"])


@dataclass(frozen=True)
class Record:
    """What the compiler made of one variant for one target.

    Attributes:
        kernel: name of the kernel, with the direction in which it goes.
        variant: precision, channels, hidden units, and "eval" where no mask is drawn.
        target: architecture, as "sm_90".
        registers: of a thread.
        spill_bytes: of a thread, in local memory.
        shared_bytes: of a program.
        tensor_core_instructions: in the whole kernel.
        tensor_core_waits: how often a program waits for asynchronous ones; on sm_90 one for each
            product of matrices, unless the compiler lets them follow one another.
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


def variants(target: str, large: bool = False) -> Iterator[Variant]:
    """Yield every kernel in the specialisations that are launched on `target`."""
    capability = int(target.removeprefix("sm_")) // 10
    sizes = [(16, 128, precision) for precision in OPERAND_DTYPES]
    sizes += [(16, 64, "fp16"), (32, 128, "fp16")]
    if large:
        sizes += [(16, 256, "fp16"), (32, 256, "fp16")]
    for channels, hidden, precision in sizes:
        operand = OPERAND_DTYPES[precision]
        if size_reasons(precision, channels, hidden, capability):
            continue
        sized = {"CHANNELS": channels, "HIDDEN": hidden}
        name = f"{precision}-c{channels}-h{hidden}"
        for kernel in ("step_forward", "step_backward", "persistent"):
            direction = kernel.removeprefix("step_")
            config = choose_launch(direction, channels, hidden, operand, capability)
            for random in (True, False):
                constants = {**sized, "RANDOM": random, "HEIGHT": config.tile_height}
                variant = name if random else f"{name}-eval"
                yield Variant(kernel, variant, kernel, constants, operand, config.num_warps)
    yield from _single_variants(sizes, capability)
    half = torch.float16
    tile = {"CHANNELS": 16, "PADDED": 16, "HEIGHT": 8}
    yield Variant("start_forward", "c16", "start", tile, half, 4)
    yield Variant("finish_forward", "c16", "finish", tile, half, 4)
    scaled, checked = {**tile, "SCALED": True}, {**tile, "CHECKED": True}
    yield Variant("start_backward", "fp16-c16", "start", scaled, half, 4)
    yield Variant("finish_backward", "fp16-c16", "finish", checked, half, 4)
    sizes = {"CHANNELS": 16, "HIDDEN": 128}
    written = {"COUNTER": True, "SEED_GIVEN": False, "STEPS_GIVEN": False, "BLOCK": PACK_BLOCK}
    yield Variant("pack_weights", "fp16-c16-h128", "weights", {**sizes, **written}, half, 4)
    reduced = {**sizes, "CHECKED": True, "ROWS": ROWS, "BLOCK": BLOCK}
    yield Variant("reduce_gradients", "fp16-c16-h128", "gradients", reduced, half, 4)
    ended = {**reduced, "PADDED": 16, "TALL": TALL, "WIDE": WIDE}
    yield Variant("single_gradient_end", "fp16-c16-h128", "single_gradient_end", ended, half, 4)
    yield Variant("poison", "fp32", "gradients", {"BLOCK": FILL_BLOCK}, half, 4)


def _single_variants(sizes: list[tuple[int, int, str]], capability: int) -> Iterator[Variant]:
    """Yield the kernels of a single step, but for the last one, for networks that have them."""
    for channels, hidden, precision in sizes:
        operand = OPERAND_DTYPES[precision]
        too_large = channels > SINGLE_NETWORK[0] or hidden > SINGLE_NETWORK[1]
        if too_large or size_reasons(precision, channels, hidden, capability):
            continue
        sized = {"CHANNELS": channels, "PADDED": channels, "HIDDEN": hidden}
        sized["DTYPE"] = DTYPES[precision]
        name = f"{precision}-c{channels}-h{hidden}"
        kernel = "single_step"
        config = choose_launch(kernel, channels, hidden, operand, capability)
        sized["HEIGHT"] = config.tile_height
        for random in (True, False):
            constants = {**sized, "RANDOM": random, "SEED_GIVEN": False, "KEEP": random}
            variant = name if random else f"{name}-eval"
            yield Variant(kernel, variant, kernel, constants, operand, config.num_warps)
        kernel = "single_gradient"
        config = choose_launch(kernel, channels, hidden, operand, capability)
        constants = {**sized, "SCALED": precision == "fp16", "HEIGHT": config.tile_height}
        yield Variant(kernel, name, kernel, constants, operand, config.num_warps)


def compile_variant(variant: Variant, target: str) -> Any:
    """Compile a variant for `target`, such as "sm_90", and return Triton's compiled kernel."""
    module = import_module(f"fastnca.kernels.{variant.module}")
    kernel = getattr(module, f"_{variant.kernel}_kernel")
    names = kernel.arg_names
    operand = FLOATS[variant.operand]
    signature = {name: _type_of(name, variant.constants, operand) for name in names}
    aligned = [["tt.divisibility", 16]]
    unaligned = kernel.do_not_specialize_on_alignment
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={
            (names.index(name),): aligned
            for name, kind in signature.items()
            if kind[0] == "*" and name not in unaligned
        },
    )
    architecture = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    options = {"num_warps": variant.num_warps, **OPTIONS}
    options["launch_cooperative_grid"] = variant.kernel == "persistent"
    return triton.compile(source, target=architecture, options=options)


def _type_of(name: str, constants: dict[str, Any], operand: str) -> str:
    """Return the type of a kernel's argument in Triton's notation."""
    if name in constants:
        return "constexpr"
    if name == "step" and "DTYPE" in constants:
        return "i64"
    if name in INTEGERS:
        return "i32"
    if name in LONG_INTEGERS:
        return "i64"
    if name == "threshold":
        return "fp32"
    if name == "fates_ptr":
        return "*u8"
    if name == "arrived_ptr":
        return "*i32"
    if name in ("flags_ptr", "counter_ptr", "seed_ptr", "steps_ptr"):
        return "*i64"
    if name in ("weights_ptr", "pairs_ptr"):
        return f"*{operand}"
    return "*fp32"


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the records to")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated, as sm_90")
    parser.add_argument("--large", action="store_true", help="networks of 256 hidden units too")
    parser.add_argument("--precision", help="only the variants of this precision")
    options = parser.parse_args(arguments)
    print(f"Triton {triton.__version__}, tiles with their warps and constants as launched")
    print(
        f"{'kernel':20} {'variant':20} {'target':7} {'registers':>9} {'spill B':>8} "
        f"{'shared B':>9} {'MMA':>4} {'waits':>5} {'barriers':>8} {'warp instr/cell':>15}"
    )
    records = []
    for target in options.targets.split(","):
        for variant in variants(target, options.large):
            if options.precision and OPERAND_DTYPES[options.precision] != variant.operand:
                continue
            record = examine(variant, target)
            records.append(record)
            print(
                f"{record.kernel:20} {record.variant:20} {record.target:7} "
                f"{record.registers:9} {record.spill_bytes:8} {record.shared_bytes:9} "
                f"{record.tensor_core_instructions:4} {record.tensor_core_waits:5} "
                f"{record.barriers:8} {record.warp_instructions_per_cell:15.1f}",
                flush=True,
            )
    if options.json:
        rows = [asdict(record) for record in records]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
