"""Models in JSON: Distill's 8-bit layers, TensorFlow graphs, and textures as tiles of pictures.

The formats are those of the demonstrations of "Growing Neural Cellular Automata" (Distill 2020) and
"Self-Organising Textures" (Distill 2021); nobody has written them down but in their programs.
"""

import base64
import binascii
import io
import json
import math
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastnca.importing.network import (
    MAX_CHANNELS,
    MAX_HIDDEN,
    Network,
    NoModelError,
    find_network,
)

MAX_BYTES = 1 << 24

_MAX_MODELS = 4096


def read_json(data: bytes) -> dict[str, Network]:
    """Read the models of a JSON file.

    Args:
        data: content of the file.

    Returns:
        Networks by name; a file of one model has the name "".

    Raises:
        NoModelError: it is none of the three formats, or damaged.
    """
    if len(data) > MAX_BYTES:
        raise NoModelError(f"{len(data)} bytes of JSON, at most {MAX_BYTES} are read")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NoModelError(f"damaged JSON ({error})") from error
    if isinstance(content, list):
        return {"": _read_distill(content)}
    if isinstance(content, dict) and "modelTopology" in content:
        return {"": _read_graph(content["modelTopology"])}
    if isinstance(content, dict) and "layers" in content:
        return _read_textures(content)
    raise NoModelError(
        "JSON, but neither Distill's layers, nor a TensorFlow graph, nor texture models"
    )


def _field(values: object, name: str, kind: Any) -> Any:
    """Return a field of a JSON object after a check of its type."""
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise NoModelError(f"the field {name!r} is missing or has a wrong type")
    return value


def _count(values: object, name: str, most: int) -> int:
    value = _field(values, name, int)
    if not 1 <= value <= most:
        raise NoModelError(f"the field {name!r} must be from 1 to {most}")
    return int(value)


def _scale(values: object, name: str) -> float:
    value = _field(values, name, int | float)
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise NoModelError(f"the field {name!r} is not finite")
    return value


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoModelError(f"damaged base64 ({error})") from error


def _read_distill(layers: list[Any]) -> Network:
    """Read layers of bytes `[in + 1, out]`, the last row the bias, value (v / 255 - 0.5) * scale.

    Columns of the first layer are blocks: identity, Sobel-x, Sobel-y.
    """
    if not 1 <= len(layers) <= 9:
        raise NoModelError(f"{len(layers)} layers")
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for layer in layers:
        most = 16 * MAX_CHANNELS
        before, after = _count(layer, "in_ch", most), _count(layer, "out_ch", MAX_HIDDEN)
        data = _decode(_field(layer, "data_b64", str))
        if layer.get("type", "uint8") != "uint8" or len(data) != (before + 1) * after:
            raise NoModelError(
                f"a layer of {before} inputs and {after} outputs needs {(before + 1) * after} "
                f"bytes of type uint8, got {len(data)} of type {str(layer.get('type'))[:20]}"
            )
        pixels = np.frombuffer(data, np.uint8).reshape(before + 1, after).astype(np.float32)
        values = (pixels / 255 - 0.5).astype(np.float32)
        weight, bias = _scale(layer, "weight_scale"), _scale(layer, "bias_scale")
        weights.append(torch.from_numpy((values[:-1] * np.float32(weight)).T.copy()))
        biases.append(torch.from_numpy(values[-1] * np.float32(bias)))
    for one, other in pairwise(weights):
        if len(one) != other.shape[1]:
            raise NoModelError("the layers do not follow each other")
    return Network(weights, biases, "Distill 8-bit JSON", layout="blocks", families=("growing",))


def _read_graph(topology: object) -> Network:
    """Read the constants of a TensorFlow graph that its convolutions use."""
    tensors: dict[str, Tensor] = {}
    for node in _field(topology, "node", list):
        if not isinstance(node, dict) or node.get("op") != "Const":
            continue
        name = _field(node, "name", str)
        if "Conv2D" not in name and "BiasAdd" not in name:
            continue
        value = _field(_field(node, "attr", dict), "value", dict)
        tensor = _field(value, "tensor", dict)
        if tensor.get("dtype") == "DT_FLOAT" and "tensorContent" in tensor:
            tensors[name] = _constant(tensor)
    return find_network(
        tensors, "TensorFlow graph JSON", layout="interleaved", families=("growing",)
    )


def _constant(tensor: Mapping[str, Any]) -> Tensor:
    """Decode a constant; kernels [1, 1, in, out] become [out, in, 1, 1]."""
    sides = (
        [
            int(_field(side, "size", str)) if str(_field(side, "size", str)).isdecimal() else 0
            for side in _field(tensor["tensorShape"], "dim", list)
        ]
        if isinstance(tensor.get("tensorShape"), dict)
        else []
    )
    data = _decode(_field(tensor, "tensorContent", str))
    if not 1 <= len(sides) <= 4 or 4 * math.prod(sides) != len(data) or not data:
        raise NoModelError(f"a constant of shape {sides[:8]} has {len(data)} bytes")
    return from_tensorflow(torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(sides))


def from_tensorflow(value: Tensor) -> Tensor:
    """Return a kernel `[h, w, in, out]` as `[out, in, h, w]`, and anything else as it is."""
    return value.permute(3, 2, 0, 1).contiguous() if value.dim() == 4 else value


def _read_textures(content: Mapping[str, Any]) -> dict[str, Network]:
    """Read texture models: a layer is a picture of tiles `[in + 1, out / 4]`, one for each model.

    The four colours of a pixel are four outputs, value (v - 127) / 255 * scale, the last row the
    bias. Columns of the first layer are blocks: identity, Sobel-x, Sobel-y, Laplacian.
    """
    names = _field(content, "model_names", list)
    layers = _field(content, "layers", list)
    if not 1 <= len(names) <= _MAX_MODELS or len(layers) != 2:
        raise NoModelError(f"{len(names)} models of {len(layers)} layers; two layers are expected")
    tiles = [_read_tiles(layer, len(names)) for layer in layers]
    if tiles[0].shape[2] + 1 != tiles[1].shape[1]:
        raise NoModelError("the layers do not follow each other")
    networks = {}
    for number, name in enumerate(names):
        values = [layer[number] for layer in tiles]
        networks[_short(name, number)] = Network(
            [layer[:-1].T.contiguous() for layer in values],
            [layer[-1].contiguous() for layer in values],
            "texture JSON",
            layout="blocks",
            families=("texture, limited",),
        )
    return networks


def _short(name: object, number: int) -> str:
    return name.rpartition("/")[2] if isinstance(name, str) and name else str(number)


def _read_tiles(layer: object, models: int) -> Tensor:
    """Return `[models, in + 1, out]` float32."""
    sides = [_field(layer, name, list) for name in ("shape", "layout")]
    numbers = [value for pair in sides for value in pair]
    if [len(pair) for pair in sides] != [2, 2] or not all(
        isinstance(value, int) and 1 <= value <= 16 * MAX_CHANNELS for value in numbers
    ):
        raise NoModelError("the fields 'shape' and 'layout' must hold two sizes each")
    (rows, columns), (across, down) = sides
    if columns % 4 or across * down < models:
        raise NoModelError(f"{across}x{down} tiles of {columns} outputs for {models} models")
    prefix, comma, text = _field(layer, "data", str).partition(",")
    if not comma or not prefix.lower().startswith("data:image/png;base64"):
        raise NoModelError("the field 'data' must be a PNG as a data URL")
    pixels = _read_png(_decode(text), (across * columns // 4, down * rows))
    values = (pixels - 127) / 255 * np.float32(_scale(layer, "scale"))
    tiles = values.reshape(down, rows, across, columns // 4, 4).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(tiles.reshape(-1, rows, columns)[:models].copy())


def _read_png(data: bytes, size: tuple[int, int]) -> Any:
    """Return the RGBA pixels `[H, W, 4]` float32 of a PNG that has the announced size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                if picture.size != size or math.prod(size) > MAX_BYTES:
                    raise NoModelError(f"a picture of {picture.size} pixels, announced are {size}")
                return np.asarray(picture.convert("RGBA"), np.float32)
    except NoModelError:
        raise
    except Exception as error:  # Pillow raises half a dozen types on a damaged picture
        raise NoModelError(f"damaged PNG ({error})") from error
