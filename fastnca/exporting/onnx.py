"""One step of a model as an ONNX graph, for any batch, height and width.

The graph is built node by node from the rule, with the operators of opset 13, which every runtime
of the last years has; the equations are those of `fastnca.reference`. Its names:

    state       `[batch, channels, height, width]` float32
    mask        `[batch, 1, height, width]` float32, 1 where a cell updates and 0 elsewhere (E4);
                `fastnca.update_mask` draws those of `run_steps(seed=...)`, ones update every cell
    next_state  as `state`

Weights have the names of the model's state dict. The file's metadata says the rest: `rule` as JSON,
`update_rate`, and of the seed `start` and `fill_hidden`, as in `TrainConfig`.
"""

import json
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastnca.module import NeuralCA
from fastnca.recognition import undescribed
from fastnca.rule import Rule
from fastnca.states import ALPHA
from fastnca.version import __version__

OPSET = 13
_IR_VERSION = 8  # of the file's container; the one that came with opset 13 is 7
_END = 2**31 - 1  # the end of an axis, wherever it is

_NEIGHBOURS = {"circular": (-1, 0), "reflect": (1, -2), "replicate": (0, -1)}
"""Which rows stand before the first and after the last one; which columns, as well."""


def export_onnx(model: NeuralCA) -> bytes:
    """Return one step of a model as an ONNX file.

    Args:
        model: of any rule, any dtype, which becomes float32. Which cells update is an input, so
            that its mode does not matter.

    Returns:
        The file, as runtimes for opset 13 read it.

    Raises:
        ImportError: there is no `onnx`.
        ValueError: the model is not what its rule and its weights say.
    """
    onnx = load_library()
    if reasons := undescribed(model):
        raise ValueError(
            f"an ONNX file cannot describe this model by its rule: {'; '.join(reasons)}"
        )
    graph = _Graph(onnx)
    _build_step(graph, model)
    return graph.finish(model)


def load_library() -> ModuleType:
    """Import `onnx`.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(f"ONNX files need onnx: pip install fastnca[onnx] ({error})") from error
    return onnx


class _Graph:
    """Nodes and constants of a graph, which grow while the step is written down.

    Methods return the name of the value that they add.
    """

    def __init__(self, onnx: ModuleType) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        name = name or f"{operator.lower()}_{len(self.nodes)}"
        made = self.onnx.helper.make_node(operator, inputs, [name], name=name, **attributes)
        self.nodes.append(made)
        return name

    def tensor(self, name: str, value: Tensor) -> str:
        """Add a constant."""
        array = value.detach().cpu().contiguous().numpy()
        self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def number(self, value: float) -> str:
        """Add a float32 constant with one element; equal ones are one."""
        return self.tensor(f"number_{value}", torch.tensor(value, dtype=torch.float32))

    def cut(self, values: str, axis: int, first: int, end: int) -> str:
        """Add a slice along one axis, whose limits count from the end where they are negative."""
        limits = [
            self.tensor(f"axis_{limit}", torch.tensor([limit], dtype=torch.int64))
            for limit in (first, end, axis)
        ]
        return self.node("Slice", values, *limits)

    def surround(self, values: str, padding: str) -> str:
        """Add a cell at each side of the grid, copied from where `padding` says."""
        for axis in (2, 3):
            around = [
                self.cut(values, axis, place, place + 1 if place != -1 else _END)
                for place in _NEIGHBOURS[padding]
            ]
            values = self.node("Concat", around[0], values, around[1], axis=axis)
        return values

    def finish(self, model: NeuralCA) -> bytes:
        """Return the file of a graph whose last node is "next_state"."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        facts, channels = model.metadata, model.num_channels

        def value(name: str, count: int) -> Any:
            return helper.make_tensor_value_info(name, kind, ["batch", count, "height", "width"])

        graph = helper.make_graph(
            self.nodes,
            "step",
            [value("state", channels), value("mask", 1)],
            [value("next_state", channels)],
            list(self.constants.values()),
            doc_string="One step of a neural cellular automaton; mask is 1 where a cell updates.",
        )
        made = helper.make_model(
            graph,
            producer_name="fastnca",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
        )
        said = {
            "rule": model.rule.json,
            "update_rate": json.dumps(facts.get("update_rate", 0.5)),
            "start": str(facts.get("start", "cell")),
            "fill_hidden": json.dumps(bool(facts.get("fill_hidden", False))),
        }
        helper.set_model_props(made, said)
        data: bytes = made.SerializeToString()
        return data


def _build_step(graph: _Graph, model: NeuralCA) -> None:
    """Write the step down, from "state" and "mask" to "next_state"."""
    rule, own = model.rule, model.num_channels - model.rule.inputs
    cells = graph.cut("state", 1, 0, own) if rule.inputs else "state"
    alive = [_alive(graph, rule, cells)] if rule.alive_before else []  # E2
    delta = _update(graph, model)
    if rule.step_size != 1.0:
        delta = graph.node("Mul", delta, graph.number(rule.step_size))
    updated = graph.node("Add", cells, graph.node("Mul", delta, "mask"))  # E5
    if rule.clamp is not None:
        limited = graph.node("Clip", updated, *map(graph.number, rule.clamp))
        updates = graph.node("Greater", "mask", graph.number(0.0))
        updated = graph.node("Where", updates, limited, cells)
    if rule.alive_after:
        alive.append(_alive(graph, rule, updated))  # E7
    for each in alive:
        updated = graph.node("Mul", updated, each)  # E6, E7
    if rule.inputs:
        inputs = graph.cut("state", 1, own, _END)
        graph.node("Concat", updated, inputs, axis=1, name="next_state")
    else:
        graph.node("Identity", updated, name="next_state")


def _alive(graph: _Graph, rule: Rule, cells: str) -> str:
    """Mark living cells (E2, E7), 1.0 where alive; beyond a border that is none lives nothing."""
    alpha = graph.cut(cells, 1, ALPHA, ALPHA + 1)
    pads = [1, 1, 1, 1]
    if rule.padding == "circular":
        alpha, pads = graph.surround(alpha, "circular"), [0, 0, 0, 0]
    largest = graph.node("MaxPool", alpha, kernel_shape=[3, 3], strides=[1, 1], pads=pads)
    alive = graph.node("Greater", largest, graph.number(rule.alive_threshold))
    return graph.node("Cast", alive, to=graph.onnx.TensorProto.FLOAT)


def _update(graph: _Graph, model: NeuralCA) -> str:
    """Write down what the network proposes for every cell (E1, E3)."""
    rule = model.rule
    weights = {name: graph.tensor(name, each.float()) for name, each in model.state_dict().items()}
    values, pads = "state", [1, 1, 1, 1]
    if rule.padding != "zeros":
        values, pads = graph.surround(values, rule.padding), [0, 0, 0, 0]
    values = graph.node(
        "Conv",
        values,
        weights["perception.filters"],
        group=model.num_channels,
        kernel_shape=[3, 3],
        pads=pads,
        name="perception",
    )
    for number in range(len(rule.hidden) + 1):
        names = (f"update_net.{2 * number}.weight", f"update_net.{2 * number}.bias")
        given = [name for name in names if name in weights]
        values = graph.node("Conv", values, *given, kernel_shape=[1, 1], name=f"layer_{number}")
        if number < len(rule.hidden):
            values = _activate(graph, rule.activation, values)
    return values


def _activate(graph: _Graph, activation: str, values: str) -> str:
    """Write down an activation with torch's defaults."""
    match activation:
        case "silu":
            return graph.node("Mul", values, graph.node("Sigmoid", values))
        case "gelu":  # the exact one; `Gelu` itself came with opset 20
            scaled = graph.node("Mul", values, graph.number(math.sqrt(0.5)))
            share = graph.node("Add", graph.node("Erf", scaled), graph.number(1.0))
            return graph.node("Mul", graph.node("Mul", values, share), graph.number(0.5))
        case "leaky_relu":
            return graph.node("LeakyRelu", values, alpha=0.01)
        case "elu":
            return graph.node("Elu", values, alpha=1.0)
    return graph.node({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[activation], values)
