"""Read published models, which are data beside the repository and not part of it.

The layouts are the authors': "blocks" hold all channels through one filter, then through the next.
"""

import base64
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"

Network = dict[str, Tensor]
"""Weights and biases by their names in a state dict, float32."""


def find(name: str) -> Path:
    """Return a published file; skip the test where there is none."""
    path = WEIGHTS / name
    if not path.exists():
        pytest.skip(f"the published weights {name} are not here")
    return path


def make_network(layers: list[np.ndarray], filters: int) -> Network:
    """Turn layers `[in + 1, out]`, blocks in the first, into weights; the last row is the bias."""
    tensors = {}
    for place, layer in enumerate(layers):
        weight, bias = torch.from_numpy(layer[:-1].T.copy()), torch.from_numpy(layer[-1].copy())
        if place == 0:
            weight = weight.unflatten(1, (filters, -1)).transpose(1, 2).flatten(1)
        tensors[f"update_net.{2 * place}.weight"] = weight[:, :, None, None].contiguous()
        tensors[f"update_net.{2 * place}.bias"] = bias
    return tensors


def growing_names() -> list[str]:
    """Name the growing models of the article."""
    return sorted(path.stem for path in find("distill-growing").glob("*.json"))


def read_growing(name: str) -> Network:
    """Read a growing model of the article, 16 channels: bytes, scaled."""
    layers = []
    for layer in json.loads(find(f"distill-growing/{name}.json").read_text()):
        values = np.frombuffer(base64.b64decode(layer["data_b64"]), np.uint8)
        values = values.reshape(layer["in_ch"] + 1, layer["out_ch"]).astype(np.float32) / 255 - 0.5
        values[:-1] *= layer["weight_scale"]
        values[-1] *= layer["bias_scale"]
        layers.append(values)
    return make_network(layers, 3)


@cache
def texture_file() -> tuple[dict[str, int], list[tuple[np.ndarray, float]]]:
    """Read the texture models' names, and of each layer `[models, in + 1, out]` and the scale."""
    content = json.loads(find("google-textures.json").read_text())
    layers = []
    for layer in content["layers"]:
        picture = Image.open(io.BytesIO(base64.b64decode(layer["data"].split(",")[1])))
        pixels = np.asarray(picture.convert("RGBA"), np.float32)
        (rows, columns), (across, down) = layer["shape"], layer["layout"]
        tiles = pixels.reshape(down, rows, across, columns // 4, 4).transpose(0, 2, 1, 3, 4)
        layers.append((tiles.reshape(-1, rows, columns), layer["scale"]))
    names = {
        name.removeprefix("texture/models/"): n for n, name in enumerate(content["model_names"])
    }
    return names, layers


def read_texture(name: str) -> Network:
    """Read a texture model, 12 channels: a tile of a picture for every layer."""
    names, layers = texture_file()
    return make_network([(tiles[names[name]] - 127) / 255 * scale for tiles, scale in layers], 4)
