"""Every random choice of an iteration, drawn on the host before the device starts on it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastnca.masks import draw_seed
from fastnca.states import disc
from fastnca.training.config import TrainConfig

_SPREAD = 0x9E3779B97F4A7C15  # 2⁶⁴ / golden ratio: seeds of neighbouring ranks lie far apart
_RESEED = 0xD1B54A32D192ED03  # odd, of no relation to it


@dataclass(frozen=True)
class IterationDraw:
    """What is left to chance in one iteration.

    Attributes:
        slots: `[B]` int64 on the CPU, slots of the pool. Without a pool they are numbers of
            seeds, and empty if there is one seed.
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


class IterationSampler:
    """Source of draws.

    Each process has a generator of its own for slots, discs and masks. The number of steps comes
    from a generator that is equal in all of them, so that none waits for a longer rollout; with
    one process both are the same generator.

    Args:
        config: the options; `seed` None draws everything from torch's default generator.
        slots: slots of this process's pool, or seeds if there is no pool.
        rank: number of this process.
        world_size: how many there are.
    """

    def __init__(self, config: TrainConfig, slots: int, rank: int = 0, world_size: int = 1) -> None:
        self._config = config
        self._slots = slots
        self._generators: list[torch.Generator] = []
        if config.seed is not None:
            seeds = [config.seed] if world_size == 1 else [config.seed + (rank + 1) * _SPREAD]
            seeds += [] if world_size == 1 else [config.seed]
            self._generators = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]
        self._ahead: IterationDraw | None = None
        self._before_ahead: list[Tensor] = []

    def next(self) -> IterationDraw:
        """Return the draw of the next iteration."""
        draw, self._ahead = self._ahead, None
        return self._make() if draw is None else draw

    def peek(self) -> IterationDraw:
        """Return the draw that `next` will return."""
        if self._ahead is None:
            self._before_ahead = self._read()
            self._ahead = self._make()
        return self._ahead

    def rewind(self) -> None:
        """Take back a draw that was peeked at and not used."""
        if self._ahead is not None:
            self.load_state(self._before_ahead)

    def state(self) -> list[Tensor]:
        """Return the generators' states, `[n]` uint8 each, as before the next draw."""
        return self._read() if self._ahead is None else self._before_ahead

    def load_state(self, states: list[Tensor]) -> None:
        """Put back what `state` returned."""
        self._ahead = None
        for generator, state in zip(self._generators, states, strict=False):
            generator.set_state(state)
        if not self._generators:
            torch.set_rng_state(states[0])

    def reseed(self, number: int) -> None:
        """Go on with random numbers that no run with another number of processes has drawn."""
        self._ahead = None
        for generator in self._generators:
            generator.manual_seed((generator.initial_seed() + (number + 1) * _RESEED) % 2**64)

    def _read(self) -> list[Tensor]:
        return [g.get_state() for g in self._generators] or [torch.get_rng_state()]

    def _make(self) -> IterationDraw:
        config = self._config
        own = self._generators[0] if self._generators else None
        shared = self._generators[-1] if self._generators else None
        slots = torch.zeros(0, dtype=torch.int64)
        if config.use_pool or self._slots > 1:
            replacement = config.replacement or not config.use_pool
            slots = draw_slots(self._slots, config.batch_size, replacement, own)
        centers, radii = draw_discs(config.damage, config.damage_radius, config.damage_offset, own)
        if config.damage and config.damage_rate < 1:
            radii = radii * (torch.rand(config.damage, generator=own) < config.damage_rate)
        steps = int(torch.randint(config.min_steps, config.max_steps, (), generator=shared))
        spares = torch.tensor(config.reseed_spare > 0)
        return IterationDraw(slots, centers, radii, spares, steps, draw_seed(own))


def adapt(draw: IterationDraw, config: TrainConfig, iteration: int) -> IterationDraw:
    """Return a draw with the steps, the damage and the spared states of that iteration.

    Args:
        draw: what was drawn.
        config: the options.
        iteration: iterations done before.

    Returns:
        A draw with the same slots and seed; discs of radius 0 cover no cell.
    """
    if iteration < config.ramp:
        share = config.ramp_from + (1 - config.ramp_from) * iteration / config.ramp
        draw = replace(draw, steps=max(config.loss_steps, round(draw.steps * share)))
    if iteration < config.damage_start:
        draw = replace(
            draw, radii=torch.zeros_like(draw.radii), spares=torch.zeros_like(draw.spares)
        )
    return draw


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
    # R. Floyd's algorithm, CACM 30:754, 1987
    words = torch.randint(0, 2**63 - 1, (count,), generator=generator).tolist()
    chosen: dict[int, None] = {}  # ordered
    for last, word in zip(range(size - count, size), words, strict=True):
        number = word % (last + 1)
        chosen[last if number in chosen else number] = None
    return torch.tensor(list(chosen), dtype=torch.int64)


def draw_discs(
    count: int,
    radius: tuple[float, float],
    offset: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw random discs, in half-widths of the grid.

    Centres are uniform in [-offset, offset]², radii between two given. The Distill article's
    notebook has radii of 0.1 to 0.4 and an offset of 0.5.

    Args:
        count: number of discs; 0 draws no random number.
        radius: smallest and largest radius.
        offset: largest distance of a centre from that of the grid, along each axis.
        generator: CPU generator; torch's default one if None.

    Returns:
        Centres `[count, 2]` and radii `[count]`, float32 on the CPU.
    """
    if count == 0:
        return torch.zeros(0, 2), torch.zeros(0)
    centers = (torch.rand(count, 2, generator=generator) - 0.5) * (2 * offset)
    smallest, largest = radius
    return centers, smallest + (largest - smallest) * torch.rand(count, generator=generator)


def cut_discs(states: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    """Zero one disc in each state.

    Args:
        states: `[B, C, H, W]`.
        centers: `[B, 2]`, as `fastnca.states.disc` takes them, on the states' device.
        radii: `[B]`, there too.

    Returns:
        `[B, C, H, W]`, a new tensor.
    """
    cut = disc(states.shape[2], states.shape[3], centers, radii)
    return states.masked_fill(cut[:, None], 0.0)


def to_device_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to a device without waiting for it; one that is there stays."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
