"""What is measured: cases as data.

A case is a mode at a grid size, batch, number of steps and kind of state. The lists below are the
sets that `python -m bench run` offers; `QUICK` and `CLAIMS` are part of `FULL`, so that a short run
can be compared with a long one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MODES = ("step", "step+backward", "rollout", "rollout+backward", "training", "inference")
"""step: one call in training mode. rollout: `steps` steps in training mode. +backward: with the
loss of the circle and its gradient. training: one iteration of the pool trainer with Adam.
inference: `steps` steps in eval mode, without gradient, where every cell updates."""

STATES = ("fresh", "grown", "full", "lizard", "texture")
"""fresh: seeds. grown: 73 % alive. full: alive everywhere. lizard: a published pattern, grown for
200 steps. texture: the texture rule, which has 12 channels and tests no cell for life. See
`bench/models.py`."""

FORWARD_FLOP = 16_384
"""Floating-point operations of one step of one cell, 2 (48 * 128 + 128 * 16)."""

TEXTURE_FLOP = 11_520
"""The same of the texture rule, 2 (48 * 96 + 96 * 12)."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        mode: one of `MODES`.
        size: height and width of the grid in cells.
        batch: number of states.
        steps: steps per run; 1 in the step modes.
        state: one of `STATES`.
        compiled: False leaves `torch.compile` out unless it is asked for by name, because every
            case costs it tens of seconds of compilation.
        looks: how many times a run comes to the case, minutes apart. The rounds of one look fall
            into the same minute, so their spread does not show what a machine that others share
            does over a quarter of an hour.

    Raises:
        ValueError: a field is out of range.
    """

    mode: str
    size: int
    batch: int
    steps: int
    state: str
    compiled: bool = False
    looks: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {self.state!r}")
        if min(self.size, self.batch, self.steps) < 1:
            raise ValueError(
                f"size, batch and steps must be at least 1, got {self.size}, {self.batch}, "
                f"{self.steps}"
            )
        if self.mode.startswith("step") and self.steps != 1:
            raise ValueError(f"mode {self.mode!r} has 1 step, got {self.steps}")

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read `MODE:SIZE:BATCH:STEPS:STATE`, for instance `rollout:64:4:80:grown`.

        Raises:
            ValueError: the text has another form, or a field is out of range.
        """
        fields = text.split(":")
        if len(fields) != 5 or not all(field.isdecimal() for field in fields[1:4]):
            raise ValueError(f"a case is MODE:SIZE:BATCH:STEPS:STATE, got {text!r}")
        return cls(fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[4])

    def __str__(self) -> str:
        return f"{self.mode}:{self.size}:{self.batch}:{self.steps}:{self.state}"

    @property
    def cells(self) -> int:
        """Cells of the whole batch."""
        return self.size * self.size * self.batch

    @property
    def cell_steps(self) -> int:
        """Cells times steps."""
        return self.cells * self.steps

    @property
    def with_gradient(self) -> bool:
        """Whether a run differentiates."""
        return self.mode == "training" or self.mode.endswith("+backward")

    @property
    def channels(self) -> int:
        """Channels of a state."""
        return 12 if self.state == "texture" else 16

    @property
    def flop(self) -> int:
        """Floating-point operations of a run that evaluates every cell, without recomputation.

        The backward pass has twice as many as the forward.
        """
        forward = TEXTURE_FLOP if self.state == "texture" else FORWARD_FLOP
        return self.cell_steps * forward * (3 if self.with_gradient else 1)

    @property
    def least_bytes(self) -> int:
        """Bytes that a run must move if each step reads and writes each float32 state once.

        Forward: state in, state out. Backward: kept state and gradient in, gradient out.
        """
        return self.cell_steps * 4 * self.channels * (5 if self.with_gradient else 2)


def both(mode: str, size: int, batch: int, steps: int, compiled: bool = False) -> list[Case]:
    """Return the case from seeds and from grown states."""
    return [Case(mode, size, batch, steps, state, compiled) for state in ("fresh", "grown")]


def unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Return the cases in order, each once; the first of two that differ in the rest stays."""
    found: dict[str, Case] = {}
    for case in cases:
        found.setdefault(str(case), case)
    return tuple(found.values())


def schedule(cases: Iterable[Case]) -> Iterator[tuple[int, Case]]:
    """Go through all cases, then again through those with more looks; yield look and case."""
    left, look = list(cases), 0
    while left:
        yield from ((look, case) for case in left)
        look += 1
        left = [case for case in left if case.looks > look]


CLAIMS = unique(
    Case(mode, 64, 4, 80, state, compiled=True, looks=3)
    for mode in ("rollout+backward", "inference", "training")
    for state in ("fresh", "grown", "lizard")
)
"""The cases that the package was built for: the tutorial's training loop and its pictures."""

TEXTURES = unique(
    Case("rollout+backward", size, batch, steps, "texture", compiled=True)
    for size, batch, steps in ((96, 4, 32), (128, 4, 64), (96, 1, 64))
)
"""A rule under which every cell lives, so that only the update mask saves work."""

QUICK = unique(
    [
        Case("rollout+backward", 64, 4, 80, "fresh"),
        Case("rollout+backward", 64, 4, 80, "grown", compiled=True),
        *both("inference", 64, 4, 80),
        *both("training", 64, 4, 80),
        Case("step", 64, 4, 1, "grown"),
        Case("step+backward", 64, 4, 1, "grown"),
        Case("rollout", 64, 4, 80, "grown"),
        *(Case("rollout+backward", size, 1, 8, "grown") for size in (16, 64, 256)),
        Case("rollout+backward", 64, 16, 8, "grown"),
        Case("rollout+backward", 64, 4, 8, "grown"),
        Case("inference", 64, 4, 80, "full"),
    ]
)
"""One look at everything in less than three minutes on two CPU cores."""

SIZES = (16, 32, 64, 128, 256, 512, 1024)
BATCHES = (1, 4, 16, 64, 256, 1024)
STEPS = (1, 8, 32, 80, 96)

FULL = unique(
    [
        *CLAIMS,
        *TEXTURES,
        Case("step", 64, 4, 1, "fresh"),
        Case("step", 64, 4, 1, "grown", compiled=True),
        Case("step+backward", 64, 4, 1, "fresh"),
        Case("step+backward", 64, 4, 1, "grown", compiled=True),
        *both("rollout", 64, 4, 80),
        Case("inference", 64, 1, 200, "fresh"),
        Case("inference", 64, 1, 200, "grown", compiled=True),
        Case("rollout+backward", 64, 4, 80, "full"),
        Case("inference", 64, 4, 80, "full"),
        Case("inference", 16, 1, 200, "grown"),
        Case("inference", 512, 1, 20, "fresh"),
        Case("inference", 512, 1, 20, "full"),
        *(Case("rollout+backward", size, 1, 8, "grown") for size in SIZES),
        *(Case("rollout+backward", size, 1, 8, "fresh") for size in (16, 64, 256)),
        *(Case("rollout+backward", 64, batch, 8, "grown") for batch in BATCHES),
        *(Case("rollout+backward", 64, 4, steps, "grown") for steps in STEPS),
        *QUICK,
    ]
)
"""Every mode at the tutorial's size, and sweeps over grid size, batch and steps."""

LARGE = unique(
    case
    for size, batch in ((64, 8), (64, 32), (64, 64), (64, 256), (256, 8))
    for case in both("rollout+backward", size, batch, 96, True)
)
"""What a GPU is for; part of the full run on CUDA only."""
