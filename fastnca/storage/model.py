"""Models as files: the package's own directory format, and the state dicts of other programs."""

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from fastnca import reference
from fastnca.recognition import undescribed
from fastnca.reference import sobel_filters
from fastnca.rule import TUTORIAL, Rule
from fastnca.states import ALPHA
from fastnca.storage.bundle import (
    BundleFormat,
    FileFormatError,
    Header,
    Shapes,
    check_tensors,
    read_field,
)
from fastnca.storage.state_dict import LAST_WEIGHT, read_state_dict
from fastnca.version import __version__

if TYPE_CHECKING:
    from fastnca.module import NeuralCA

    Model = TypeVar("Model", bound=NeuralCA)

_MAX_CHANNELS = 1024
_MAX_HIDDEN = 8192
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_FILE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def model_shapes(channels: int, rule: Rule, dtype: torch.dtype) -> Shapes:
    """Return name, shape and dtype of every entry of a model's `state_dict`."""
    return {name: (shape, dtype) for name, shape in rule.shapes(channels).items()}


def _expected(header: Header) -> Shapes:
    """Compute the shapes that a model's description announces."""
    if not isinstance(header.get("metadata"), dict):
        raise ValueError("field 'metadata' must be an object")
    if header.get("dtype") not in _DTYPES:
        raise ValueError(
            f"field 'dtype' must be one of {', '.join(_DTYPES)}, got {header.get('dtype')!r}"
        )
    return model_shapes(*read_sizes(header), _DTYPES[header["dtype"]])


def read_sizes(header: Header) -> tuple[int, Rule]:
    """Return channels and rule out of a description; one without a rule is the tutorial's.

    Raises:
        TypeError, ValueError: a field is missing or wrong.
    """
    if "rule" in header:
        rule = Rule.from_dict(header["rule"])
    else:
        rule = TUTORIAL.with_hidden(read_field(header, "hidden_dim", 1, _MAX_HIDDEN))
    channels = read_field(header, "num_channels", 1, _MAX_CHANNELS)
    rule.check_channels(channels)
    if (widest := max(rule.hidden, default=0)) > _MAX_HIDDEN:
        raise ValueError(
            f"field 'hidden' of the rule must hold integers from 1 to {_MAX_HIDDEN}, got {widest}"
        )
    return channels, rule


MODEL_FORMAT = BundleFormat("fastnca-model", "config.json", "model.safetensors", _expected)


def describe_model(model: "NeuralCA", path: Path = Path("the model")) -> Header:
    """Return what `config.json` says of a model.

    Args:
        model: the model.
        path: where it is to be saved, for messages.

    Raises:
        FileFormatError: its tensors have no place in the files.
        TypeError: it is no NeuralCA, or its metadata is not JSON-serialisable.
        ValueError: the files cannot describe the model, or its sizes or its dtype have no place
            in them.
    """
    if not isinstance(model, reference.NeuralCA) or not hasattr(model, "metadata"):
        raise TypeError(f"only a fastnca.NeuralCA can be saved, got a {_name(type(model))}")
    if reasons := undescribed(model):
        raise ValueError(
            f"config.json cannot describe this model by its rule: {'; '.join(reasons)}. Save its "
            "weights alone with torch.save(model.state_dict(), path)"
        )
    weight = model.update_net[0].weight
    header = {
        "fastnca_version": __version__,
        "num_channels": model.num_channels,
        "rule": model.rule.to_dict(),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "metadata": model.metadata,
    }
    json.dumps(header, allow_nan=False)
    check_tensors(path, model.state_dict(), _expected(header))
    return header


def save_model(model: "NeuralCA", path: str | PathLike[str]) -> None:
    """Write `model` into directory `path`; see `NeuralCA.save`."""
    path = Path(path)
    MODEL_FORMAT.write(path, describe_model(model, path), model.state_dict())


def _name(kind: type) -> str:
    """Return the full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _check_class(path: Path, header: Header, kind: type) -> None:
    """Refuse a model whose class computes another step than `kind` does.

    Raises:
        FileFormatError: an earlier fastnca saved the model from a class that overrides the step.
    """
    saved = header.get("class")
    if saved not in (None, _name(kind)):
        raise FileFormatError(
            path,
            f"the model was saved from the class {saved}, which overrides the step; load it with "
            f"that class, whose load is inherited, got {_name(kind)}",
        )


def load_model(
    kind: "type[Model]", path: str | PathLike[str], *, backend: str, precision: str
) -> "Model":
    """Read a model of class `kind`; see `NeuralCA.load`."""
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL_FORMAT.json_name).is_file():
            raise FileNotFoundError(f"{path}: no {MODEL_FORMAT.json_name} in this directory")
        header, tensors = MODEL_FORMAT.read(path)
        _check_class(path / MODEL_FORMAT.json_name, header, kind)
        sizes, metadata = read_sizes(header), header["metadata"]
    elif path.is_file():
        sizes, tensors = _complete(path, read_state_dict(path))
        metadata = {}
    else:
        raise FileNotFoundError(f"{path}: no such model directory or file")
    return build_model(kind, sizes, tensors, metadata, {"backend": backend, "precision": precision})


def build_model(
    kind: "type[Model]",
    sizes: tuple[int, Rule],
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    options: dict[str, Any],
) -> "Model":
    """Make a model around `tensors`, without drawing the random numbers of an initialisation.

    Args:
        kind: its class.
        sizes: channels and rule.
        tensors: its `state_dict`, which the model takes as they are.
        metadata: what is saved with it.
        options: backend and precision, as in `NeuralCA`.
    """
    channels, rule = sizes
    with torch.device("meta"):
        if rule == TUTORIAL.with_hidden(rule.hidden[0] if rule.hidden else 1):
            model = kind(channels, rule.hidden[0], **options)  # a subclass may know no rule
        else:
            model = kind(channels, rule=rule, **options)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.metadata = metadata
    return model


def _complete(path: Path, tensors: dict[str, Tensor]) -> tuple[tuple[int, Rule], dict[str, Tensor]]:
    """Check a state dict, add the constants that some programs leave out, and copy it.

    Returns:
        Channels and rule, which the shapes tell; and the tensors of `model_shapes`,
        float64 if one of the file is, else float32.
    """
    last = tensors[LAST_WEIGHT]
    if last.dim() != 4:
        raise FileFormatError(
            path,
            f"tensor '{LAST_WEIGHT}' must be the weight of a 1x1 convolution, got "
            f"{list(last.shape)}; an nn.Linear leaves the order of its inputs open: where input "
            "3*c + k is filter k of channel c, save weight[:, :, None, None]",
        )
    channels, hidden = last.shape[0], last.shape[1]
    if not (ALPHA < channels <= _MAX_CHANNELS and 1 <= hidden <= _MAX_HIDDEN):
        raise FileFormatError(path, f"{channels} channels, {hidden} hidden units: out of range")
    with torch.device("cpu"):
        filters = sobel_filters().repeat(channels, 1, 1)[:, None]
        constants = {
            "perception.filters": filters,
            "update_net.0.bias": torch.zeros(hidden),
            "update_net.2.bias": torch.zeros(channels),
        }
    tensors = constants | tensors
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    shapes = {}
    rule = TUTORIAL.with_hidden(hidden)
    for name, (shape, default) in model_shapes(channels, rule, torch.float32).items():
        shapes[name] = (shape, dtypes.get(name, default))
        if shapes[name][1] not in _FILE_DTYPES:
            raise FileFormatError(
                path,
                f"tensor '{name}' must hold floats of 16, 32 or 64 bits, got {dtypes[name]}",
            )
    check_tensors(path, tensors, shapes)
    dtype = torch.float64 if torch.float64 in dtypes.values() else torch.float32
    tensors = {
        name: tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    if not torch.equal(tensors["perception.filters"], filters.to(dtype)):
        raise FileFormatError(
            path,
            "tensor 'perception.filters' must hold identity, Sobel-x / 8 and Sobel-y / 8 for every "
            "channel; other filters are another rule, so train a model with these",
        )
    return (channels, rule), tensors
