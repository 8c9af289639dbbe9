"""A model as one HTML page in which it grows, with nothing but the page itself.

The scripts are the package's own files, joined as they are, so that the page can be read.
"""

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import torch
from torch import Tensor

from fastnca.masks import check_seed, check_update_rate
from fastnca.module import NeuralCA
from fastnca.pictures.render import trained_size
from fastnca.recognition import parameters_of, undescribed
from fastnca.rule import Rule
from fastnca.states import Size, height_and_width
from fastnca.version import __version__

SCRIPTS = (
    "philox.js",
    "model.js",
    "automaton.js",
    "shaders.js",
    "resources.js",
    "webgl.js",
    "api.js",
    "painting.js",
    "page.js",
)
"""The scripts of the page, in their order."""

LARGEST_SIDE = 1024
"""The longest side of a grid in cells: a browser draws every cell in every step."""

_MOST_FILTERS = 4
_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)


def export_html(
    model: NeuralCA,
    *,
    title: str,
    size: Size | None = None,
    seed: int = 7,
    update_rate: float | None = None,
) -> str:
    """Write a page in which a model grows from its seed, and can be damaged.

    The page computes in float32, also a float64 model, in WebGL 2 or in plain JavaScript. Its
    random updates are those of `run_steps(..., seed=seed)`.

    Args:
        model: what the page computes. Its metadata says where it starts from, how it looks, and
            what is not given here.
        title: heading of the page.
        size: of the grid in cells; as the model was trained if None.
        seed: 64-bit seed of the random updates.
        update_rate: probability in [0, 1] that a cell updates in a step; as the model was trained
            if None, or 0.5 where it does not say.

    Returns:
        HTML.

    Raises:
        TypeError: size or seed has another type.
        ValueError: the page cannot compute the model, or a value is out of range.
    """
    if reasons := page_reasons(model):
        raise ValueError("; ".join(reasons))
    height, width = height_and_width(trained_size(model) if size is None else size)
    if max(height, width) > LARGEST_SIDE:
        raise ValueError(
            f"the page shows grids of at most {LARGEST_SIDE} cells a side, got {height}x{width}"
        )
    if model.rule.padding == "reflect" and min(height, width) < 2:
        raise ValueError(f"padding='reflect' needs two cells a side, got {height}x{width}")
    rate = model.metadata.get("update_rate", 0.5) if update_rate is None else update_rate
    facts = {
        "channels": model.num_channels,
        "hidden": model.rule.hidden[0],
        "size": [height, width],
        "seed": str(check_seed(seed)),
        "updateRate": check_update_rate(float(rate)),
        "start": str(model.metadata.get("start", "cell")),
        "fillHidden": bool(model.metadata.get("fill_hidden", False)),
        "texture": _is_texture(model),
        "rule": {**model.rule.to_dict(), "taps": model.rule.taps},
        "weights": _weights(model),
    }
    style = _read("page.css")
    script = '\n"use strict";\n{\n' + "\n".join(map(_read, SCRIPTS)) + "}\n"
    return Template(_read("page.html")).substitute(
        policy=_POLICY.format(script=_digest(script), style=_digest(style)),
        title=escape(title),
        style=style,
        script=script,
        model=_escape_json(facts),
        channels=model.num_channels,
        hidden=model.rule.hidden[0],
        count=f"{sum(each.numel() for each in parameters_of(model)):,}",
        version=escape(__version__),
    )


def page_reasons(model: NeuralCA) -> list[str]:
    """List why no page can compute a model, one sentence each; empty if one can."""
    if reasons := [*undescribed(model), *_rule_reasons(model.rule)]:
        return reasons
    least, what = (3, "a texture's three colours") if _is_texture(model) else (4, "RGBA")
    if model.num_channels < least:
        reasons.append(f"num_channels={model.num_channels}: the page shows {what}")
    if not all(bool(each.isfinite().all()) for each in parameters_of(model)):
        reasons.append("a weight is not finite")
    return reasons


def _rule_reasons(rule: Rule) -> list[str]:
    """List what the page does not compute of a rule; see `fastnca.backends.cpp.rules`."""
    reasons = []
    if len(rule.filters) > _MOST_FILTERS:
        reasons.append(f"filters={rule.filters!r}: the page computes at most {_MOST_FILTERS}")
    if rule.learn_filters:
        reasons.append("learn_filters=True: the page computes fixed filters")
    if len(rule.hidden) != 1:
        reasons.append(f"hidden={rule.hidden!r}: the page computes one hidden layer")
    if rule.activation != "relu":
        reasons.append(f"activation={rule.activation!r}: the page computes relu")
    return reasons


def _is_texture(model: NeuralCA) -> bool:
    return model.metadata.get("visible") == "texture"


def _weights(model: NeuralCA) -> dict[str, str]:
    """Return the weights as base64 text of little-endian float32 numbers."""
    names = ("hiddenWeight", "hiddenBias", "outputWeight", "outputBias")
    return {name: _encode(each) for name, each in zip(names, parameters_of(model), strict=False)}


def _encode(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous().flatten().numpy()
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _escape_json(value: Any) -> str:
    """Return JSON that neither ends a script element nor begins a comment in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return (files("fastnca.exporting") / name).read_text(encoding="utf-8")
