"""The optimiser's part of an iteration: treat the gradients, step, or change nothing."""

import math
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from fastnca.training.config import TrainConfig


class Update:
    """Adam, and the treatment of gradients before it.

    On a GPU the decision whether an iteration counts stays there: fused Adam takes it as a
    tensor, by the convention of torch's gradient scaler. On a CPU the host looks at it, which
    costs nothing, and Adam is torch's ordinary one.

    Args:
        model: whose parameters are trained.
        config: the options.
        on_device: True keeps decision and learning rate in tensors; where None, on CUDA only.

    Attributes:
        optimizer: Adam.
        good_weights: the `state_dict` that last gave a finite loss and gradient.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, on_device: bool | None = None
    ) -> None:
        parameters = list(model.parameters())
        device = parameters[0].device
        self._model = model
        self._config = config
        self._on_device = device.type == "cuda" if on_device is None else on_device
        rate: Tensor | float = config.learning_rate
        if self._on_device:
            rate = torch.tensor(config.learning_rate, dtype=torch.float32, device=device)
        self.optimizer = torch.optim.Adam(
            parameters,
            lr=rate,
            betas=config.betas,
            fused=self._on_device or None,
            capturable=device.type == "cuda",
        )
        self.good_weights = copy_weights(model)
        self._parts: list[list[Tensor | None]] = []

    def clear(self) -> None:
        """Forget the gradients of the iteration before."""
        self.optimizer.zero_grad()
        self._parts = []

    def set_aside(self) -> None:
        """Make the gradients so far a part of the batch's; the next ones start from nothing."""
        self._parts.append([parameter.grad for parameter in self._model.parameters()])
        self.optimizer.zero_grad()

    def treat(self) -> Tensor:
        """Add up the parts that were set aside, and clip, normalise or balance the gradients.

        Returns:
            `[]`, Euclidean norm of all gradients before that.
        """
        self._sum_parts(lambda part: part)
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        limit = self._config.clip_norm if self._config.gradient == "clip" else math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if self._config.gradient == "balance":
            self._sum_parts(_normalised)
        if self._config.gradient in ("normalize", "balance"):
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = _normalised(parameter.grad)
        return norm

    def _sum_parts(self, treated: Callable[[Tensor], Tensor]) -> None:
        """Let the gradient of each parameter be the sum of its treated parts, if there are any."""
        for parameter, *parts in zip(self._model.parameters(), *self._parts, strict=True):
            found = [treated(part) for part in parts if part is not None]
            if found:
                parameter.grad = torch.stack(found).sum(0)

    def apply(self, fine: Tensor, rate: float | Tensor) -> None:
        """Take one step of the optimiser, or none.

        Args:
            fine: `[]` bool, whether the iteration counts.
            rate: the learning rate; `[]` if the decision stays on the device.
        """
        self._set_rate(rate)
        if self._on_device:
            for name, value in self._model.state_dict().items():
                good = self.good_weights[name]
                good.copy_(torch.where(fine, value, good))
            self.optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif fine:
            self.good_weights = copy_weights(self._model)
            self.optimizer.step()

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _normalised(gradient: Tensor) -> Tensor:
    """Divide a gradient by its Euclidean norm."""
    norm: Tensor = gradient.norm()
    return gradient / (norm + 1e-8)


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's `state_dict`."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
