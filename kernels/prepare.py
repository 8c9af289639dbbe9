"""What a rollout begins with: packed weights, cleared flags, and a counter in device memory."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tile import numbers_of
from .weights import FEATURES, Weights, first_layer, second_layer

USERS = ["w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr", "seed_ptr", "steps_ptr"]
"""Tensors of the caller's, which may begin at any number of their memory."""

PREPARE_BLOCK = 1024
MAX_PREPARE_PROGRAMS = 1024


@triton.jit(
    do_not_specialize=["seed", "first_step", "steps", "words", "channels", "outputs", "hidden"],
    do_not_specialize_on_alignment=USERS,
)
def _prepare_rollout_kernel(
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    weights_ptr,
    flags_ptr,
    counter_ptr,
    seed_ptr,
    steps_ptr,
    seed: tl.int64,
    first_step: tl.int64,
    steps: tl.int64,
    words: tl.int64,
    channels,
    outputs,
    hidden,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    RULE: tl.constexpr,
    COUNTER: tl.constexpr,
    SEED_GIVEN: tl.constexpr,
    STEPS_GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare a rollout: pack the parameters, clear the flags, write the counter.

    Pointers are the tensors of `prepare_rollout`; a seed or steps that are GIVEN are read.
    """
    dtype: tl.constexpr = weights_ptr.dtype.element_ty
    program, programs = tl.program_id(0), tl.num_programs(0)
    for block in tl.range(program, tl.cdiv(words, BLOCK), programs):
        word = numbers_of(block, BLOCK)
        tl.store(flags_ptr + word, tl.zeros((BLOCK,), tl.int64), mask=word < words)
    for block in tl.range(program, tl.cdiv(4 * CHANNELS * HIDDEN, BLOCK), programs):
        index = block * BLOCK + tl.arange(0, BLOCK)
        unit, row = index % HIDDEN, index // HIDDEN
        weight = first_layer(w1_ptr, b1_ptr, row, unit, (channels, hidden), RULE, dtype)
        tl.store(weights_ptr + index, weight, mask=row < 4 * CHANNELS)
    second_ptr = weights_ptr + 4 * CHANNELS * HIDDEN
    for block in tl.range(program, tl.cdiv(CHANNELS * HIDDEN, BLOCK), programs):
        index = block * BLOCK + tl.arange(0, BLOCK)
        unit, channel = index // CHANNELS, index % CHANNELS
        weight = second_layer(w2_ptr, unit, channel, outputs, hidden, dtype)
        tl.store(second_ptr + index, weight, mask=unit < HIDDEN)
    if program == 0:
        biases_ptr = (second_ptr + CHANNELS * HIDDEN).to(tl.pointer_type(tl.float32))
        if RULE.final_bias:
            channel = tl.arange(0, CHANNELS)
            bias2 = tl.load(b2_ptr + channel, mask=channel < outputs, other=0.0)
            tl.store(biases_ptr + channel, bias2)
        if not RULE.bias_is_feature:
            unit = tl.arange(0, HIDDEN)
            bias1 = tl.load(b1_ptr + unit, mask=unit < hidden, other=0.0)
            tl.store(biases_ptr + CHANNELS + unit, bias1)
        if COUNTER:
            if SEED_GIVEN:
                seed = tl.load(seed_ptr)
            if STEPS_GIVEN:
                steps = tl.minimum(tl.load(steps_ptr), steps)
            number = tl.arange(0, 4)
            value = tl.where(number == 0, seed, tl.where(number == 1, first_step, steps))
            tl.store(counter_ptr + number, value.to(tl.int64), mask=number < 3)


def prepare_rollout(
    parameters: tuple[Tensor, ...],
    weights: Weights,
    counter: Tensor,
    numbers: tuple[int | Tensor, int, int, Tensor | None] | None,
    flags: Tensor | None = None,
) -> None:
    """Prepare a rollout in one launch: pack the parameters, write the counter, clear the flags.

    Args:
        parameters: weight and bias of the two 1x1 convolutions, `[hidden, K*C, 1, 1]`,
            `[hidden]`, `[outputs, hidden, 1, 1]` and, if the rule has it, `[outputs]`, float32.
        weights: written.
        counter: `[3]` int64: seed, number of the first step, number of steps.
        numbers: what to write into `counter`: the seed's 64 bits as a signed number or a tensor
            `[]` int64 that is read on the device; the first step; the most steps; and the number
            of steps as such a tensor, or None if it is the most. None leaves `counter` as it is.
        flags: int64; set to zero.
    """
    w1, b1, w2, *rest = (parameter.resolve_neg().contiguous() for parameter in parameters)
    b2 = rest[0] if rest else b1
    seed, first_step, steps, count = (0, 0, 0, None) if numbers is None else numbers
    given, key = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
    words = 0 if flags is None else flags.numel()
    cleared = counter if flags is None else flags
    sources = (counter if each is None else each for each in (given, count))
    read = (numbers is not None, given is not None, count is not None)
    rule, (outputs, hidden) = weights.rule, w2.shape[:2]
    channels = w1.shape[1] // len(rule.filters)
    elements = FEATURES * weights.channels * weights.hidden
    blocks = max(-(-words // PREPARE_BLOCK), elements // PREPARE_BLOCK)
    launch(
        _prepare_rollout_kernel,
        min(blocks, MAX_PREPARE_PROGRAMS),
        (w1, b1, w2, b2, weights.packed, cleared, counter, *sources),
        (key, first_step, steps, words, channels, outputs, hidden),
        (weights.channels, weights.hidden, rule, *read, PREPARE_BLOCK),
        num_warps=4,
    )
