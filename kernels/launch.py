"""How kernels are launched: tile sizes, program counts, and a cache of compiled kernels."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .rule import KernelRule

TILE_COLUMNS = 8
FLAG_MARGIN = 2
TILE_ROWS = 16  # the tallest tile; planes of flags have room for whole tiles
SINGLE_STEP_LIMIT = (
    16,
    128,
)  # padded channels and hidden units of the largest that suits single steps
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
INTERPRETED_PROGRAMS = 2  # more than one, so that the loop over tiles is exercised


@dataclass(frozen=True)
class LaunchConfig:
    """How a step kernel is launched.

    Attributes:
        tile_height: rows of a tile; a tile is eight columns wide.
        num_warps: warps of a program.
        programs: programs that share the tiles, at most.
    """

    tile_height: int
    num_warps: int
    programs: int


@dataclass(frozen=True)
class StepSettings:
    """What the steps of a rollout have in common beside the network.

    Attributes:
        limit: a cell updates when its 24-bit draw is below this number.
        random: False updates every cell without drawing.
        threshold: exclusive lower limit of a living alpha, at least 0.
    """

    limit: int
    random: bool
    threshold: float


def choose_launch(
    direction: str,
    channels: int,
    hidden: int,
    dtype: torch.dtype,
    capability: int = 9,
    processors: int = 0,
    planes: int = 1,
) -> LaunchConfig:
    """Choose the launch of a step kernel from a fixed table, never by timing.

    Tiles are as tall as the registers allow (`python -m bench kernels`): with the
    asynchronous tensor cores of data-centre GPUs, compute capabilities 9 and 10, an MMA of 128
    cells by 128 hidden units fits; on all others, consumer GPUs of capability 12 included, and with
    larger weights, half of it, or a quarter backward; float32 products run without tensor cores,
    on 32 cells.

    Args:
        direction: "forward", "backward", "single_step" or "single_gradient".
        channels: padded channels, 16 or 32.
        hidden: padded hidden units, 16 to 256.
        dtype: type of the MMA operands.
        capability: major compute capability of the device.
        processors: streaming multiprocessors of the device; 0 in the interpreter.
        planes: planes of the rule; with two of them tall tiles spill on compute capability 10.

    Returns:
        The configuration.
    """
    asynchronous = capability in (9, 10)
    tall = asynchronous and channels * hidden <= 16 * 128
    if dtype == torch.float32:
        height, warps = (4, 4) if direction in ("backward", "single_gradient") else (4, 8)
    elif direction in ("forward", "single_step"):
        height, warps = (16, 4) if tall else (8, 4)
    elif capability == 10 and tall and planes > 1:
        height, warps = 8, 4
    elif asynchronous:
        height, warps = (16, 8) if tall else (8, 8)
    elif channels * hidden == 16 * 128:
        height, warps = 8, 8
    else:
        height, warps = 4, 4 if channels * hidden < 16 * 128 else 8
    resident = 1 if warps == 8 else 2
    programs = resident * processors if processors else INTERPRETED_PROGRAMS
    return LaunchConfig(height, warps, programs)


@cache
def device_facts(device: torch.device) -> tuple[int, int]:
    """Return major compute capability and multiprocessors of a CUDA device, (9, 0) for others."""
    if device.type != "cuda":
        return 9, 0
    properties = torch.cuda.get_device_properties(device)
    return properties.major, properties.multi_processor_count


def flag_shape(height: int, width: int) -> tuple[int, int]:
    """Return rows and words of the flags of a grid: whole tiles, and a margin at both ends."""
    return -(-height // TILE_ROWS) * TILE_ROWS + 2 * FLAG_MARGIN, -(-width // TILE_COLUMNS)


def plane_size(shape: tuple[int, int, int, int], rule: KernelRule) -> int:
    """Return the numbers of all planes of gradients that cross cells, both halves (`planes.py`).

    Each grid has a margin of one cell. A tile that sticks out of the last grid reads past it, and
    makes nothing of what it reads.

    Args:
        shape: `(B, H, W, CP)`.
        rule: the rule.
    """
    batch, height, width, channels = shape
    if not rule.planes:
        return 0
    rows = 2 * len(rule.planes) * batch * (height + 2) + TILE_ROWS
    return (rows * (width + 2) + TILE_COLUMNS) * 2 * channels


def count_tiles(batch: int, height: int, width: int, tile_height: int) -> int:
    """Return the number of tiles of a batch of grids."""
    return batch * -(-height // tile_height) * -(-width // TILE_COLUMNS)


def device_guard(device: torch.device) -> Any:
    """Return a context in which `device` is the current CUDA device."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()


_compiled: dict[Any, tuple[Any, Any]] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor, ...],
    scalars: tuple[int | float, ...],
    constants: tuple[Any, ...],
    num_warps: int,
) -> None:
    """Launch a kernel, compiled at most once per constants, dtypes and device.

    Triton's own launcher classifies every argument of every call. Here no scalar is specialised.
    A pointer is either 16-byte aligned or named in the kernel's `do_not_specialize_on_alignment`,
    as those to the caller's tensors are. So the constants, the operands' type and the device
    identify the compiled kernel. The tensors' device must be the current one (`device_guard`):
    a rollout sees to that once.

    Args:
        kernel: a `triton.jit` function.
        programs: number of programs on grid axis 0.
        tensors: the pointers, first arguments of the kernel.
        scalars: the run-time numbers, next arguments.
        constants: the compile-time constants, last arguments.
        num_warps: warps of a program.
    """
    if programs == 0:
        return
    dtypes = [tensor.dtype for tensor in tensors]
    key = (id(kernel), tensors[0].device, constants, num_warps, *dtypes)
    known = _compiled.get(key)
    if known is not None:
        known[1][(programs, 1, 1)](*tensors, *scalars, *constants)
        return
    options = {**OPTIONS, "num_warps": num_warps}
    compiled = kernel[(programs,)](*tensors, *scalars, *constants, **options)
    if compiled is not None:
        _compiled[key] = (kernel, compiled)  # the kernel too, so that its id stays its own


class Launch:
    """A launch that is repeated with other tensors, prepared as far as it can be.

    What `launch` looks up in every call, the compiled kernel and its grid, is kept.

    Args:
        kernel: a `triton.jit` function.
        programs: number of programs on grid axis 0, at least 1.
        numbers: run-time numbers that stay the same, after those of the call.
        constants: the compile-time constants, last arguments of the kernel; with the device they
            identify the compiled kernel, so the tensors' types must follow from them.
        num_warps: warps of a program.
        device: where the tensors are.
    """

    __slots__ = ("_device", "_index", "_kernel", "_key", "_num_warps", "_programs", "_rest", "_run")

    def __init__(
        self,
        kernel: Any,
        programs: int,
        numbers: tuple[int | float, ...],
        constants: tuple[Any, ...],
        num_warps: int,
        device: torch.device,
    ) -> None:
        self._kernel, self._programs, self._num_warps = kernel, programs, num_warps
        self._rest = (*numbers, *constants)
        self._key = (id(kernel), device, constants, num_warps)
        self._device, self._index = device, device.index
        self._run: Any = None

    def __call__(self, *arguments: Any) -> None:
        """Launch with tensors and numbers, the first arguments of the kernel."""
        run = self._run
        if run is None or (self._index is not None and self._index != torch.cuda.current_device()):
            with device_guard(self._device):
                self._launch(arguments)
            return
        run(*arguments, *self._rest)

    def _launch(self, arguments: tuple[Any, ...]) -> None:
        """Compile the kernel if nobody has, and launch it."""
        grid = (self._programs, 1, 1)
        if self._run is None:
            known = _compiled.get(self._key)
            if known is None:
                options = {**OPTIONS, "num_warps": self._num_warps}
                compiled = self._kernel[grid](*arguments, *self._rest, **options)
                if compiled is not None:
                    _compiled[self._key] = (self._kernel, compiled)
                return
            self._run = known[1][grid]
        self._run(*arguments, *self._rest)
