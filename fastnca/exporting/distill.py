"""The 8-bit JSON of "Growing Neural Cellular Automata" (Mordvintsev et al., Distill 2020).

The article's page reads a list of two layers, which `public/ca.js` of distillpub/post--growing-ca
describes. Each has its sizes `in_ch` and `out_ch`, and bytes `[in_ch + 1, out_ch]` in rows, as
base64; the last row is the bias. Byte v stands for

    (v / 255 - 1/2) * scale,   scale being `weight_scale`, or `bias_scale` in the last row

so that the values are the odd multiples of scale / 510. Zero is none of them (it would be byte
127.5): a weight of 0 becomes ±scale / 510, unless all are 0, when the scale is 0. The rows of the
first layer are blocks: all channels through identity, then through Sobel-x, then through Sobel-y.

The file says nothing of border, life and time. The page wraps the grid around, tests for life
before and after each step, updates half of the cells, and has buffers for 16 channels and 128
hidden units; it keeps states and hidden units in 8 bits as well, in which no file can help it.
"""

import base64
import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastnca.module import NeuralCA
from fastnca.pictures.render import seed_of
from fastnca.recognition import undescribed
from fastnca.rule import TUTORIAL
from fastnca.states import ALPHA, Size, get_visible_state

_SAME = (
    *("filters", "learn_filters", "alive", "alive_threshold"),
    *("activation", "inputs", "clamp", "step_size"),
)
"""Fields of a rule that must be the tutorial's, since neither file nor page can say another."""

_SCALES = 512  # how many are tried
_LARGEST = 1e38  # twice of it fits float32
_PIXEL = 4  # the page reads four outputs as one pixel

_Floats = NDArray[np.float64]
_Bytes = NDArray[np.uint8]
_Layer = tuple[_Bytes, float, float]  # `[in + 1, out]`, scale of the weights, scale of the bias


@dataclass(frozen=True)
class QuantisationLoss:
    """What 8 bits cost a model: two rollouts from one seed with the same masks.

    Attributes:
        steps: how many steps both took.
        rgba: mean squared difference of their pictures (RGBA in [0, 1]) after the last one.
        living: cells of the model's state whose alpha is above the rule's threshold.
        living_quantised: the same of the model in 8 bits.
        weight: the largest error of a weight or a bias.
    """

    steps: int
    rgba: float
    living: int
    living_quantised: int
    weight: float

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"after {self.steps} steps from the seed the model in 8 bits has "
            f"{self.living_quantised} living cells where the model has {self.living}, and its "
            f"picture differs by {self.rgba:.2g} (mean squared RGBA); weights are off by at most "
            f"{self.weight:.2g}"
        )


def export_distill(model: NeuralCA) -> bytes:
    """Return a model as the article's page reads it.

    Args:
        model: of the tutorial's rule, with one hidden layer of any width and a border of zeros or
            a torus; channels and hidden units in fours. The page itself shows models of 16
            channels and 128 units.

    Returns:
        JSON, with the keys of the published files in their order.

    Raises:
        ValueError: the format cannot say the rule, or the model is not what its rule says, or a
            weight is not finite.
    """
    described = [
        {
            "data_b64": base64.b64encode(values.tobytes()).decode(),
            "in_ch": values.shape[0] - 1,
            "out_ch": values.shape[1],
            "weight_scale": weight_scale,
            "bias_scale": bias_scale,
            "type": "uint8",
        }
        for values, weight_scale, bias_scale in _quantise_layers(model)
    ]
    return json.dumps(described).encode()


def quantised_model(model: NeuralCA) -> NeuralCA:
    """Return a new model with the weights that `export_distill` writes, as they are read back.

    Args:
        model: as `export_distill` takes it.

    Returns:
        A copy of the model that differs from it in its weights only.

    Raises:
        ValueError: as `export_distill`.
    """
    layers, result = _quantise_layers(model), copy.deepcopy(model)
    weights = model.state_dict()
    for number, layer in enumerate(layers):
        weight, bias = (torch.from_numpy(each) for each in _dequantise(*layer))
        name = f"update_net.{2 * number}"
        if number == 0:
            weight = weight.unflatten(1, (3, -1)).transpose(1, 2).flatten(1)
        weights[f"{name}.weight"] = weight[:, :, None, None].contiguous()
        if f"{name}.bias" in weights:
            weights[f"{name}.bias"] = bias
    result.load_state_dict(weights)
    return result


@torch.no_grad()
def quantisation_loss(
    model: NeuralCA,
    *,
    size: Size = 64,
    steps: int = 96,
    update_rate: float = 0.5,
    seed: int = 0,
) -> QuantisationLoss:
    """Grow a model and the same in 8 bits from the model's seed, with the same masks.

    Args:
        model: as `export_distill` takes it; its mode is left alone.
        size: of the grid in cells.
        steps: number of steps, at least 0.
        update_rate: probability that a cell updates.
        seed: of the masks, as in `run_steps`.

    Raises:
        ValueError: as `export_distill`, or a number is out of range.
    """
    quantised, start, mode = quantised_model(model), seed_of(model, size), model.training
    pairs = zip(model.parameters(), quantised.parameters(), strict=True)
    weight = max(float((a - b).abs().max()) for a, b in pairs)
    try:
        ends = [
            each.train().run_steps(start, steps, update_rate, seed=seed)
            for each in (model, quantised)
        ]
    finally:
        model.train(mode)
    shown, shown_quantised = (get_visible_state(end).double() for end in ends)
    rgba = float((shown - shown_quantised).square().mean())
    living, left = (int((end[:, ALPHA] > model.rule.alive_threshold).sum()) for end in ends)
    return QuantisationLoss(steps, rgba, living, left, weight)


def _check(model: NeuralCA) -> None:
    """Refuse what the file cannot say.

    Raises:
        ValueError: the message names the field.
    """
    rule, said = model.rule, 'the JSON of "Growing Neural Cellular Automata"'
    if reasons := undescribed(model):
        raise ValueError(f"{said} cannot describe this model by its rule: {'; '.join(reasons)}")
    for name in _SAME:
        found, expected = getattr(rule, name), getattr(TUTORIAL, name)
        if found != expected:
            raise ValueError(f"{said} has rules with {name}={expected!r} only, got {found!r}")
    if rule.padding not in ("zeros", "circular"):
        raise ValueError(
            f"{said} has rules with padding 'zeros' or 'circular' only, got {rule.padding!r}"
        )
    if len(rule.hidden) != 1:
        raise ValueError(f"{said} has rules with one hidden layer only, got hidden={rule.hidden}")
    for name, count in (("num_channels", model.num_channels), ("hidden", rule.hidden[0])):
        if count % _PIXEL:
            raise ValueError(f"{said} has {name} in fours only, got {count}")


def _quantise_layers(model: NeuralCA) -> list[_Layer]:
    """Return the two layers in bytes, each `[in + 1, out]` and its two scales."""
    _check(model)
    found: list[Any] = [model.update_net[0], model.update_net[2]]
    layers = []
    for number, layer in enumerate(found):
        weight = layer.weight.detach().double().cpu()[:, :, 0, 0]
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        if number == 0:  # channel after channel becomes filter after filter
            weight = weight.unflatten(1, (-1, 3)).transpose(1, 2).flatten(1)
        values = np.concatenate([weight.T.numpy(), bias.double().cpu().numpy()[None]])
        if not np.abs(values).max() <= _LARGEST:
            raise ValueError(f"update_net.{2 * number} holds NaN, or values beyond ±{_LARGEST:g}")
        parts = values[:-1], values[-1:]
        scales = _best_scale(parts[0]), _best_scale(parts[1])
        data = [_round(part, scale) for part, scale in zip(parts, scales, strict=True)]
        layers.append((np.concatenate(data), *scales))
    return layers


def _best_scale(values: _Floats) -> float:
    """Return the scale that makes the largest error least, as float32 has it; 0 if all are 0.

    With twice the largest value, that value is exact and the others are off by up to scale / 510.
    A scale smaller by 1/256 moves it half a step outside, and makes the steps smaller; between
    the two, and a little below for values that lie well, `_SCALES` are tried.
    """
    largest = float(np.abs(values).max())
    best, least = 0.0, np.inf
    for scale in np.linspace(2 * largest * (1 - 1 / 128), 2 * largest, _SCALES, dtype=np.float32):
        error = float(np.abs(_values(_round(values, scale), scale) - values).max())
        if error < least:
            best, least = float(scale), error
    return best


def _round(values: _Floats, scale: float) -> _Bytes:
    """Return the byte nearest to each value."""
    if not scale:
        return np.full(values.shape, 128, np.uint8)
    rounded: _Bytes = np.rint((values / scale + 0.5) * 255).clip(0, 255).astype(np.uint8)
    return rounded


def _values(data: _Bytes, scale: float) -> NDArray[np.float32]:
    """Return what bytes stand for, in float32 as readers compute it."""
    values: NDArray[np.float32] = data.astype(np.float32) / np.float32(255) - np.float32(0.5)
    return values * np.float32(scale)


def _dequantise(
    data: _Bytes, weight_scale: float, bias_scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight `[out, in]` and bias `[out]` of a layer in bytes."""
    return _values(data[:-1], weight_scale).T.copy(), _values(data[-1], bias_scale)
