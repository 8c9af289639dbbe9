"""Rules that are not the tutorial's, on grids of many sizes, and what the oracle says of them.

The oracle is `tests.rule_oracle` in float64; the error rule is that of `tests.kernels.helpers`,
with the gradient of the first layer compared filter by filter.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.backends.triton_fused import fused_rollout
from fastnca.backends.triton_fused.limits import size_reasons
from fastnca.masks import update_masks
from fastnca.reference import NeuralCA
from fastnca.rule import Rule, Taps
from tests import rule_oracle
from tests.kernels.helpers import FIRST_STEP, FLOOR, MARGIN, SEED, _RoundedProduct
from tests.rule_cases import EVEN, LAPLACIAN8, ODD, SKEW, X8, Y8, scaled

ANGLE = 0.6  # radians: no tap of a Sobel filter that is turned so far is zero or round
NEAR_KINK = {  # distance of hidden units from zero: whether one is on is the same in every backend
    "ieee": 1e-5,
    "fp16": 2e-3,  # 4/2¹¹: sums of about 1, of operands and of states that are off by 1/2¹¹ or so
}
ATTEMPTS = 400


def rotated(angle: float) -> tuple[Taps, Taps]:
    """Return both Sobel filters, turned."""
    x, y = torch.tensor(Rule(("sobel_x", "sobel_y")).taps, dtype=torch.float64)
    sine, cosine = torch.tensor(angle).sin(), torch.tensor(angle).cos()
    turned = (cosine * x + sine * y).tolist(), (cosine * y - sine * x).tolist()
    return tuple(tuple(map(tuple, taps)) for taps in turned)


TURNED = rotated(ANGLE)
DIM = scaled("identity", 0.37)
UNEVEN = ((0.001, -2.0, 0.05), (4.0, 0.0001, -0.3), (0.02, 0.7, -0.003))
FAINT = tuple(tuple(tap / 1000 for tap in row) for row in ODD)
LOUD = tuple(tuple(tap * 10 for tap in row) for row in SKEW)

BANKS: dict[int, dict[str, tuple[str | Taps, ...]]] = {
    1: {
        "identity": ("identity",),
        "laplacian": ("laplacian",),
        "odd": (ODD,),
        "skew": (SKEW,),
        "even": (EVEN,),
        "dim": (DIM,),
        "uneven": (UNEVEN,),
    },
    2: {
        "sobel": ("sobel_x", "sobel_y"),
        "diffusion": ("identity", "laplacian"),
        "turned": TURNED,
        "sizes": (FAINT, LOUD),
        "parities": (EVEN, SKEW),
        "odd": (ODD, "identity"),
    },
    3: {
        "tutorial": ("identity", "sobel_x", "sobel_y"),
        "turned": ("identity", *TURNED),
        "mixed": ("sobel_y", ODD, "identity"),
        "unscaled": (DIM, X8, Y8),
        "parities": ("laplacian", SKEW, EVEN),
        "sizes": (LOUD, "identity", FAINT),
    },
    4: {
        "texture": ("identity", "sobel_x", "sobel_y", "laplacian"),
        "unscaled": ("identity", X8, Y8, LAPLACIAN8),
        "free": (SKEW, EVEN, ODD, "sobel_x"),
        "turned": (*TURNED, "identity", "laplacian"),
        "sizes": (UNEVEN, FAINT, LOUD, ODD),
    },
}
NAMES_OF_BANKS = {
    Rule(bank).filters: name for banks in BANKS.values() for name, bank in banks.items()
}

ODD_SIZES = [(3, 3), (5, 5), (3, 7), (7, 3), (5, 9), (9, 9), (7, 15), (15, 7), (9, 17), (17, 9)]
ODD_SIZES += [(5, 7), (33, 3), (33, 7), (3, 17), (3, 9), (3, 8), (16, 3), (4, 4), (18, 5)]
ODD_SIZES += [(4, 16), (5, 10), (4, 9), (9, 5), (3, 5), (7, 5), (9, 4), (3, 10), (17, 4)]
EVEN_SIZES = [(16, 8), (8, 8), (18, 10), (7, 10), (16, 17), (9, 16), (33, 8), (17, 10), (16, 16)]
CHANNELS = [1, 2, 3, 4, 5, 7, 12, 13, 14, 15, 16, 17, 20, 31, 32]
HIDDEN = [1, 10, 16, 17, 21, 46, 64, 10, 17, 21, 46, 16]
LARGE_HIDDEN = [96, 100, 128, 144]
THRESHOLDS = [0.1, 0.25, 0.0, 0.6, 0.1]
RATES = [0.5, None, 0.1, 1.0, 0.5, 0.5]
PATTERNS = ["patches", "corner", "left", "alive", "top", "patches", "seed", "right", "bottom"]
MOST_TILES = 6  # times steps of a case: the interpreter is slow, with float32 on low tiles


@dataclass(frozen=True)
class Variant:
    """One comparison with the oracle.

    Attributes:
        rule: the rule.
        channels: channels C of the state, inputs included.
        height, width, batch: sizes of the state.
        steps: number of steps.
        precision: of the operands.
        rate: probability that a cell updates; None without masks.
        pattern: which cells live.
    """

    rule: Rule
    channels: int
    height: int
    width: int
    batch: int = 1
    steps: int = 2
    precision: str = "ieee"
    rate: float | None = 0.5
    pattern: str = "patches"

    def __str__(self) -> str:
        rule, rate = self.rule, "all" if self.rate is None else self.rate
        parts = [
            rule.padding,
            "none" if rule.alive == "none" else f"{rule.alive}{rule.alive_threshold:g}",
            f"{len(rule.filters)}{NAMES_OF_BANKS.get(rule.filters, '')}",
            f"{self.batch}x{self.channels}x{self.height}x{self.width}",
            f"hidden{rule.hidden[0]}",
            f"inputs{rule.inputs}",
            "bias" if rule.final_bias else "nobias",
            f"steps{self.steps}",
            f"rate-{rate}",
            self.precision,
            self.pattern,
        ]
        return "-".join(parts)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the state."""
        return self.batch, self.channels, self.height, self.width

    @property
    def is_odd_torus(self) -> bool:
        """Whether the grid wraps and has odd sizes, or is 3 to 5 cells wide or high."""
        sizes = self.height, self.width
        odd = all(size % 2 for size in sizes)
        return self.rule.padding == "circular" and (odd or min(sizes) <= 5)

    def masks(self) -> Tensor:
        """Return which cells update: `[T, B, H, W]` bool."""
        if self.rate is None:
            return torch.ones(self.steps, self.batch, self.height, self.width, dtype=torch.bool)
        return update_masks(SEED, FIRST_STEP, self.steps, self.shape, self.rate)


@dataclass(frozen=True)
class VariantProblem:
    """A variant with numbers: float32 inputs, and what the float64 oracle makes of them.

    Attributes:
        state, parameters, grad: inputs, and the gradient of the last state.
        exact, plain: the last state and all gradients, of the oracle and of plain PyTorch.
    """

    state: Tensor
    parameters: tuple[Tensor, ...]
    grad: Tensor
    exact: tuple[Tensor, ...]
    plain: tuple[Tensor, ...]


def _turns(values: Sequence, draws: random.Random) -> Iterator:
    """Yield all values in a drawn order, again and again."""
    while True:
        yield from draws.sample(values, len(values))


def generate(extra: int = 46) -> list[Variant]:
    """Draw variants: every combination of the rule's fields, and `extra` more that mostly wrap."""
    draws = random.Random(5)
    fields = list(product(("circular", "zeros"), ("both", "none"), BANKS, (0, 1, 3), (True, False)))
    fields += [one if one[0] == "circular" else draws.choice(fields) for one in fields[:extra]]
    draws.shuffle(fields)
    turns = {count: _turns(list(banks.values()), draws) for count, banks in BANKS.items()}
    odd, even = _turns(ODD_SIZES, draws), _turns(EVEN_SIZES, draws)
    channels = {  # with an alive test the fourth is alpha
        "none": _turns(CHANNELS, draws),
        "both": _turns([count for count in CHANNELS if count >= 4], draws),
    }
    hidden, thresholds = _turns(HIDDEN, draws), _turns(THRESHOLDS, draws)
    rates, patterns = _turns(RATES, draws), _turns(PATTERNS, draws)
    batches, lengths = _turns([1, 1, 2, 3], draws), _turns([1, 2, 2, 3, 4, 2], draws)
    large = _turns(LARGE_HIDDEN, draws)
    variants = []
    for number, (padding, alive, count, inputs, bias) in enumerate(fields):
        height, width = next(even) if number % 4 == 3 else next(odd)
        small = height * width <= 40
        rule = Rule(
            next(turns[count]),
            padding=padding,
            alive=alive,
            alive_threshold=next(thresholds),
            hidden=(next(large) if small and number % 3 == 0 else next(hidden),),
            final_bias=bias,
            inputs=inputs,
        )
        total = max(next(channels[alive]), rule.least_channels)
        batch = next(batches) if height * width <= 40 else 1
        exact = number % 15 == 7 if height * width > 81 else number % 5 > 0
        exact = exact and not size_reasons("ieee", total, *rule.hidden, capability=9)
        tiles = batch * -(-width // 8) * -(-height // (4 if exact else 16))
        least = 1 if exact or height * width <= 81 else 2  # high tiles are cheap in rollouts
        steps = max(least, min(next(lengths), MOST_TILES // tiles))
        rate, pattern = next(rates), next(patterns)
        options = batch, steps, "ieee" if exact else "fp16", rate, pattern
        variants.append(Variant(rule, total, height, width, *options))
    lifeless = Rule((ODD, "identity"), padding="circular", hidden=(16,), inputs=2)
    wide = Rule(hidden=(256,), padding="circular", alive="none")
    return [
        *variants,
        *(Variant(lifeless, 7, 9, 17, precision=p, pattern="dead") for p in ("ieee", "fp16")),
        *(Variant(wide, count, 3, 5, precision="fp16") for count in (8, 20)),
    ]


def _alpha(variant: Variant, generator: torch.Generator) -> Tensor:
    """Return alpha `[B, H, W]`, far from the threshold; zero in the dead cells of a seed."""
    shape = variant.batch, variant.height, variant.width
    high = torch.rand(shape, generator=generator) * 0.5 + 0.1
    low = -torch.rand(shape, generator=generator) * 0.4 - 0.2
    rows, columns = torch.arange(variant.height)[:, None], torch.arange(variant.width)[None, :]
    living = {
        "patches": torch.rand(shape, generator=generator) < 0.2,
        "dead": torch.zeros(shape, dtype=torch.bool),
        "alive": torch.ones(shape, dtype=torch.bool),
        "top": (rows == 0).expand(shape),
        "bottom": (rows == variant.height - 1).expand(shape),
        "left": (columns == 0).expand(shape),
        "right": (columns == variant.width - 1).expand(shape),
        "corner": ((rows == 0) & (columns == 0)).expand(shape),
        "seed": ((rows == variant.height // 2) & (columns == variant.width // 2)).expand(shape),
    }[variant.pattern]
    threshold = variant.rule.alive_threshold
    dead = torch.zeros(shape) if variant.pattern == "seed" else threshold + low
    return torch.where(living, threshold + high, dead)


def _draw_state(variant: Variant, generator: torch.Generator) -> Tensor:
    state = torch.randn(variant.shape, generator=generator) * 0.5
    if variant.rule.alive == "none":
        return state
    if variant.pattern == "seed":
        state[:, : variant.channels - variant.rule.inputs] = 0.0
    state[:, 3] = _alpha(variant, generator)
    return state


def _draw_parameters(variant: Variant, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Draw weights that see every filter, whatever the size of its taps."""
    rule, channels = variant.rule, variant.channels
    last, (hidden,) = channels - rule.inputs, rule.hidden
    sizes = torch.tensor(rule.taps).flatten(1).norm(dim=1).repeat(channels)
    w1 = (
        torch.randn(hidden, len(sizes), generator=generator)
        * 1.5
        / max(len(sizes), 16) ** 0.5
        / sizes
    )
    b1 = torch.randn(hidden, generator=generator) * 0.3
    w2 = torch.randn(last, hidden, generator=generator) / (hidden + 3) ** 0.5
    b2 = torch.randn(last, generator=generator) * 0.2
    if rule.alive != "none":
        b2[3] -= 0.4  # more cells die
    parameters = (w1[:, :, None, None], b1, w2[:, :, None, None])
    return (*parameters, b2) if rule.final_bias else parameters


def weights_of(rule: Rule, channels: int, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return parameters as the oracle takes them, with the filters in their dtype."""
    names = [name for name in rule.shapes(channels) if name != "perception.filters"]
    taps = torch.tensor(rule.taps, dtype=torch.float64).to(parameters[0])
    taps = taps.repeat(channels, 1, 1)[:, None]
    return {"perception.filters": taps, **dict(zip(names, parameters, strict=True))}


@torch.no_grad()
def _trace(
    variant: Variant, state: Tensor, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return what decides in the steps: cells `[B, 1, H, W]` bool, hidden units `[hidden, N]`.

    The cells are those whose neighbourhood's largest alpha is close to the threshold in some step;
    the hidden units are those of all cells and steps, before the activation.
    """
    rule, state = variant.rule, state.double()
    weights = weights_of(rule, variant.channels, [each.double() for each in parameters])
    first_layer = replace(rule, hidden=(), final_bias=True)
    wraps = "circular" if rule.padding == "circular" else "zeros"
    found = torch.zeros(variant.batch, 1, variant.height, variant.width, dtype=torch.bool)
    hidden = []
    for mask in variant.masks():
        updated = state.clone()
        cells = variant.channels - rule.inputs
        updated[:, :cells] += mask[:, None] * rule_oracle.update(state, rule, weights)
        hidden.append(rule_oracle.update(state, first_layer, weights).transpose(0, 1).flatten(1))
        for values in (state, updated) if rule.alive != "none" else ():
            nine = rule_oracle.around(values[:, 3:4], wraps, float("-inf"))
            off = (nine.amax(2).view_as(found) - rule.alive_threshold).abs()
            found |= (off < MARGIN[variant.precision]) & (off > 0)
        state = rule_oracle.step(state, rule, weights, mask)
    return found, torch.cat(hidden, 1)


def _shift(values: Tensor, margin: float) -> float:
    """Return the least number that, added to a hidden unit's values, takes them off zero."""
    ends = torch.tensor([-float("inf"), float("inf")])
    edges = torch.cat((values, ends)).sort().values
    low, high = edges[:-1] + margin, edges[1:] - margin
    wide = low < high
    places = torch.zeros(1).clamp(low[wide], high[wide])
    return -places[places.abs().argmin()].item()


@cache
def draw(variant: Variant) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Draw a state that keeps off the threshold throughout, parameters and an output gradient.

    Where the state does not keep off, it is drawn again; after some attempts alpha is calmed. First
    biases are moved a little, until no hidden unit is close to its kink.
    """
    generator = torch.Generator().manual_seed(variant.height * 100 + variant.width)
    parameters = _draw_parameters(variant, generator)
    state = _draw_state(variant, generator)
    grad = torch.randn(variant.shape, generator=generator) + 0.25
    for attempt in range(ATTEMPTS):
        unclear, hidden = _trace(variant, state, parameters)
        margin = NEAR_KINK[variant.precision]
        near_kink = (hidden.abs() < margin).any(1)
        if not unclear.any() and not near_kink.any():
            return state, parameters, grad
        for unit in near_kink.nonzero().flatten().tolist() if not unclear.any() else ():
            # further and further: a unit's later values follow those of the others
            parameters[1][unit] += _shift(hidden[unit], margin * (1.5 + attempt / 8))
        # around these cells, and anywhere near them in later steps
        radius = 1 + attempt % 2
        unclear = F.pad(unclear.float(), [radius] * 4, mode="circular")
        near = F.max_pool2d(unclear, 2 * radius + 1, stride=1) > 0
        state = torch.where(near, _draw_state(variant, generator), state)
        if attempt % 20 == 19 and variant.rule.alive != "none":
            parameters[2][3] *= 0.5
    raise AssertionError(f"no state of {variant} keeps off the threshold and the kinks")


def plain_step(model: NeuralCA, state: Tensor, mask: Tensor, precision: str) -> Tensor:
    """Advance by one step in plain PyTorch with operands of the given precision."""
    mask = mask[:, None].to(state.dtype)
    if precision == "ieee":
        return model._step(state, mask)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    rule, (first, _, second) = model.rule, model.update_net
    cells, inputs = state.split((state.shape[1] - rule.inputs, rule.inputs), 1)
    hidden = _RoundedProduct.apply(model.perception(state), first.weight, dtype)
    hidden = torch.relu(hidden + first.bias[:, None, None])
    delta = _RoundedProduct.apply(hidden, second.weight, dtype)
    if rule.final_bias:
        delta = delta + second.bias[:, None, None]
    updated = cells + delta * mask
    if rule.alive == "both":
        updated = updated * (model.get_alive_mask(cells) * model.get_alive_mask(updated))
    return torch.cat((updated, inputs), 1)


def plain_rollout(
    state: Tensor, parameters: Sequence[Tensor], rule: Rule, masks: Tensor, precision: str
) -> Tensor:
    """Advance in plain PyTorch; gradients reach state and parameters."""
    model = NeuralCA(state.shape[1], rule=rule)
    first, _, second = model.update_net
    places = [(first, "weight"), (first, "bias"), (second, "weight"), (second, "bias")]
    for (layer, name), parameter in zip(places, parameters, strict=False):
        delattr(layer, name)
        setattr(layer, name, parameter)
    for mask in masks:
        state = plain_step(model, state, mask, precision)
    return state


def differentiate(
    leaves: Sequence[Tensor], grad: Tensor, rollout, wanted: slice = slice(None)
) -> tuple[Tensor, ...]:
    """Return the last state and the gradients of the leaves that are wanted, state first."""
    leaves = [leaf.detach() for leaf in leaves]
    for leaf in leaves[wanted]:
        leaf.requires_grad_()
    result = rollout(leaves[0], tuple(leaves[1:]))
    if not leaves[wanted]:
        return (result,)
    found = torch.autograd.grad(result, leaves[wanted], grad, allow_unused=True)
    zeros = (torch.zeros_like(leaf) for leaf in leaves[wanted])
    filled = (zero if one is None else one for one, zero in zip(found, zeros, strict=True))
    return result.detach(), *filled


@torch.no_grad()
def last_state(rule: Rule, state: Tensor, parameters: Sequence[Tensor], variant: Variant) -> Tensor:
    """Return the oracle's last state of a variant under another rule, in float64."""
    weights = weights_of(rule, state.shape[1], [each.double() for each in parameters])
    return rule_oracle.rollout(state.double(), rule, weights, variant.masks())


def exactly(rule: Rule, leaves: Sequence[Tensor], grad: Tensor, masks: Tensor):
    """Return the oracle's last state and gradients, in float64."""

    def rollout(state: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        weights = weights_of(rule, state.shape[1], parameters)
        return rule_oracle.rollout(state, rule, weights, masks)

    return differentiate([leaf.double() for leaf in leaves], grad.double(), rollout)


@cache
def make_variant(variant: Variant) -> VariantProblem:
    """Draw numbers for a variant, and compute what is right."""
    state, parameters, grad = draw(variant)
    masks, leaves = variant.masks(), (state, *parameters)
    exact = exactly(variant.rule, leaves, grad, masks)

    def plainly(state: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        return plain_rollout(state, parameters, variant.rule, masks, variant.precision)

    return VariantProblem(state, parameters, grad, exact, differentiate(leaves, grad, plainly))


def run_variant(
    variant: Variant,
    problem: VariantProblem,
    device: torch.device,
    wanted: slice = slice(None),
    **options,
) -> tuple[Tensor, ...]:
    """Run the kernels and return what `VariantProblem.exact` holds, or the gradients `wanted`."""
    settings = {
        "rule": variant.rule,
        "steps": variant.steps,
        "seed": None if variant.rate is None else SEED,
        "first_step": FIRST_STEP,
        "update_rate": 0.5 if variant.rate is None else variant.rate,
        "precision": variant.precision,
    }
    leaves = [leaf.to(device) for leaf in (problem.state, *problem.parameters)]

    def rollout(state: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        return fused_rollout(state, parameters, **(settings | options))

    return differentiate(leaves, problem.grad.to(device), rollout, wanted)


def variant_violations(
    variant: Variant, problem: VariantProblem, found: tuple[Tensor, ...]
) -> list[str]:
    """List the results that break the error rule; inputs have to be the same bits."""
    names = ("state", "grad_state", "grad_w1", "grad_b1", "grad_w2", "grad_b2")
    broken = []
    if len(found) != len(problem.exact):
        broken.append(f"{len(found)} results instead of {len(problem.exact)}")
    for name, *results in zip(names, found, problem.exact, problem.plain, strict=False):
        got, exact, plain = (each.detach().cpu().double() for each in results)
        if got.shape != exact.shape:
            broken.append(f"{name} has the shape {list(got.shape)}")
            continue
        parts = {name: slice(None)}
        if name == "grad_w1":
            count = len(variant.rule.filters)
            parts = {
                f"{name} of filter {k}": (slice(None), slice(k, None, count)) for k in range(count)
            }
        for part, where in parts.items():
            difference = (got[where] - exact[where]).abs().max()
            allowed = (2.0 if name == "state" else 3.0) * (plain[where] - exact[where]).abs().max()
            allowed += FLOOR[variant.precision] * exact[where].abs().max()
            if not difference <= allowed:
                broken.append(f"{part}: error {difference:.2e}, allowed {allowed:.2e}")
    first = variant.channels - variant.rule.inputs
    if not torch.equal(found[0][:, first:].cpu(), problem.state[:, first:]):
        broken.append("inputs have changed")
    return broken


CASES = generate()
