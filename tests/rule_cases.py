"""Rules to compare backends on: those of published works, and generated ones."""

import random
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from fastnca.rule import ACTIVATIONS, ALIVE, FILTERS, PADDINGS, RULES, Rule, Taps

LARGE = ((5, 7), (8, 9), (6, 3), (3, 3))
SMALL = ((2, 3), (1, 5), (1, 1), (2, 2), (4, 1))
SHARES = (0.1, 0.4, 1.0)


@dataclass(frozen=True)
class Grid:
    """What a rule is tried on.

    Attributes:
        size: height and width.
        batch: number of states B.
        share: part of the cells that are not zero.
        steps: number of steps.
        training: whether the cells that update are drawn; otherwise all do.
    """

    size: tuple[int, int]
    batch: int
    share: float
    steps: int
    training: bool


@dataclass(frozen=True)
class Case:
    """A rule to try.

    Attributes:
        name: of the test.
        rule: the rule.
        channels: channels C of the state, those that are only read included.
        number: seed of weights, states and masks; sizes take turns with it.
    """

    name: str
    rule: Rule
    channels: int
    number: int

    def grids(self) -> list[Grid]:
        """Return a large and a small grid, each in both modes."""
        number = self.number
        small = [size for size in SMALL if self.rule.padding != "reflect" or min(size) > 1]
        sizes = LARGE[number % len(LARGE)], small[number % len(small)]
        shares = SHARES[number // 2 % len(SHARES)], 1.0
        return [
            Grid(size, 1 + number % 3, share, 2 + number % 4, training)
            for size, share in zip(sizes, shares, strict=True)
            for training in (True, False)
        ]

    def weights(self) -> dict[str, Tensor]:
        """Draw a state dict of float64; learned filters move away from their first values."""
        rule, draws = self.rule, torch.Generator().manual_seed(self.number)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws, dtype=torch.float64)

        taps = torch.tensor(rule.taps, dtype=torch.float64)
        taps = taps.repeat(self.channels, 1, 1)[:, None]
        if rule.learn_filters:
            taps = taps + 0.2 * draw(*taps.shape)
        weights = {"perception.filters": taps}
        widths = (taps.shape[0], *rule.hidden, self.channels - rule.inputs)
        for layer, (before, after) in enumerate(pairwise(widths)):
            name = f"update_net.{2 * layer}"
            weights[f"{name}.weight"] = draw(after, before, 1, 1) / before**0.5
            if rule.final_bias or layer < len(rule.hidden):
                weights[f"{name}.bias"] = 0.2 * draw(after)
        return weights

    def state(self, grid: Grid) -> Tensor:
        """Draw a state `[B, C, H, W]` of float64: alpha at least 0, inputs in every cell."""
        draws = torch.Generator().manual_seed(self.number + 1)
        shape = (grid.batch, self.channels, *grid.size)
        there = torch.rand(grid.batch, 1, *grid.size, generator=draws) < grid.share
        state = torch.randn(shape, generator=draws, dtype=torch.float64)
        state[:, : self.channels - self.rule.inputs] *= there
        state[:, 3:4].abs_()
        return state


def scaled(name: str, factor: float) -> Taps:
    """Return a named filter times `factor`."""
    return tuple(tuple(tap * factor for tap in row) for row in FILTERS[name])


X8, Y8, LAPLACIAN8 = scaled("sobel_x", 8), scaled("sobel_y", 8), scaled("laplacian", 8)
X16, Y16 = scaled("sobel_x", 0.5), scaled("sobel_y", 0.5)
SUM_OF_ONE = ((1, 2, 1), (2, -11, 2), (1, 2, 1))  # ARC-NCA's Laplacian
TEXTURE = RULES["texture"]
BANK = TEXTURE.filters
UNSCALED = ("identity", X8, Y8, LAPLACIAN8)
FREE = ("identity", "sobel_x", "sobel_y")  # first values of learned filters

PUBLISHED: dict[str, tuple[Rule, int]] = {
    # Each comment names what of the work a rule does not say; rate and grid are no part of it.
    "GROW growing": (Rule(), 16),
    "ATTR attractors": (Rule(), 16),  # rate 1
    "IDENT identity": (Rule(), 17),
    "TEX self-organising textures": (TEXTURE, 12),
    # 8-bit weights and states, of which the clamp stays
    "TEXTF quantised textures": (replace(TEXTURE, clamp=(-2, 2), final_bias=True), 12),
    # |x| between perception and the only layer
    "MUNCA micro": (Rule(BANK, padding="circular", alive="none", hidden=()), 4),
    "NOISEC noise-controlled": (TEXTURE, 12),  # noise in the first state
    # two grafted rules
    "GRAFT grafting": (replace(TEXTURE, filters=UNSCALED), 12),
    "GOAL goal-guided": (  # the goal's encoding is added to hidden channels
        Rule(FREE, True, hidden=(64, 64), final_bias=False, clamp=(-10, 10)),
        20,
    ),
    "A3D Minecraft": (Rule(FREE, True, hidden=(64, 64)), 16),  # 3D
    "JNCA jax-nca": (Rule(), 16),  # its Sobel kernels add up all channels
    "DYN dynamic textures": (  # several scales
        replace(TEXTURE, filters=UNSCALED, padding="replicate", inputs=2),
        14,
    ),
    "NOISE noise-seeded": (  # per-cell scale of the filters
        replace(TEXTURE, filters=UNSCALED, step_size=0.5),
        12,
    ),
    "NOISE PENCA": (replace(TEXTURE, filters=UNSCALED, inputs=2), 14),
    # steerable filters; its alive test is a convolution
    "ISO isotropic": (replace(TEXTURE, filters=("identity", "laplacian"), alive="before"), 16),
    "ENGR gene CA": (  # the second rule set; the alive test multiplies the update
        Rule(
            UNSCALED,
            padding="circular",
            alive="before",
            hidden=(64,),
            final_bias=False,
            inputs=8,
        ),
        16,
    ),
    "ARCNCA": (  # attention over channels, dropout
        Rule(("identity", X8, Y8, SUM_OF_ONE), padding="circular", alive="none", final_bias=False),
        20,
    ),
    "CONDD conditional digits": (  # the ten inputs are not filtered
        Rule(FREE, True, alive="after", inputs=10),
        26,
    ),
    "RNCA": (Rule(alive="both", inputs=4), 20),  # alpha is its last channel; dropout
    "MIX mixtures": (Rule(("identity", X8, Y8)), 16),  # five rules; clamp of the update
    "MED Med-NCA": (  # BatchNorm
        Rule(FREE, True, "reflect", "none", final_bias=False, inputs=1),
        32,
    ),
    "OCT OctreeNCA": (  # 7x7 kernels, levels, normalisation
        Rule(("identity", "sobel_x"), True, "reflect", "none", hidden=(100,), inputs=3),
        20,
    ),
    "NCADAPT": (  # BatchNorm
        Rule(("identity", "sobel_x"), True, "reflect", "none", hidden=(64,), inputs=1),
        16,
    ),
    "SGNCA": (Rule(("laplacian",), True, "reflect", "none", inputs=1), 32),  # BatchNorm
    "RESIL resilience": (  # biases of the filters, dropout
        Rule(("sobel_x", "sobel_y"), True, "reflect", "none", final_bias=False, inputs=3),
        64,
    ),
    "UNCA universal": (
        Rule(FREE, True, alive="none", hidden=(128, 64), inputs=8),
        24,
    ),
    "HNCA hierarchical": (  # BatchNorm
        Rule(BANK, True, alive="none", hidden=(64,), final_bias=False),
        12,
    ),
    "ARCH architectural": (  # 3D, a third Sobel filter
        Rule(
            ("identity", X16, Y16),
            padding="replicate",
            alive="none",
            hidden=(96, 96),
            inputs=4,
            clamp=(0, 1),
            step_size=0.1,
        ),
        8,
    ),
    "VOX voxels": (Rule(BANK, alive="before", final_bias=False), 16),  # 3D, steerable
    "NCA3D": (Rule(BANK), 20),  # 3D
    "PW growing": (Rule(padding="circular", hidden=(160,), inputs=2), 18),
    "MON web": (Rule(("identity", X8, Y8), padding="circular"), 16),
    "LEX leniax": (Rule(padding="circular"), 16),
    "NLAB default": (Rule(FREE, True, "reflect", "after", final_bias=False), 16),
    "NTOR": (  # noise
        Rule(FREE, True, "circular", "both", hidden=(128, 64), activation="tanh", clamp=(-1, 1)),
        16,
    ),
    # 3x3 convolutions of all channels, whose place depthwise filters take; residual blocks
    "VNCA variational": (Rule(FREE, True, alive="none", hidden=(64, 64), activation="elu"), 64),
    "PDNCA Petri dish": (  # the same convolutions; a softmax over agents
        Rule(FREE, True, alive="none", hidden=(32, 32), activation="gelu", clamp=(-1, 1)),
        12,
    ),
}

ODD = ((0.1, -0.2, 0.3), (0.7, 0.5, -0.4), (0.0, 0.9, -0.6))  # no symmetry, no binary fractions
SKEW = ((0.3, 0.1, -0.2), (0.4, 0.0, -0.4), (0.2, -0.1, -0.3))  # minus itself when turned around
EVEN = ((0.3, 0.1, -0.2), (0.4, 0.7, 0.4), (-0.2, 0.1, 0.3))  # itself when turned around

VALUES: dict[str, tuple] = {
    "filters": (
        ("identity",),
        (ODD,),
        ("laplacian", "identity"),
        FREE,
        BANK,
        ("sobel_y", ODD, "identity"),
        (SKEW, EVEN, ODD, "sobel_x"),
        ("identity", "sobel_x", "sobel_x"),
        (*BANK, ODD),
        (ODD, SKEW, EVEN) * 3,
    ),
    "learn_filters": (False, True),
    "padding": PADDINGS,
    "alive": ALIVE,
    "alive_threshold": (0.0, 0.1, 0.6),
    "hidden": ((), (1,), (9,), (17,), (6, 5), (4, 7, 3)),
    "activation": ACTIVATIONS,
    "final_bias": (True, False),
    "inputs": (0, 1, 3),
    "clamp": (None, (-0.5, 0.75), (0.0, 1.0), (-1.25, 0.0)),
    "step_size": (1.0, 0.3, 1.5),
}
"""Values of every field, the usual ones among them."""

BASES = {"growing": replace(Rule(), hidden=(9,)), "texture": replace(TEXTURE, hidden=(7,))}


def published_cases() -> list[Case]:
    """Make a case of every published rule."""
    named = enumerate(PUBLISHED.items())
    return [Case(name, rule, channels, n) for n, (name, (rule, channels)) in named]


def single_cases() -> list[Case]:
    """Change the growing and the texture rule in one field at a time."""
    cases: list[Case] = []
    for base_name, base in BASES.items():
        for field, values in VALUES.items():
            for place, value in enumerate(values):
                rule = replace(base, **{field: value})
                if rule != base:
                    name = f"{base_name} {field} {place}"
                    cases.append(Case(name, rule, 7, 100 + len(cases)))
    for channels in (1, 2, 3):  # rules without an alive test need no alpha
        for inputs in (0, 1):
            rule = replace(BASES["texture"], inputs=inputs)
            name = f"texture {channels} channels, {inputs} inputs"
            cases.append(Case(name, rule, channels + inputs, 200 + len(cases)))
    return cases


def random_cases(count: int = 60) -> list[Case]:
    """Draw every field, from the usual value half of the time."""
    draws = random.Random(20)
    cases = []
    for place in range(count):
        base = draws.choice(list(BASES.values()))
        changed = [field for field in VALUES if draws.random() < 0.5]
        rule = replace(base, **{field: draws.choice(VALUES[field]) for field in changed})
        channels = rule.inputs + draws.randint(4, 9)
        cases.append(Case(f"random {place}", rule, channels, 300 + place))
    return cases


CASES = [*published_cases(), *single_cases(), *random_cases()]
