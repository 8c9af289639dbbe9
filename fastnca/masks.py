"""The update mask (E4): which cells take part in a step, a pure function of seed, step and cell.

The bits come from Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), so every backend, a recomputation in the backward pass and a resumed run draw the same.

Cell n = (b*H + y)*W + x of step t reads word n mod 4 of

    philox(counter = (n div 4 mod 2³², n div 4 div 2³², t mod 2³², t div 2³²), key = seed)

and updates when the word's upper 24 bits, as an integer, are below round(update_rate * 2²⁴).
The comparison is exact in integers: rate 0 updates no cell and rate 1 every cell.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_BITS = 24
_CHUNK = 1 << 16  # counters at once: enough for two threads, little enough for the cache
_MASK_BYTES = 1 << 22  # masks drawn ahead of the steps that use them


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Tensor:
    """Compute Philox 4x32-10 in 64-bit integer arithmetic.

    Args:
        counter: four int64 tensors of one shape (or broadcastable), values in [0, 2³²).
        seed: the 64-bit key; its low word is key 0, its high word key 1.

    Returns:
        `[..., 4]` int64, the four output words in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # The shift is arithmetic and c1, c3 carry stale upper halves: both are cut off here,
        # where the next product needs a clean 32-bit operand.
        c0 = (product1 >> 32).bitwise_xor(c1).bitwise_xor_(key0).bitwise_and_(_LOW)
        c2 = (product0 >> 32).bitwise_xor(c3).bitwise_xor_(key1).bitwise_and_(_LOW)
        c1, c3 = product1, product0
        key0, key1 = (key0 + _KEY_STEPS[0]) & _LOW, (key1 + _KEY_STEPS[1]) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1 & _LOW, c2, c3 & _LOW), dim=-1)


def draw_seed(generator: torch.Generator | None = None) -> int:
    """Draw a seed in [0, 2⁶³) from `generator`, or from torch's default CPU generator."""
    if generator is None:
        return torch.randint(2**63 - 1, ()).item()  # type: ignore[return-value]
    return int(torch.randint(2**63 - 1, (), generator=generator, dtype=torch.int64))


def check_seed(seed: int) -> int:
    """Return `seed` modulo 2⁶⁴.

    Raises:
        TypeError: the seed is not an int.
        ValueError: the seed is not in [-2⁶³, 2⁶⁴).
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit 64 bits, got {seed}")
    # no arithmetic beyond 64 bits where nothing has to change: `torch.compile` may trace the seed
    return seed if seed >= 0 else seed + 2**64


def check_seed_tensor(seed: Tensor) -> Tensor:
    """Return `seed`, a tensor with one integer.

    Raises:
        TypeError: it does not hold integers.
        ValueError: it does not hold one number.
    """
    if seed.dtype.is_floating_point or seed.dtype.is_complex or seed.dtype is torch.bool:
        raise TypeError(f"seed must be an int or an int64 tensor, got a tensor of {seed.dtype}")
    if seed.numel() != 1:
        raise ValueError(f"seed must hold one number, got shape {list(seed.shape)}")
    return seed


def check_update_rate(update_rate: float) -> float:
    """Return `update_rate`.

    Raises:
        ValueError: the rate is not a number in [0, 1].
    """
    if not 0.0 <= update_rate <= 1.0:
        raise ValueError(
            "update_rate is the probability that a cell updates and must be in [0, 1], "
            f"got {update_rate}"
        )
    return update_rate


def threshold(update_rate: float) -> int:
    """Return the exclusive limit, in [0, 2²⁴], below which a word's upper 24 bits mean "update"."""
    return round(check_update_rate(update_rate) * (1 << _BITS))


def update_masks(
    seed: int,
    first_step: int,
    steps: int,
    shape: Sequence[int],
    update_rate: float,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the masks of several steps.

    Args:
        seed: 64-bit seed.
        first_step: number of the first step, at least 0.
        steps: number of steps T, at least 0.
        shape: `(B, any, H, W)`, for instance a state's shape.
        update_rate: probability that a cell updates, in [0, 1].
        device: where the masks are made; torch's default device if None.

    Returns:
        `[T, B, H, W]` bool, True where the cell updates.

    Raises:
        TypeError: the seed is not an int.
        ValueError: a value is out of range or the shape does not have four dimensions.
    """
    if len(shape) != 4:
        raise ValueError(f"shape must be (batch, channels, height, width), got {tuple(shape)}")
    if first_step < 0 or steps < 0:
        raise ValueError(f"steps are counted from 0, got first step {first_step}, {steps} steps")
    seed, limit = check_seed(seed), threshold(update_rate)
    batch, height, width = shape[0], shape[2], shape[3]
    masks = torch.empty(steps, batch * height * width, dtype=torch.bool, device=device)
    if 0 < limit < 2**_BITS:
        _fill(masks, seed, first_step, limit << (32 - _BITS))
    else:
        masks.fill_(limit > 0)
    return masks.view(steps, batch, height, width)


def _fill(masks: Tensor, seed: int, first_step: int, limit: int) -> None:
    """Write the masks of consecutive steps into `masks` `[T, cells]`; words below `limit` update.

    Counters of one chunk differ by step along the first axis and by cell along the second, so
    the two first rounds of Philox broadcast.
    """
    steps, cells = masks.shape
    columns = min(_CHUNK, max(1, -(-cells // 4)))
    rows = max(1, _CHUNK // columns)
    for first in range(0, steps, rows):
        last = min(first + rows, steps)
        step = torch.arange(first_step + first, first_step + last, device=masks.device)[:, None]
        for start in range(0, cells, 4 * columns):
            stop = min(start + 4 * columns, cells)
            quad = torch.arange(start // 4, -(-stop // 4), device=masks.device)
            words = philox((quad & _LOW, quad >> 32, step & _LOW, step >> 32), seed)
            update = words.view(last - first, -1) < limit
            masks[first:last, start:stop] = update[:, : stop - start]


def iterate_masks(
    seed: int,
    first_step: int,
    steps: int,
    shape: Sequence[int],
    update_rate: float,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Yield the masks of `update_masks` one step at a time, `[B, H, W]` bool, in bounded memory."""
    together = max(1, _MASK_BYTES // max(1, shape[0] * shape[2] * shape[3]))
    for start in range(0, steps, together):
        count = min(together, steps - start)
        yield from update_masks(seed, first_step + start, count, shape, update_rate, device)


def update_mask(
    seed: int,
    step: int,
    shape: Sequence[int],
    update_rate: float,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the mask of one step; identical bits on every backend and device.

    Args:
        seed: 64-bit seed.
        step: number of the step, at least 0.
        shape: `(B, any, H, W)`, for instance a state's shape.
        update_rate: probability that a cell updates, in [0, 1].
        device: where the mask is made; torch's default device if None.

    Returns:
        `[B, 1, H, W]` bool, True where the cell updates.

    Raises:
        TypeError: the seed is not an int.
        ValueError: a value is out of range or the shape does not have four dimensions.
    """
    return update_masks(seed, step, 1, shape, update_rate, device).transpose(0, 1)


def signed(seed: int) -> int:
    """Return the 64 bits of a seed as a signed number."""
    return seed if -(2**63) <= seed < 2**63 else (seed + 2**63) % 2**64 - 2**63


def make_counter(
    seed: int | Tensor | None,
    first_step: int,
    steps: int,
    device_steps: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Return what kernels and operators count by: `[3]` int64 on `device`.

    Args:
        seed: 64-bit seed, or a tensor with one number; None stands for masks that are not drawn.
        first_step: number of the first step.
        steps: the most steps.
        device_steps: a tensor with the number of steps, if that is less; None takes all.
        device: where the numbers lie.

    Returns:
        The seed as a signed number, the number of the first step, the number of steps.
    """
    numbers = (signed(seed) if isinstance(seed, int) else 0, first_step, steps)
    if not isinstance(seed, Tensor) and device_steps is None and not torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)
    scalars = [torch.full((), number, dtype=torch.int64, device=device) for number in numbers]
    if isinstance(seed, Tensor):
        scalars[0] = seed.reshape(())
    if device_steps is not None:
        scalars[2] = torch.minimum(device_steps.reshape(()), scalars[2])
    return torch.stack(scalars)


class Updates(NamedTuple):
    """Which cells update in consecutive steps.

    Attributes:
        steps: number of steps T.
        given: `[T, B, H, W]` bool, the masks; None draws them.
        seed: 64-bit seed of masks that are drawn, an int or a tensor with one integer; None updates
            every cell.
        first_step: number of the first step, for masks that are drawn.
        update_rate: probability in [0, 1] that a cell updates, for masks that are drawn.
        device_steps: tensor with one integer, how many of the `steps` are taken; None takes all.
    """

    steps: int
    given: Tensor | None = None
    seed: int | Tensor | None = None
    first_step: int = 0
    update_rate: float = 1.0
    device_steps: Tensor | None = None

    def on_host(self) -> "Updates":
        """Return the same with plain numbers: reads what is a tensor."""
        count = self.device_steps
        steps = self.steps if count is None else min(self.steps, max(int(count), 0))
        seed = int(self.seed) if isinstance(self.seed, Tensor) else self.seed
        return self._replace(steps=steps, seed=seed, device_steps=None)

    def masks(self, state: Tensor) -> Iterator[Tensor | None]:
        """Yield the mask of each step for a state `[B, C, H, W]`; None where every cell updates.

        The seed and the number of steps are plain numbers.
        """
        if self.given is not None:
            yield from self.given
        elif self.seed is None:
            yield from [None] * self.steps
        else:
            yield from iterate_masks(
                int(self.seed),
                self.first_step,
                self.steps,
                state.shape,
                self.update_rate,
                state.device,
            )
