"""Every random choice of an iteration, drawn on the host before the device starts on it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastnca.masks import draw_seed
from fastnca.training.config import TrainConfig
from fastnca.training.damage import draw_discs

_SPREAD = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: seeds of neighbouring ranks lie far apart
_BRANCH = 0xD1B54A32D192ED03  # odd, of no relation to it


@dataclass(frozen=True)
class Draw:
    """What is left to chance in one iteration.

    Attributes:
        slots: `[B]` int64 on the CPU, slots of the pool; empty without a pool.
        centers: `[damage, 2]` float32 on the CPU, centres of the discs that are cut out.
        radii: `[damage]` float32 on the CPU; a disc of radius 0 covers no cell.
        spares: `[]` bool on the CPU, whether the pool keeps the states that are to be spared.
        steps: steps of the rollout.
        seed: of the update masks, in [0, 2⁶³).
        count: None takes all steps; else `[]` int64, how many of them are taken. A draw that has
            it lies on the training device, its seed, `[]` int64, and all other tensors too.
    """

    slots: Tensor
    centers: Tensor
    radii: Tensor
    spares: Tensor
    steps: int
    seed: int | Tensor
    count: Tensor | None = None


class Randomness:
    """Source of draws.

    Each process has a generator of its own for slots, discs and masks. The number of steps comes
    from a generator that is equal in all of them, so that none waits for a longer rollout; with
    one process both are the same generator.

    Args:
        config: the options; `seed` None draws everything from torch's default generator.
        slots: slots of this process's pool.
        rank: number of this process.
        processes: how many there are.
    """

    def __init__(self, config: TrainConfig, slots: int, rank: int = 0, processes: int = 1) -> None:
        self._config = config
        self._slots = slots
        self._generators: list[torch.Generator] = []
        if config.seed is not None:
            seeds = [config.seed] if processes == 1 else [config.seed + (rank + 1) * _SPREAD]
            seeds += [] if processes == 1 else [config.seed]
            self._generators = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]
        self._ahead: Draw | None = None
        self._before_ahead: list[Tensor] = []

    def next(self) -> Draw:
        """Return the draw of the next iteration."""
        draw, self._ahead = self._ahead, None
        return self._make() if draw is None else draw

    def peek(self) -> Draw:
        """Return the draw that `next` will return."""
        if self._ahead is None:
            self._before_ahead = self._read()
            self._ahead = self._make()
        return self._ahead

    def rewind(self) -> None:
        """Take back a draw that was peeked at and not used."""
        if self._ahead is not None:
            self._ahead = None
            self.restore(self._before_ahead)

    def state(self) -> list[Tensor]:
        """Return the generators' states, `[n]` uint8 each, as before the next draw."""
        return self._read() if self._ahead is None else self._before_ahead

    def restore(self, states: list[Tensor]) -> None:
        """Put back what `state` returned."""
        self._ahead = None
        for generator, state in zip(self._generators, states, strict=False):
            generator.set_state(state)
        if not self._generators:
            torch.set_rng_state(states[0])

    def branch(self, number: int) -> None:
        """Go on with random numbers that no run with another number of processes has drawn."""
        self._ahead = None
        for generator in self._generators:
            generator.manual_seed((generator.initial_seed() + (number + 1) * _BRANCH) % 2**64)

    def _read(self) -> list[Tensor]:
        return [g.get_state() for g in self._generators] or [torch.get_rng_state()]

    def _make(self) -> Draw:
        config = self._config
        own = self._generators[0] if self._generators else None
        shared = self._generators[-1] if self._generators else None
        slots = torch.zeros(0, dtype=torch.int64)
        if config.use_pool:
            slots = draw_slots(self._slots, config.batch_size, config.replacement, own)
        centers, radii = draw_discs(config.damage, config.damage_radius, config.damage_offset, own)
        if config.damage and config.damage_rate < 1:
            radii = radii * (torch.rand(config.damage, generator=own) < config.damage_rate)
        steps = int(torch.randint(config.min_steps, config.max_steps, (), generator=shared))
        spares = torch.tensor(config.reseed_spare > 0)
        return Draw(slots, centers, radii, spares, steps, draw_seed(own))


def draw_slots(
    size: int, count: int, replacement: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Draw slots of a pool, in a time that does not depend on the pool's size.

    Args:
        size: slots of the pool.
        count: how many to draw.
        replacement: True may draw a slot more than once.
        generator: CPU generator; torch's default one if None.

    Returns:
        `[count]` int64 on the CPU.

    Raises:
        ValueError: more slots than there are are wanted without replacement.
    """
    if replacement:
        return torch.randint(0, size, (count,), generator=generator)
    if count > size:
        raise ValueError(f"cannot draw {count} of {size} states without replacement")
    return _without_replacement(size, count, generator)


def _without_replacement(size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw different numbers below `size` (R. Floyd's algorithm, CACM 30:754, 1987)."""
    words = torch.randint(0, 2**63 - 1, (count,), generator=generator).tolist()
    chosen: dict[int, None] = {}  # ordered
    for last, word in zip(range(size - count, size), words, strict=True):
        number = word % (last + 1)
        chosen[last if number in chosen else number] = None
    return torch.tensor(list(chosen), dtype=torch.int64)
