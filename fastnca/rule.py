"""The rule of a cellular automaton as a value: what a cell perceives, computes and keeps.

`Rule()` is the tutorial's. `fastnca.reference` interprets every field; its equations say what the
fields mean.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

from fastnca.filters import FILTERS, Taps, check_filters, check_number
from fastnca.states import ALPHA

__all__ = [
    "ACTIVATIONS",
    "ALIVE",
    "CHANNELS",
    "FILTERS",
    "PADDINGS",
    "RULES",
    "TUTORIAL",
    "Rule",
    "Taps",
]

PADDINGS = ("zeros", "circular", "reflect", "replicate")
ALIVE = ("both", "before", "after", "none")
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid")

MAX_LAYERS = 8


@dataclass(frozen=True)
class Rule:
    """What every cell does in a step. A value: two rules with equal fields are equal.

    Which backend computes which rule (`NeuralCA.explain` says it of a model):

        what                                    reference  torch      cpp        triton
        the tutorial's rule, any hidden width   yes        yes        yes        yes
        up to four fixed filters, any 3x3 taps  yes        yes        yes        yes
        more filters                            yes        yes        no         no
        learn_filters                           yes        yes        no         no
        padding circular                        yes        yes        yes        yes
        padding reflect, replicate              yes        yes        yes        no
        alive none                              yes        yes        yes        yes
        alive before, after                     yes        yes        yes        no
        another alive_threshold                 yes        yes        yes        yes
        no hidden layer, or several             yes        yes        no         no
        another activation                      yes        yes        no         no
        no final_bias                           yes        yes        yes        yes
        inputs                                  yes        yes        yes        yes
        clamp, step_size                        yes        yes        yes        no

    Args:
        filters: what each channel is seen through, 1 to 16 of them: names of `FILTERS`, or 3x3
            taps as numbers, rounded to float32. Perceived channel `K*c + k` is filter k of c.
        learn_filters: whether the taps are parameters with a gradient, one set per channel, whose
            first values are `filters`.
        padding: what lies beyond the border, "zeros", "circular" (a torus), "reflect" or
            "replicate", as in `torch.nn.Conv2d`.
        alive: when a cell must be alive, or else its state becomes zero: "both" before and after
            the update, "before", "after", or "none" for rules in which every cell lives.
        alive_threshold: a cell is alive when the largest alpha (channel 3) of its 3x3
            neighbourhood is above this, at least 0.
        hidden: widths of the hidden layers of the update network; empty for a linear rule.
        activation: what follows each hidden layer, a name of `ACTIVATIONS`, with torch's defaults.
        final_bias: whether the last layer has a bias.
        inputs: how many channels, the last ones, every cell reads and no step writes: pictures,
            goals, positions. They are not cleared in dead cells.
        clamp: lowest and highest value of a cell that has been updated; None for no limits. 0,
            which a dead cell is, must lie between them.
        step_size: factor of the update, above 0.

    Attributes:
        changed: names of the fields that are not the tutorial's.
        json: what `to_dict` returns, as text.
        least_channels: how many channels a state must have.

    Raises:
        TypeError: a field has another type.
        ValueError: a field has a value that no rule has.
    """

    filters: tuple[str | Taps, ...] = ("identity", "sobel_x", "sobel_y")
    learn_filters: bool = False
    padding: str = "zeros"
    alive: str = "both"
    alive_threshold: float = 0.1
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"
    final_bias: bool = True
    inputs: int = 0
    clamp: tuple[float, float] | None = None
    step_size: float = 1.0
    changed: ClassVar[tuple[str, ...]]
    json: ClassVar[str]
    least_channels: ClassVar[int]

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("filters", check_filters(self.filters))
        put("hidden", _check_hidden(self.hidden))
        for name in ("learn_filters", "final_bias"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        _check_choice("padding", self.padding, PADDINGS)
        _check_choice("alive", self.alive, ALIVE)
        _check_choice("activation", self.activation, ACTIVATIONS)
        put("alive_threshold", check_number("alive_threshold", self.alive_threshold))
        put("step_size", check_number("step_size", self.step_size))
        if self.alive_threshold < 0:
            raise ValueError(f"alive_threshold must be at least 0, got {self.alive_threshold}")
        if self.step_size <= 0:
            raise ValueError(f"step_size must be above 0, got {self.step_size}")
        if not isinstance(self.inputs, int) or isinstance(self.inputs, bool):
            raise TypeError(f"inputs must be an int, got {type(self.inputs).__name__}")
        if self.inputs < 0:
            raise ValueError(f"inputs must be at least 0, got {self.inputs}")
        put("clamp", _check_clamp(self.clamp))
        # what has no meaning must not tell equal rules apart
        if self.alive == "none":
            put("alive_threshold", type(self).alive_threshold)
        if not self.hidden:
            put("activation", type(self).activation)
        put("least_channels", self.inputs + (1 if self.alive == "none" else ALPHA + 1))
        put("json", json.dumps(self.to_dict()))
        put("changed", tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default))

    @property
    def taps(self) -> tuple[Taps, ...]:
        """The filters as numbers."""
        return tuple(FILTERS[each] if isinstance(each, str) else each for each in self.filters)

    @property
    def alive_before(self) -> bool:
        """Whether a cell must be alive before its update."""
        return self.alive in ("both", "before")

    @property
    def alive_after(self) -> bool:
        """Whether a cell must be alive after its update."""
        return self.alive in ("both", "after")

    def with_hidden(self, hidden_dim: int) -> Self:
        """Return the rule of a model that was asked for `hidden_dim` hidden units.

        Raises:
            ValueError: the rule says something else.
        """
        default = type(self).hidden
        if (hidden_dim,) == default or (hidden_dim,) == self.hidden:
            return self
        if self.hidden != default:
            raise ValueError(
                f"hidden_dim={hidden_dim} and the rule's hidden={self.hidden} differ; give one"
            )
        return replace(self, hidden=(hidden_dim,))

    def shapes(self, num_channels: int) -> dict[str, tuple[int, ...]]:
        """Return the entries of a model's `state_dict` and their shapes, in their order."""
        features = num_channels * len(self.filters)
        widths = (features, *self.hidden, num_channels - self.inputs)
        shapes: dict[str, tuple[int, ...]] = {"perception.filters": (features, 1, 3, 3)}
        for number, (before, after) in enumerate(pairwise(widths)):
            shapes[f"update_net.{2 * number}.weight"] = (after, before, 1, 1)
            if number < len(self.hidden) or self.final_bias:
                shapes[f"update_net.{2 * number}.bias"] = (after,)
        return shapes

    def check_channels(self, num_channels: int) -> None:
        """Check that a state has room for what the rule reads.

        Raises:
            ValueError: it has too few channels.
        """
        if num_channels < self.least_channels:
            raise ValueError(
                f"num_channels must be at least {self.least_channels} for a rule with "
                f"alive={self.alive!r} and inputs={self.inputs}, got {num_channels}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a rule of what `to_dict` returned; a field that is missing has its default.

        Raises:
            TypeError, ValueError: a field is unknown, or its value is none of a rule.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a rule must be a mapping of its fields, got {values!r}")
        if unknown := [name for name in values if name not in {each.name for each in fields(cls)}]:
            raise ValueError(f"a rule has no field {', '.join(sorted(map(repr, unknown)))}")
        return cls(**values)

    def __str__(self) -> str:
        """Name the fields that are not the tutorial's."""
        return f"Rule({', '.join(f'{name}={getattr(self, name)!r}' for name in self.changed)})"


def _check_hidden(hidden: object) -> tuple[int, ...]:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden must be a sequence of widths, such as (128,), got {hidden!r}")
    if len(hidden) > MAX_LAYERS:
        raise ValueError(f"a rule has at most {MAX_LAYERS} hidden layers, got {len(hidden)}")
    for width in hidden:
        if not isinstance(width, int) or isinstance(width, bool):
            raise TypeError(f"hidden must hold ints, got {width!r}")
        if width < 1:
            raise ValueError(f"a hidden layer has at least 1 unit, got {width}")
    return tuple(hidden)


def _check_clamp(clamp: object) -> tuple[float, float] | None:
    if clamp is None:
        return None
    if isinstance(clamp, str) or not isinstance(clamp, Sequence) or len(clamp) != 2:
        raise TypeError(f"clamp must be None or (lowest, highest), got {clamp!r}")
    low, high = (check_number("clamp", limit) for limit in clamp)
    if not low <= 0 <= high or low == high:
        raise ValueError(f"clamp must be two limits with 0 between them, got {(low, high)}")
    return low, high


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _to_json(value: Any) -> Any:
    return [_to_json(each) for each in value] if isinstance(value, tuple) else value


TUTORIAL = Rule()
"""The tutorial's rule."""

RULES: dict[str, Rule] = {
    "growing": TUTORIAL,
    "texture": Rule(
        filters=("identity", "sobel_x", "sobel_y", "laplacian"),
        padding="circular",
        alive="none",
        hidden=(96,),
        final_bias=False,
    ),
}
"""Named rules: "growing" is the tutorial's, Mordvintsev et al., Distill 2020; "texture" that of
Niklasson et al., "Self-Organising Textures", Distill 2021, for 12 channels."""

CHANNELS = {"growing": 16, "texture": 12}
"""Channels of the models that the named rules were published with."""
