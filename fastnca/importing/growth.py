"""Certify a layout by growth: with the right one a model lives, with another it explodes or dies.

A model of 16 channels explodes to 1e15 and more, or dies, within 128 steps under every wrong
arrangement that was tried, and stays within some ten units under the right one. A texture, whose
values are limited or which has nobody to die, fills its grid with colours that can be shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastnca.importing.layouts import FILTERS_OF, Layout, arrange, layouts_to_try, parse_layout
from fastnca.importing.network import Network, NoModelError
from fastnca.module import NeuralCA
from fastnca.reference import make_filters
from fastnca.rule import RULES, TUTORIAL, Rule
from fastnca.states import ALPHA, make_seed_state
from fastnca.storage.model import build_model

STEPS = 128
"""Steps of a trial."""

SIZE = 64
"""Height and width in cells of its grid."""

_SEED = 0  # of the masks
_TOGETHER = 32  # steps between two looks
_LARGEST = 100.0  # a model that lives stays far below, one that explodes is soon far beyond
_FEWEST_CELLS = 30  # more than the seed's neighbourhood
_COLOUR_OVERFLOW = 0.5  # of right texture layouts at most 0.25 was seen, of wrong ones 0.86 up


@dataclass(frozen=True)
class Family:
    """A kind of published model.

    Attributes:
        name: for people and for `--rule`.
        rule: with the hidden layer of `Rule`'s default; filters are those of the network.
        start: the seed, as in `fastnca.training.TrainConfig`.
        fill_hidden: as there.
    """

    name: str
    rule: Rule
    start: str
    fill_hidden: bool = False

    @property
    def is_texture(self) -> bool:
        """Whether the first three channels are colours without an alpha."""
        return self.rule.alive == "none"


FAMILIES = {
    "growing": Family("growing", TUTORIAL, "cell", fill_hidden=True),
    "growing, alpha alone": Family("growing, alpha alone", TUTORIAL, "cell"),
    "texture": Family("texture", RULES["texture"], "zeros"),
    "texture, limited": Family(
        "texture, limited", replace(RULES["texture"], clamp=(-2, 2)), "zeros"
    ),
}
"""What a network may be, with the seeds that its authors start from.

The published models start from a cell whose alpha and hidden channels are 1, the tutorial's from
one whose alpha is 1. The quantised texture models are limited to ±2.
"""


@dataclass(frozen=True)
class Trial:
    """What became of a model under a layout.

    Attributes:
        layout: the layout.
        family: whose rule and seed it was grown with.
        steps: how many steps it was grown; fewer than `STEPS` if it had exploded or died by then.
        largest: largest absolute value of the last state; NaN if it is not finite.
        living: cells with an alpha above the threshold; all cells of a texture.
        overflow: mean distance of a texture's colours from what can be shown.
        state: `[1, C, H, W]`, the last state.
    """

    layout: Layout
    family: Family
    steps: int
    largest: float
    living: int
    overflow: float
    state: Tensor

    @property
    def fits(self) -> bool:
        """Whether the model lived and stayed bounded, or made colours that can be shown."""
        if not self.largest <= _LARGEST:
            return False
        if self.family.is_texture:
            return self.overflow <= _COLOUR_OVERFLOW and self._varies()
        return self.living >= _FEWEST_CELLS

    def _varies(self) -> bool:
        return bool(self.state[:, :3].std(dim=(2, 3)).max() > 0.01)

    def __str__(self) -> str:
        """Say what happened."""
        if not self.largest <= _LARGEST:
            exact = math.isfinite(self.largest)
            size = f"values of {self.largest:.1g}" if exact else "values that are not finite"
            return f"{size} after {self.steps} steps"
        if self.family.is_texture:
            if not self._varies():
                return "one colour everywhere"
            return f"colours {self.overflow:.2g} beyond what can be shown"
        return f"{self.living} living cells, values within {self.largest:.2g}"


@dataclass(frozen=True)
class Certificate:
    """Which layout a model grew under, and how the others ended.

    Attributes:
        chosen: the trial that fits.
        others: those of the other layouts that were tried.
        usual: the layout that files of this format have, as `Network.layout`.
    """

    chosen: Trial
    others: Sequence[Trial]
    usual: str = ""

    def __str__(self) -> str:
        """Say how clearly the layout was chosen."""
        layout = f"layout {self.chosen.layout} ({self.chosen.family.name}): {self.chosen}"
        if not str(self.chosen.layout).startswith(self.usual):
            layout += f"; files of this format usually have the layout {self.usual}"
        if not self.others:
            return layout
        best = min(self.others, key=lambda trial: (not trial.fits, _badness(trial)))
        if best.fits:
            return f"{layout}; it also lives under {best.layout}: {best}"
        return f"{layout}; the next best of {len(self.others)} others, {best.layout}: {best}"


def certify(network: Network, layout: str = "auto") -> Certificate:
    """Grow a model under every layout in question, and choose the one that lives.

    Args:
        network: the layers of a file.
        layout: "auto", or one that `parse_layout` reads, which must live.

    Raises:
        NoModelError: no layout lives, or several do.
    """
    families = _families(network)
    if layout == "auto":
        layouts = list(layouts_to_try(network))
    else:
        layouts = [parse_layout(layout, network.filters)]
        if network.taps is not None:
            layouts = [Layout(layouts[0].arrangement)]
    tried = [_try_families(network, each, families) for each in layouts]
    fitting = [trial for trial in tried if trial.fits]
    if not fitting:
        ends = "; ".join(f"{trial.layout}: {trial}" for trial in tried[:2])
        raise NoModelError(
            f"it does not live in {STEPS} steps under any of {len(tried)} layouts ({ends})"
            if layout == "auto"
            else f"it does not live under the layout {ends}"
        )
    if len(fitting) > 1 and not (network.layout and fitting[0] is tried[0]):
        names = " and ".join(str(trial.layout) for trial in fitting[:3])
        raise NoModelError(
            f"it lives under {len(fitting)} layouts, {names}, and nothing tells which one is "
            "meant; choose with --layout (layout=...)"
        )
    chosen = fitting[0]
    others = [trial for trial in tried if trial is not chosen]
    return Certificate(chosen, others, network.layout)


def _try_families(network: Network, layout: Layout, families: Sequence[Family]) -> Trial:
    """Return the first trial that fits, or else the one that came closest."""
    trials = []
    for family in families:
        trials.append(try_layout(network, layout, family))
        if trials[-1].fits:
            return trials[-1]
    return min(trials, key=_badness)


def _badness(trial: Trial) -> float:
    """Order trials that do not fit: what explodes is worse than what dies."""
    largest = math.inf if math.isnan(trial.largest) else trial.largest
    return largest if largest > _LARGEST else trial.overflow


def _families(network: Network) -> list[Family]:
    """Return what a network may be, the likeliest first."""
    names: tuple[str, ...] = ("growing", "growing, alpha alone")
    if network.filters == 4:
        names = ("texture", "texture, limited", *names)
    return [FAMILIES[name] for name in network.families or names]


def try_layout(network: Network, layout: Layout, family: Family) -> Trial:
    """Grow a model under one layout, until it explodes, dies or has taken `STEPS` steps."""
    model = build(network, layout, family).requires_grad_(False)
    state, done = start_state(model, family, SIZE), 0
    while done < STEPS:
        state = model.run_steps(state, _TOGETHER, 0.5, seed=_SEED, first_step=done)
        done += _TOGETHER
        largest = float(state.abs().max())
        alive = state[:, ALPHA] > model.rule.alive_threshold
        living = alive.numel() if family.is_texture else int(alive.sum())
        if not largest <= 100 * _LARGEST or not living:
            break
    overflow = float((state[:, :3].abs() - 0.5).clamp_min(0).mean())
    return Trial(layout, family, done, largest, living, overflow, state)


def start_state(model: NeuralCA, family: Family, size: int) -> Tensor:
    """Return the seed that a family's models start from, `[1, C, H, W]`."""
    return make_seed_state(
        next(model.parameters()).detach(),
        model.num_channels,
        size,
        start=family.start,
        fill_hidden=family.fill_hidden,
        inputs=0,
    )


def build(network: Network, layout: Layout, family: Family, **options: Any) -> NeuralCA:
    """Make a model, in training mode, of a network under a layout and a family's rule.

    A growing model of three filters whose file has no last bias gets one of zeros, so that it is
    one of the tutorial's.

    Args:
        network: layers of a file.
        layout: meaning of their columns.
        family: the rule, but for its filters and hidden layers.
        **options: backend and precision, as in `NeuralCA`.

    Raises:
        NoModelError: a family's rule has no room for it.
    """
    final_bias = network.biases[-1] is not None or family.rule.final_bias
    rule = replace(family.rule, hidden=network.hidden, final_bias=final_bias, **_filters(network))
    try:
        rule.check_channels(network.channels)
    except ValueError as error:
        raise NoModelError(str(error)) from error
    weights = [arrange(network, layout), *network.weights[1:]]
    tensors = {}
    for number, (weight, bias) in enumerate(zip(weights, network.biases, strict=True)):
        tensors[f"update_net.{2 * number}.weight"] = weight[:, :, None, None].contiguous()
        if bias is not None or number < len(rule.hidden) or rule.final_bias:
            zeros = weight.new_zeros(len(weight))
            tensors[f"update_net.{2 * number}.bias"] = zeros if bias is None else bias.clone()
    filters = make_filters(network.channels, rule)
    if network.taps is not None:
        filters = network.taps.reshape(-1, 1, 3, 3).clone()
    tensors["perception.filters"] = filters
    return build_model(NeuralCA, (network.channels, rule), tensors, {}, options)


def _filters(network: Network) -> dict[str, Any]:
    """Return what a rule says of the filters."""
    if network.taps is None:
        if network.filters not in FILTERS_OF:
            raise NoModelError(
                f"it has {network.filters} filters per channel, and its file does not say which"
            )
        return {"filters": FILTERS_OF[network.filters]}
    first = network.taps[0]
    if bool((network.taps == first).all()):
        return {"filters": tuple(first.tolist())}
    return {"filters": tuple(first.tolist()), "learn_filters": True}
