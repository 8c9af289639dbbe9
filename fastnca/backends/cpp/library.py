"""The compiled functions: their arguments, the memory they are given, what they return."""

import ctypes
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastnca.backends.autograd import Grads, check_saved, dense, kinds, refuse_saved
from fastnca.backends.cpp.build import cpp_library
from fastnca.backends.cpp.rules import CRule, c_rule
from fastnca.backends.cpp.threads import reserved, thread_count
from fastnca.checks import (
    MOST_WEIGHT,
    OutOfRangeError,
    Parameters,
    check_like,
    check_memory,
    check_rollout,
    check_steps,
)
from fastnca.masks import Updates, threshold
from fastnca.rule import TUTORIAL, Rule

_MOST_CELLS = 2**31 - 1
"""Cells of a grid, with a margin of one on every side, are numbered in 32 bits."""

_ALIGNMENT = 64
"""Bytes; where the kernels lay the memory that a forward pass asks for."""

_OUT_OF_RANGE, _OUT_OF_MEMORY, _DAMAGED = 1, 2, 3  # what a function returns; 0 if all went well
_PIECE = 1 << 19  # bytes that are kept for the backward pass, at once
_SINGLE_PIECE = 1 << 16  # the same for a single step

_limit = lru_cache(maxsize=64)(threshold)

_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))


class _Call(ctypes.Structure):
    """`fastnca_rollout` of `kernels/cpu/rollout.cpp`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "hidden", "height", "width")),
        ("steps", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("state", "weight1", "bias1", "weight2", "bias2")),
        ("rule", CRule),
        ("masks", ctypes.c_void_p),
        ("random", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("first_step", ctypes.c_uint64),
        ("limit", ctypes.c_int64),
        ("largest_weight", ctypes.c_double),
        ("threads", ctypes.c_int64),
        ("allocate", _Allocate),
        ("piece_bytes", ctypes.c_int64),
    )


class Kept:
    """What the backward pass needs to know of the forward pass, beside the memory it was given.

    Args:
        library: the compiled functions.
        address: of what they keep; freed with this object.
        state: `[B, C, H, W]`, the first state.
        parameters: of the rollout.
        pieces: the memory that was allocated, `[n]` uint8 each.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        address: int,
        state: Tensor,
        parameters: Sequence[Tensor],
        pieces: Sequence[Tensor],
    ) -> None:
        self.library = library
        self.address = address
        self.shape, self.dtype = state.shape, state.dtype
        self.shapes = [parameter.shape for parameter in parameters]
        self.pieces = kinds(pieces)

    def __del__(self) -> None:
        self.library.fastnca_release(self.address)


@dataclass
class _Memory:
    """Memory that a forward pass asks for, from several threads at a time.

    Attributes:
        pieces: `[n]` uint8 each, by number, from 0.
        failed: what was raised; it would get lost on its way through C.
    """

    pieces: dict[int, Tensor] = field(default_factory=dict)
    failed: list[BaseException] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def allocate(self, size: int, number: Any) -> int:
        """Return the address of a new piece and set its number; null if there is none."""
        try:
            piece = _new_piece(size)
            number[0] = next(self._numbers)
            self.pieces[number[0]] = piece
            return piece.data_ptr()
        except BaseException as error:
            self.failed.append(error)
            return 0


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled functions with their types declared."""
    library = cpp_library(dtype)
    call, pointer = ctypes.POINTER(_Call), ctypes.c_void_p
    library.fastnca_forward.argtypes = (call, pointer, ctypes.POINTER(pointer))
    library.fastnca_backward.argtypes = (call, *(pointer,) * 5)
    library.fastnca_release.argtypes = (pointer,)
    library.fastnca_release.restype = None
    return library


def forward(
    state: Tensor,
    parameters: Parameters,
    updates: Updates,
    keep: bool,
    rule: Rule = TUTORIAL,
) -> tuple[Tensor, Kept | None, list[Tensor]]:
    """Advance a state.

    Args:
        state: `[B, C, H, W]` float32 or float64 on the CPU, any strides.
        parameters: weight and bias of each 1x1 convolution that the rule has, of the same type.
        updates: at least one step.
        keep: whether there will be a backward pass.
        rule: one that has no `rule_reasons`.

    Returns:
        The last state, contiguous; what `backward` needs; the memory of that, `[n]` uint8 each.

    Raises:
        MemoryError: memory ran out.
        OutOfRangeError: a value left the range in which active cells are exact.
        TypeError: a dtype or a layout does not fit.
        ValueError: a shape, a device or a number does not fit.
    """
    steps, masks, seed, first_step, update_rate, _ = updates
    told = c_rule(rule)
    check_rollout(state, parameters, rule)
    if state.device.type != "cpu" or (state.shape[2] + 2) * (state.shape[3] + 2) > _MOST_CELLS:
        _refuse_grid(state)
    if not (type(steps) is type(first_step) is int and 0 <= steps < 2**62 > first_step >= 0):
        check_steps(first_step, steps)
    if masks is not None:
        _check_masks(masks, steps, state.shape)
        masks = masks.contiguous()
    library = _library(state.dtype)
    tensors = []
    for tensor in (state, *parameters):
        tensors.append(tensor.detach().resolve_neg().contiguous())
    state, *weights = tensors
    memory = _Memory()
    result = torch.empty_like(state)
    batch, channels, height, width = state.shape
    call = _Call(batch, channels, weights[1].shape[0], height, width, steps, state.data_ptr())
    call.threads = reserved.get() or torch.get_num_threads()
    call.weight1, call.bias1 = weights[0].data_ptr(), weights[1].data_ptr()
    call.weight2 = weights[2].data_ptr()
    call.bias2 = weights[3].data_ptr() if rule.final_bias else None
    call.rule = told
    call.masks = None if masks is None else masks.data_ptr()
    call.random = seed is not None
    call.seed = seed or 0
    call.first_step = first_step
    call.limit = _limit(update_rate)
    call.largest_weight = MOST_WEIGHT
    if keep:
        call.allocate = _Allocate(memory.allocate)
        call.piece_bytes = _PIECE if updates.steps > 1 else _SINGLE_PIECE
    address = ctypes.c_void_p()
    status = library.fastnca_forward(ctypes.byref(call), result.data_ptr(), ctypes.byref(address))
    pieces = [memory.pieces[number] for number in range(len(memory.pieces))]
    kept = Kept(library, address.value, state, weights, pieces) if address.value else None
    if memory.failed:
        raise memory.failed[0]
    if status == _OUT_OF_RANGE:
        raise OutOfRangeError
    _check_status(status)
    return result, kept, pieces


def backward(
    kept: Kept,
    pieces: Sequence[Tensor],
    grad: Tensor,
    state_wanted: bool,
    weights_wanted: bool,
) -> Grads:
    """Differentiate a rollout.

    Args:
        kept: as `forward` returned it.
        pieces: the memory that came with it, or a copy.
        grad: `[B, C, H, W]`, gradient of the last state, any strides.
        state_wanted: whether the gradient of the first state is needed.
        weights_wanted: whether those of the parameters are.

    Returns:
        The gradients of the first state and of the parameters, None where not wanted. If
        `grad` is not finite they are all NaN, as the masks' 0·∞ makes them in the reference.

    Raises:
        MemoryError: memory ran out.
        ValueError: a shape, a dtype or a device does not fit.
    """
    if grad.shape != kept.shape or grad.dtype != kept.dtype or grad.device.type != "cpu":
        raise ValueError(
            f"the gradient of a rollout must be {list(kept.shape)} {kept.dtype} on cpu, got "
            f"{list(grad.shape)} {grad.dtype} on {grad.device}"
        )
    check_like(grad, grad, "the gradient")
    check_memory(grad, "the gradient")
    grad = dense(grad.detach())
    check_saved(pieces, kept.pieces)
    pieces = [_aligned(piece) for piece in pieces]
    state = torch.empty_like(grad) if state_wanted else None
    weights = [grad.new_empty(shape) for shape in kept.shapes if weights_wanted]
    status = kept.library.fastnca_backward(
        ctypes.byref(_call(grad.shape, kept.shapes[1][0])),
        kept.address,
        _addresses(pieces),
        grad.data_ptr(),
        None if state is None else state.data_ptr(),
        _addresses(weights) if weights else None,
    )
    grads: Grads = (state, *(weights or (None,) * len(kept.shapes)))
    if status == _OUT_OF_RANGE:
        for tensor in grads:
            if tensor is not None:
                tensor.fill_(math.nan)
    _check_status(status)
    return grads


def _refuse_grid(state: Tensor) -> NoReturn:
    """Say what the compiled functions cannot read of a state `[B, C, H, W]`."""
    if state.device.type != "cpu":
        raise ValueError(f"the cpp backend runs on a CPU, and the state is on {state.device}")
    height, width = state.shape[2:]
    raise ValueError(
        f"a grid of the cpp backend must have fewer than 2^31 cells, got {height}x{width}"
    )


def _check_masks(masks: Tensor, steps: int, shape: Sequence[int]) -> None:
    """Refuse masks that are not `[steps, B, H, W]` bool for states of `shape`."""
    check_like(masks, torch.empty(0, dtype=torch.bool, device="cpu"), "the masks")
    check_memory(masks, "the masks")
    expected = (steps, shape[0], shape[2], shape[3])
    if masks.shape != expected:
        raise ValueError(f"the masks must be {list(expected)}, got {list(masks.shape)}")


def _aligned(piece: Tensor) -> Tensor:
    """Return memory that a hook on saved tensors may have moved, as it was allocated."""
    check_memory(piece, "saved memory")
    piece = piece.contiguous()
    return piece if piece.data_ptr() % _ALIGNMENT == 0 else piece.clone()


def _new_piece(size: int) -> Tensor:
    """Allocate what is kept for the backward pass."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _call(shape: Sequence[int], hidden: int) -> _Call:
    """Return a call for states of a shape, as far as both directions need it."""
    batch, channels, height, width = shape
    return _Call(batch, channels, hidden, height, width, threads=thread_count())


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """Return a C array of where tensors lie."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _check_status(status: int) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError("memory ran out in a rollout of the cpp backend")
    if status == _DAMAGED:
        refuse_saved()
