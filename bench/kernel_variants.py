"""The kernels in the specialisations that are launched, compiled without a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastnca.backends.triton_fused.support import size_reasons
from fastnca.kernels.weights import DTYPES, OPERAND_DTYPES
from fastnca.kernels.gradients import BLOCK, FILL_BLOCK, ROWS
from fastnca.kernels.launch import OPTIONS, TILE_COLUMNS
from fastnca.kernels.rule import KernelRule, make_rule
from fastnca.kernels.single_gradient_end import TALL, WIDE
from fastnca.kernels.prepare import PREPARE_BLOCK
from fastnca.rule import RULES

FLOATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
INTEGERS = {
    "source",
    "target",
    "step",
    "batch",
    "height",
    "width",
    "flag_rows",
    "flag_pitch",
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
LONG_INTEGERS = {
    "seed",
    "first_step",
    "steps",
    "words",
    "pair_numbers",
    "numbers",
    "state_size",
    "w1_size",
    "b1_size",
    "w2_size",
    "b2_size",
}


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
            return int(self.constants["HEIGHT"]) * TILE_COLUMNS
        return int(self.constants["BLOCK"])


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
            if kernel == "persistent":
                config = choose_persistent(channels, hidden, operand)
            else:
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
