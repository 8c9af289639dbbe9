"""The update network on a list of cells, and its gradients.

Perceived features are k-major, `[n, K*C]`, as in `stencil.py`. `Network` is one hidden layer with
ReLU, in memory that is used again; `AnyNetwork` is what else a rule may say.
"""

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnca.checks import Parameters
from fastnca.rule import Rule

_aten = torch.ops.aten

_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "relu": (F.relu, lambda grad, x, y: _aten.threshold_backward(grad, y, 0)),
    "leaky_relu": (
        F.leaky_relu,
        lambda grad, x, y: _aten.leaky_relu_backward(grad, x, 0.01, False),
    ),
    "elu": (F.elu, lambda grad, x, y: _aten.elu_backward(grad, 1, 1, 1, False, x)),
    "gelu": (F.gelu, lambda grad, x, y: _aten.gelu_backward(grad, x)),
    "silu": (F.silu, lambda grad, x, y: _aten.silu_backward(grad, x)),
    "tanh": (torch.tanh, lambda grad, x, y: _aten.tanh_backward(grad, y)),
    "sigmoid": (torch.sigmoid, lambda grad, x, y: _aten.sigmoid_backward(grad, y)),
}
"""By name: y = φ(x), and the gradient of x from that of y. Within an operator of torch's there is
no graph to differentiate, so the derivatives are called by name."""


def k_major(weight: Tensor, filters: int) -> Tensor:
    """Reorder the columns of a first layer: `[hidden, K*C, 1, 1]` to a matrix `[hidden, K*C]`.

    The module's input channel `K*c + k` is filter k of channel c.
    """
    hidden = weight.shape[0]
    return weight.reshape(hidden, -1, filters).transpose(1, 2).reshape(hidden, -1)


def channel_major(weight: Tensor, filters: int) -> Tensor:
    """Do the reverse of `k_major`: `[hidden, K*C]` to `[hidden, K*C, 1, 1]`."""
    hidden = weight.shape[0]
    return weight.view(hidden, filters, -1).transpose(1, 2).reshape(hidden, -1, 1, 1)


def make_network(rule: Rule, parameters: Parameters) -> "Network | AnyNetwork":
    """Return the network of a rule.

    Args:
        rule: which layers there are.
        parameters: weight and bias of each, `[after, before, 1, 1]` and `[after]`.
    """
    if len(rule.hidden) == 1 and rule.activation == "relu":
        return Network(rule, parameters)
    return AnyNetwork(rule, parameters)


class Network:
    """One hidden layer with ReLU.

    Args:
        rule: the number of filters.
        parameters: `[hidden, K*C, 1, 1]`, `[hidden]`, `[C, hidden, 1, 1]` and perhaps `[C]`.
    """

    def __init__(self, rule: Rule, parameters: Parameters) -> None:
        weight1, self.bias1, weight2 = parameters[:3]
        self.filters = len(rule.filters)
        self.weight1 = k_major(weight1, self.filters)
        self.weight2 = weight2.flatten(1)
        self.bias2 = parameters[3] if len(parameters) == 4 else None

    @cached_property
    def _weight1_t(self) -> Tensor:
        return self.weight1.t().contiguous()

    @cached_property
    def _weight2_t(self) -> Tensor:
        return self.weight2.t().contiguous()

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        return {}

    def buffer(self, name: str, cells: int) -> Tensor:
        """Return uninitialised memory `[cells, hidden]`, the same for every call with `name`.

        The hidden layer is the largest temporary; new memory for it in every step would cost
        more page faults than arithmetic.
        """
        held = self._buffers.get(name)
        if held is None or held.shape[0] < cells:
            held = self.weight1.new_empty(cells + cells // 4, self.weight1.shape[0])
            self._buffers[name] = held
        return held[:cells]

    def hidden(self, features: Tensor) -> Tensor:
        """Compute h (E3): `[n, K*C]` to `[n, hidden]`, valid until the next call."""
        out = self.buffer("hidden", features.shape[0])
        return torch.addmm(self.bias1, features, self._weight1_t, out=out).relu_()

    def delta(self, features: Tensor) -> Tensor:
        """Compute Δ (E3): `[n, K*C]` to `[n, C]`."""
        hidden = self.hidden(features)
        if self.bias2 is None:
            return hidden @ self._weight2_t
        return torch.addmm(self.bias2, hidden, self._weight2_t)

    def gradients(self, wanted: bool) -> "NetworkGrad":
        """Return sums of the gradients of the weights; `wanted` says whether they are needed."""
        return NetworkGrad(self, wanted)


class NetworkGrad:
    """Running sums of the gradients of a network's weights.

    Args:
        network: the weights.
        wanted: False leaves the sums out, for a network whose weights are frozen.
    """

    def __init__(self, network: Network, wanted: bool) -> None:
        self._network = network
        self._wanted = wanted
        self.weight1 = torch.zeros_like(network.weight1)
        self.bias1 = torch.zeros_like(network.bias1)
        self.weight2 = torch.zeros_like(network.weight2)
        self.bias2 = None if network.bias2 is None else torch.zeros_like(network.bias2)

    def add(self, features: Tensor, grad_delta: Tensor) -> Tensor:
        """Add one list of cells (E9 to E11).

        Args:
            features: `[n, K*C]`, what the cells perceived.
            grad_delta: `[n, C]`, the gradient of their update.

        Returns:
            `[n, K*C]`, the gradient of the features.
        """
        network = self._network
        hidden = network.hidden(features)
        grad_hidden = network.buffer("grad_hidden", features.shape[0])
        # E10, in two calls
        torch.mm(grad_delta, network.weight2, out=grad_hidden)
        torch.ops.aten.threshold_backward.grad_input(grad_hidden, hidden, 0, grad_input=grad_hidden)
        if self._wanted:
            self.weight2.addmm_(grad_delta.t(), hidden)  # E9
            if self.bias2 is not None:
                self.bias2 += grad_delta.sum(0)  # E9
            self.weight1.addmm_(grad_hidden.t(), features)  # E10
            self.bias1 += grad_hidden.sum(0)  # E10
        return grad_hidden @ network.weight1  # E11

    def to_parameters(self) -> tuple[Tensor, ...]:
        """Return the sums in the shapes and the order of the parameters."""
        w1 = channel_major(self.weight1, self._network.filters)
        w2 = self.weight2[:, :, None, None]
        return (w1, self.bias1, w2) if self.bias2 is None else (w1, self.bias1, w2, self.bias2)


class AnyNetwork:
    """Any number of layers, any activation.

    Args:
        rule: layers and activation.
        parameters: weight and bias of each layer, `[after, before, 1, 1]` and `[after]`; the last
            layer may have no bias.
    """

    def __init__(self, rule: Rule, parameters: Parameters) -> None:
        self.filters = len(rule.filters)
        self.activation, self.activation_grad = _ACTIVATIONS[rule.activation]
        weights = [each.flatten(1) for each in parameters if each.dim() == 4]
        self.weights = [k_major(parameters[0], self.filters), *weights[1:]]
        self.biases: list[Tensor | None] = [each for each in parameters if each.dim() == 1]
        if len(self.biases) < len(self.weights):
            self.biases.append(None)

    def layers(self, features: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the input of each layer, and its output before the activation."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs.append(self.activation(outputs[-1]) if outputs else features)
            outputs.append(F.linear(inputs[-1], weight, bias))
        return inputs, outputs

    def delta(self, features: Tensor) -> Tensor:
        """Compute Δ (E3): `[n, K*C]` to `[n, C]`."""
        return self.layers(features)[1][-1]

    def gradients(self, wanted: bool) -> "AnyNetworkGrad":
        """Return sums of the gradients of the weights; `wanted` says whether they are needed."""
        return AnyNetworkGrad(self, wanted)


class AnyNetworkGrad:
    """Running sums of the gradients of a network's weights; see `NetworkGrad`."""

    def __init__(self, network: AnyNetwork, wanted: bool) -> None:
        self._network = network
        self._wanted = wanted
        self._weights = [torch.zeros_like(weight) for weight in network.weights]
        self._biases = [None if bias is None else torch.zeros_like(bias) for bias in network.biases]

    def add(self, features: Tensor, grad_delta: Tensor) -> Tensor:
        """Add one list of cells (E9 to E11 for every layer); see `NetworkGrad.add`."""
        network, grad = self._network, grad_delta
        inputs, outputs = network.layers(features)
        for layer in reversed(range(len(outputs))):
            if layer < len(outputs) - 1:
                grad = network.activation_grad(grad, outputs[layer], inputs[layer + 1])
            if self._wanted:
                self._weights[layer].addmm_(grad.t(), inputs[layer])
                bias = self._biases[layer]
                if bias is not None:
                    bias += grad.sum(0)
            grad = grad @ network.weights[layer]
        return grad

    def to_parameters(self) -> tuple[Tensor, ...]:
        """Return the sums in the shapes and the order of the parameters."""
        found = []
        for layer, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            first = layer == 0
            matrix = channel_major(weight, self._network.filters) if first else weight
            found.append(matrix if first else matrix[:, :, None, None])
            if bias is not None:
                found.append(bias)
        return tuple(found)
