"""The optimiser's part of an iteration: clip or normalise gradients, then step, or skip."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from torch import Tensor

from fastnca.training.config import TrainConfig

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class ModelOptimizer:
    """Adam, and what happens to gradients before it.

    On a GPU the decision whether an iteration counts stays there: fused Adam takes it as a
    tensor, by the convention of torch's gradient scaler. On a CPU the host looks at it, which
    costs nothing, and Adam is torch's ordinary one.

    Args:
        model: whose parameters are trained.
        config: the options.
        on_device: True keeps decision and learning rate in tensors; where None, on CUDA only.

    Attributes:
        adam: the optimiser.
        parameters: what it trains, in its order.
        good_weights: the `state_dict` that last gave a finite loss and gradient.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, on_device: bool | None = None
    ) -> None:
        self.parameters = parameters = list(model.parameters())
        device = parameters[0].device
        self._model = model
        self._gradient, self._clip_norm = config.gradient, config.clip_norm
        self._on_device = device.type == "cuda" if on_device is None else on_device
        rate: Tensor | float = config.learning_rate
        if self._on_device:
            rate = torch.tensor(config.learning_rate, dtype=torch.float32, device=device)
        self.adam = torch.optim.Adam(
            parameters,
            lr=rate,
            betas=config.betas,
            fused=self._on_device or None,
            capturable=device.type == "cuda",
        )
        self.good_weights = copy_weights(model)
        self._parts: list[list[Tensor | None]] = []

    def zero_grad(self) -> None:
        """Forget the gradients of the iteration before."""
        self.adam.zero_grad()
        self._parts = []

    def set_aside(self) -> None:
        """Make the gradients so far a part of the batch's; the next ones start from nothing."""
        self._parts.append([parameter.grad for parameter in self.parameters])
        self.adam.zero_grad()

    def clip_or_normalize(self) -> Tensor:
        """Add up the parts that were set aside, and clip, normalise or balance the gradients.

        Returns:
            `[]`, Euclidean norm of all gradients before that.
        """
        self._sum_parts(lambda part: part)
        parameters = [p for p in self.parameters if p.grad is not None]
        if self._gradient == "clip":
            norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._gradient == "balance":
            self._sum_parts(_normalized)
        if self._gradient in ("normalize", "balance"):
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = _normalized(parameter.grad)
        return norm

    def _sum_parts(self, change: Callable[[Tensor], Tensor]) -> None:
        """Let the gradient of each parameter be the sum of its changed parts, if there are any."""
        for parameter, *parts in zip(self.parameters, *self._parts, strict=True):
            found = [change(part) for part in parts if part is not None]
            if found:
                parameter.grad = torch.stack(found).sum(0)

    def step(self, is_finite: Tensor, rate: float | Tensor) -> None:
        """Take one step of the optimiser, or none.

        Args:
            is_finite: `[]` bool, whether the iteration counts.
            rate: the learning rate; `[]` if the decision stays on the device.
        """
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self._on_device:
            for name, value in self._model.state_dict().items():
                good = self.good_weights[name]
                good.copy_(torch.where(is_finite, value, good))
            self.adam.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self.adam.grad_scale = None  # type: ignore[attr-defined]
            self.adam.step()
        elif is_finite:
            self.good_weights = copy_weights(self._model)
            self.adam.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the good weights, and Adam's moments by the name of their parameter."""
        moments = {
            f"{moment}.{name}": self.adam.state[parameter][moment]
            for name, parameter in self._model.named_parameters()
            for moment in _MOMENTS
            if parameter in self.adam.state
        }
        return {**{f"good.{name}": value for name, value in self.good_weights.items()}, **moments}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        for name, value in self.good_weights.items():
            value.copy_(state[f"good.{name}"])
        moments = {
            number: {moment: state[f"{moment}.{name}"] for moment in _MOMENTS}
            for number, (name, _) in enumerate(self._model.named_parameters())
            if f"step.{name}" in state
        }
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": moments, "param_groups": groups})

    def forget_moments(self) -> None:
        """Set Adam's moments and its count of steps to zero."""
        for state in self.adam.state.values():
            for value in state.values():
                value.zero_()


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Return the learning rate of an iteration.

    Args:
        config: the options.
        iteration: iterations done before it.

    Returns:
        The rate that the recipe asks for, with its warm-up.
    """
    rate = config.learning_rate
    if config.schedule == "milestones":
        rate *= config.decay ** sum(iteration >= milestone for milestone in config.milestones)
    else:
        start = config.hold * config.iterations
        left = 1 - min(1.0, max(0.0, iteration - start) / max(1.0, config.iterations - start))
        if config.schedule == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        rate *= config.decay + (1 - config.decay) * left
    return rate * min(1.0, (iteration + 1) / max(1, config.warm_up))


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's `state_dict`."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _normalized(gradient: Tensor) -> Tensor:
    """Divide a gradient by its Euclidean norm."""
    norm: Tensor = gradient.norm()
    return gradient / (norm + 1e-8)
