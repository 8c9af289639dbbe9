"""The kernels in the specialisations that are launched, compiled without a GPU."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastnca.backends.triton_fused.limits import size_reasons
from fastnca.backends.triton_fused.settings import kernel_rule
from fastnca.kernels import DTYPES, OPERAND_DTYPES, SINGLE_STEP_LIMIT, KernelRule, choose_launch
from fastnca.kernels.gradients import BLOCK, FILL_BLOCK, ROWS
from fastnca.kernels.launch import OPTIONS, TILE_COLUMNS
from fastnca.kernels.prepare import PREPARE_BLOCK
from fastnca.kernels.single_gradient_end import GATHER_COLUMNS, GATHER_ROWS
from fastnca.kernels.weights import count_sums
from fastnca.rule import CHANNELS, RULES, TUTORIAL, Rule

HALF = torch.float16
FLOATS = {HALF: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
OPERAND = "operand"
POINTERS = {
    "weights_ptr": OPERAND,
    "planes_ptr": OPERAND,
    "flags_ptr": "i64",
    "counter_ptr": "i64",
    "seed_ptr": "i64",
    "steps_ptr": "i64",
    "cell_flags_ptr": "u8",
}
"""What pointers point to, where that is not float32."""

NUMBERS = {"threshold": "fp32"}
"""Types of run-time numbers that are neither 32-bit integers nor annotated with their type."""

VARIED = {
    "tutorial": TUTORIAL,
    "texture": RULES["texture"],
    "torus": Rule(padding="circular"),
    "inputs": Rule(inputs=2),
    "every-cell-lives": Rule(alive="none"),
    "one-filter": Rule(("laplacian",)),
    "four-filters": replace(TUTORIAL, filters=RULES["texture"].filters, inputs=2),
    "no-final-bias": Rule(final_bias=False),
}
"""Rules by their names in the report."""

DEFAULT_RULES = ("tutorial", "texture")


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
        if "GATHER_ROWS" in self.constants:
            return int(self.constants["GATHER_ROWS"] * self.constants["GATHER_COLUMNS"])
        if "HEIGHT" in self.constants:
            return int(self.constants["HEIGHT"]) * TILE_COLUMNS
        return int(self.constants["BLOCK"])


@dataclass(frozen=True)
class _Network:
    """A network of a rule, in one precision.

    Attributes:
        rule: name of the rule.
        channels: channels of the state.
        padded: those that are stored.
        hidden: padded hidden units.
        precision: of the operands.
    """

    rule: str
    channels: int
    padded: int
    hidden: int
    precision: str

    @property
    def compiled_rule(self) -> KernelRule:
        """What the kernels are compiled for."""
        return kernel_rule(VARIED[self.rule], self.channels)

    @property
    def suffix(self) -> str:
        """What the names of its variants end with."""
        return "" if self.rule == "tutorial" else f"-{self.rule}"

    @property
    def name(self) -> str:
        """What its variants are called."""
        return f"{self.precision}-c{self.padded}-h{self.hidden}{self.suffix}"

    @property
    def operand(self) -> torch.dtype:
        """Type of the MMA operands."""
        return OPERAND_DTYPES[self.precision]

    @property
    def sums(self) -> int:
        """How many numbers the sums of its gradients are."""
        return count_sums(self.padded, self.hidden, self.compiled_rule)


def variants(
    target: str, large: bool = False, rules: Collection[str] = ("tutorial",)
) -> Iterator[Variant]:
    """Yield every kernel in the specialisations that are launched on `target`.

    Args:
        target: architecture, as "sm_90".
        large: whether to take every size in every precision, 256 hidden units too.
        rules: names in `VARIED`. Specialisations without masks are those of the tutorial's alone,
            as are the kernels of a single step.
    """
    capability = int(target.removeprefix("sm_")) // 10
    for rule in rules:
        yield from _rule_variants(rule, capability, large)


def _rule_variants(rule: str, capability: int, large: bool) -> Iterator[Variant]:
    """Yield the kernels of one rule."""
    sizes = [(16, 128, precision) for precision in OPERAND_DTYPES]
    if rule == "tutorial":
        sizes += [(16, 64, "fp16")]
    sizes += [(32, 128, "fp16")]
    if large:
        sizes = list(product((16, 32), (128, 256), OPERAND_DTYPES))
    for padded, hidden, precision in sizes:
        if size_reasons(precision, padded, hidden, capability):
            continue
        channels = CHANNELS.get(rule, padded) if padded == 16 else padded
        network = _Network(rule, channels, padded, hidden, precision)
        yield from _step_variants(network, capability)
        if rule == "tutorial" and padded <= SINGLE_STEP_LIMIT[0] and hidden <= SINGLE_STEP_LIMIT[1]:
            yield from _single_variants(network, capability)
    channels = CHANNELS.get(rule, 16)
    yield from _end_variants(_Network(rule, channels, 16, 128, "fp16"))


def _step_variants(network: _Network, capability: int) -> Iterator[Variant]:
    """Yield both step kernels."""
    sizes = {"CHANNELS": network.padded, "HIDDEN": network.hidden}
    for kernel, sums in (("step_forward", {}), ("step_backward", {"SUMS": network.sums})):
        direction = kernel.removeprefix("step_")
        size = network.padded, network.hidden, network.operand
        planes = len(network.compiled_rule.planes)
        config = choose_launch(direction, *size, capability, planes=planes)
        for random in (True, False) if network.rule == "tutorial" else (True,):
            constants = {**sizes, **sums, "RULE": network.compiled_rule, "RANDOM": random}
            constants["HEIGHT"] = config.tile_height
            name = network.name if random else f"{network.name}-eval"
            yield Variant(kernel, name, kernel, constants, network.operand, config.num_warps)


def _single_variants(network: _Network, capability: int) -> Iterator[Variant]:
    """Yield the kernels of a single step, but for the last one."""
    sizes = {"CHANNELS": network.channels, "PADDED": network.padded, "HIDDEN": network.hidden}
    rest = {"RULE": network.compiled_rule, "DTYPE": DTYPES[network.precision]}
    size = network.padded, network.hidden, network.operand
    kernel = "single_step"
    config = choose_launch(kernel, *size, capability)
    for random in (True, False):
        constants = {**sizes, **rest, "RANDOM": random, "SEED_GIVEN": False, "KEEP": random}
        constants["HEIGHT"] = config.tile_height
        name = network.name if random else f"{network.name}-eval"
        yield Variant(kernel, name, kernel, constants, network.operand, config.num_warps)
    kernel = "single_gradient"
    config = choose_launch(kernel, *size, capability)
    constants = {**sizes, **rest, "SUMS": network.sums, "SCALED": network.precision == "fp16"}
    constants["HEIGHT"] = config.tile_height
    yield Variant(kernel, network.name, kernel, constants, network.operand, config.num_warps)


def _end_variants(network: _Network) -> Iterator[Variant]:
    """Yield the kernels with which rollouts begin and end, and what a single step ends with."""

    def variant(kernel: str, module: str, name: str, constants: dict[str, Any]) -> Variant:
        return Variant(kernel, name + network.suffix, module, constants, HALF, 4)

    rule = {"RULE": network.compiled_rule}
    tile = {"CHANNELS": network.channels, "PADDED": network.padded, "HEIGHT": 8}
    layout = {"CHANNELS": network.padded, "HIDDEN": network.hidden, **rule}
    checked = {"CHECKED": True}
    cells, sized = f"c{network.padded}", f"fp16-c{network.padded}-h{network.hidden}"
    written = {"COUNTER": True, "SEED_GIVEN": False, "STEPS_GIVEN": False, "BLOCK": PREPARE_BLOCK}
    yield variant("prepare_rollout", "prepare", sized, {**layout, **written})
    yield variant("begin_forward", "begin", cells, {**tile, **rule})
    yield variant("end_forward", "end", cells, {**tile, **rule})
    yield variant("begin_backward", "begin", f"fp16-{cells}", {**tile, "SCALED": True})
    yield variant("end_backward", "end", f"fp16-{cells}", {**tile, **rule, **checked})
    reduced = {**layout, **checked, "ROWS": ROWS, "BLOCK": BLOCK}
    yield variant("reduce_gradients", "gradients", sized, {**reduced, "SIZE": network.sums})
    if network.rule == "tutorial":
        ended = {**reduced, "CHANNELS": network.channels, "PADDED": network.padded}
        ended |= {"SUMS": network.sums}
        ended |= {"GATHER_ROWS": GATHER_ROWS, "GATHER_COLUMNS": GATHER_COLUMNS}
        yield variant("single_gradient_end", "single_gradient_end", sized, ended)
        yield variant("nan_fill", "gradients", "fp32", {"BLOCK": FILL_BLOCK})


def compile_variant(variant: Variant, target: str) -> Any:
    """Compile a variant for `target`, such as "sm_90", and return Triton's compiled kernel."""
    module = import_module(f"fastnca.kernels.{variant.module}")
    kernel = getattr(module, f"_{variant.kernel}_kernel")
    operand = FLOATS[variant.operand]
    signature = {each.name: _type_of(each, operand) for each in kernel.params}
    given = {name for name, kind in signature.items() if kind == "constexpr"}
    if given != variant.constants.keys():
        raise ValueError(f"{variant.kernel} has the constants {sorted(given)}")
    names = list(signature)
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
    return triton.compile(source, target=architecture, options=options)


def _type_of(parameter: Any, operand: str) -> str:
    """Return the type of a kernel's parameter in Triton's notation."""
    if parameter.is_constexpr:
        return "constexpr"
    name = parameter.name
    if not name.endswith("_ptr"):
        return parameter.annotation_type or NUMBERS.get(name, "i32")
    kind = POINTERS.get(name, "fp32")
    return f"*{operand if kind == OPERAND else kind}"
