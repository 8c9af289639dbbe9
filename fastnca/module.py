"""The drop-in `NeuralCA`: the reference's class with faster ways to compute the same steps."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import Any, Self, cast

import torch
import torch.nn as nn
from torch import Tensor

from fastnca import reference
from fastnca.active import active_rollout
from fastnca.backends import check_backend
from fastnca.checks import OutOfRangeError, check_count, check_state
from fastnca.cpp import cpp_rollout
from fastnca.fused import fused_rollout
from fastnca.masks import Updates, check_update_rate
from fastnca.states import ALPHA, NUM_CHANNELS
from fastnca.support import PRECISIONS, choose_backend, choose_seed, operand_precision

_FEWEST_CELLS = 2048
"""Below this many cells a single step costs less with the reference operators than the search
for active cells does (`python -m bench.run` measures it)."""


class NeuralCA(reference.NeuralCA):
    """The tutorial's Neural Cellular Automaton, fast.

    Parameters, `state_dict` keys, `forward` and the random numbers it draws are the reference's;
    see `fastnca.reference` for the equations.

    Args:
        num_channels: channels C of the state, at least 4.
        hidden_dim: width of the hidden layer, at least 1.
        backend: "auto", "reference", "torch", "cpp" (both on active cells) or "triton" (fused).
        precision: operand precision of the fused kernels, "auto", "fp16", "bf16" or "ieee";
            the other backends compute in the state's dtype.

    Attributes:
        metadata: JSON-serialisable facts that are saved with the model, for instance its grid
            size. Not used by the model itself.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size is out of range, or backend or precision is unknown.
    """

    def __init__(
        self,
        num_channels: int = NUM_CHANNELS,
        hidden_dim: int = 128,
        *,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        check_count(num_channels, "num_channels", least=ALPHA + 1)
        check_count(hidden_dim, "hidden_dim", least=1)
        super().__init__(num_channels, hidden_dim)
        self.hidden_dim = hidden_dim
        self.backend = check_backend(backend, "backend")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        self.metadata: dict[str, Any] = {}

    def extra_repr(self) -> str:
        """Return backend and precision for `print(model)`."""
        return f"backend={self.backend!r}, precision={self.precision!r}"

    def forward(self, state: Tensor, update_rate: float = 0.5) -> Tensor:
        """Advance a state by one step.

        Args:
            state: `[B, C, H, W]`, of the model's dtype and device, any strides.
            update_rate: probability in [0, 1] that a cell updates. Used in training mode only,
                where the mask is drawn from torch's generator exactly as the tutorial draws it
                (the triton backend draws the mask's seed); in eval mode every cell updates.

        Returns:
            `[B, C, H, W]`.

        Raises:
            BackendError: the requested backend cannot run.
            TypeError: the state is not a tensor of the model's dtype.
            ValueError: shape, device or update rate do not fit.
        """
        backend = self._check(state, update_rate, single=True)
        if backend == "triton":
            return self._fused(state, 1, update_rate, choose_seed(self, None, state), 0)
        mask = None
        if self.training:
            mask = torch.rand_like(state[:, :1, :, :]) < update_rate
        large = state.numel() >= _FEWEST_CELLS * self.num_channels
        if backend == "cpp" or (backend == "torch" and large):
            updates = Updates(1, None if mask is None else mask.transpose(0, 1))
            with contextlib.suppress(OutOfRangeError):
                return self._active(backend, state, updates)
        return self._step(state, 1.0 if mask is None else mask.float())

    def run_steps(
        self,
        state: Tensor,
        steps: int,
        update_rate: float = 0.5,
        *,
        seed: int | Tensor | None = None,
        first_step: int = 0,
        checkpoint_every: int = 1,
        count: Tensor | None = None,
    ) -> Tensor:
        """Advance a state by several steps, as one rollout and one autograd node.

        Args:
            state: `[B, C, H, W]`, of the model's dtype and device, any strides.
            steps: number of steps, at least 0.
            update_rate: probability in [0, 1] that a cell updates (training mode only).
            seed: 64-bit seed of the masks of `fastnca.update_mask`, equal on every backend; None
                draws one from torch's default generator. As a `[]` int64 tensor the kernels read
                it on the device, which a CUDA graph of the caller's needs.
            first_step: number of the first step, so that a rollout can be continued:
                20 steps and 20 more with `first_step=20` equal 40 steps.
            checkpoint_every: the triton backend keeps every how manieth state, at least 1, for the
                backward pass and computes the others again, to the bit; torch keeps none.
            count: `[]` int64 tensor, how many of the `steps` are taken, read where `seed` is.

        Returns:
            `[B, C, H, W]`; with 0 steps the state itself.

        Raises:
            BackendError: the requested backend cannot run.
            TypeError: the state is not a tensor of the model's dtype, or a count not an int.
            ValueError: shape, device, update rate, steps or seed do not fit.
        """
        backend = self._check(state, update_rate)
        check_count(steps, "steps")
        check_count(first_step, "first_step")
        check_count(checkpoint_every, "checkpoint_every", least=1)
        seed = choose_seed(self, seed, state)
        if backend == "triton" and steps > 0:
            return self._fused(state, steps, update_rate, seed, first_step, checkpoint_every, count)
        seed = int(seed) if isinstance(seed, Tensor) else seed
        steps = steps if count is None else min(steps, max(int(count), 0))
        return self._advance(backend, state, steps, update_rate, seed, first_step)

    def trajectory(
        self,
        state: Tensor,
        steps: int,
        every: int = 1,
        update_rate: float = 0.5,
        *,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """Iterate over the states of a rollout, without gradient.

        Args:
            state: `[B, C, H, W]`.
            steps: number of steps, at least 0.
            every: steps from one yielded state to the next, at least 1.
            update_rate: probability in [0, 1] that a cell updates (training mode only).
            seed: as in `run_steps`.

        Yields:
            `[B, C, H, W]`: the states after 0, `every`, 2 * `every`, ... steps, and the last one.

        Raises:
            BackendError, TypeError, ValueError: as `run_steps`.
        """
        backend = self._check(state, update_rate)
        check_count(steps, "steps")
        check_count(every, "every", least=1)
        number = cast(int | None, choose_seed(self, seed, None))
        return self._trajectory(backend, state, steps, every, update_rate, number)

    def _trajectory(
        self,
        backend: str,
        state: Tensor,
        steps: int,
        every: int,
        update_rate: float,
        seed: int | None,
    ) -> Iterator[Tensor]:
        """Yield what `trajectory` promises; apart from it so that errors come at the call."""
        yield state
        for first in range(0, steps, every):
            with torch.no_grad():
                count = min(every, steps - first)
                state = self._advance(backend, state, count, update_rate, seed, first)
            yield state

    def _advance(
        self,
        backend: str,
        state: Tensor,
        steps: int,
        update_rate: float,
        seed: int | None,
        first_step: int,
    ) -> Tensor:
        """Compute `run_steps` with a backend."""
        if backend == "triton" and steps > 0:
            return self._fused(state, steps, update_rate, seed, first_step)
        if backend in ("cpp", "torch") and steps > 0:
            with contextlib.suppress(OutOfRangeError):
                updates = Updates(steps, None, seed, first_step, update_rate)
                return self._active(backend, state, updates)
        return super().run_steps(state, steps, update_rate, seed=seed, first_step=first_step)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model into directory `path` as `config.json` and `model.safetensors`.

        Each file is replaced atomically; a crash leaves the old model or the new one.

        Args:
            path: directory; made if missing.

        Raises:
            OSError: the files cannot be written.
            TypeError, ValueError: `metadata`, a weight, a size or the dtype has no place in them.
        """
        from fastnca.storage.model import save_model

        save_model(self, path)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, backend: str = "auto", precision: str = "auto"
    ) -> Self:
        """Read a model that `save` wrote, or the tutorial's `torch.save(model.state_dict())` file.

        Args:
            path: directory with `config.json` and `model.safetensors`, or a `.pt` file.
            backend: as in the constructor.
            precision: as in the constructor.

        Returns:
            The model on the CPU, in training mode, of the dtype that was saved.

        Raises:
            FileFormatError: the file is damaged or is not a model.
            FileNotFoundError: there is nothing at `path`.
        """
        from fastnca.storage.model import load_model

        return load_model(cls, path, backend=backend, precision=precision)

    def _check(self, state: Tensor, update_rate: float, single: bool = False) -> str:
        """Check the arguments of a call, a single step or not; return who computes it."""
        known = cast(nn.Module, self._modules["perception"])._parameters  # faster than attributes
        like = known.get("filters")
        check_state(state, self.num_channels, self.perception.filters if like is None else like)
        check_update_rate(update_rate)
        small = single and state.numel() < _FEWEST_CELLS * self.num_channels
        return choose_backend(self, self.backend, self.precision, state, small)

    def overridden(self) -> list[str]:
        """Name the parts of the step that a subclass defines anew; then only they may be used."""
        if type(self) is NeuralCA:
            return []
        names = ("forward", "get_alive_mask", "_step")
        return [name for name in names if getattr(type(self), name) is not getattr(NeuralCA, name)]

    def _fused(
        self,
        state: Tensor,
        steps: int,
        update_rate: float,
        seed: int | Tensor | None,
        first_step: int,
        checkpoint_every: int = 1,
        count: Tensor | None = None,
    ) -> Tensor:
        """Compute `run_steps` with the fused kernels."""
        return fused_rollout(
            state,
            self._weights(),
            steps=steps,
            seed=seed,
            first_step=first_step,
            update_rate=update_rate,
            precision=operand_precision(self.precision, state.device.type),
            checkpoint_every=checkpoint_every,
            count=count,
        )

    def _active(self, backend: str, state: Tensor, updates: Updates) -> Tensor:
        """Compute steps on active cells; may raise `OutOfRangeError`."""
        if backend == "cpp":
            return cpp_rollout(state, self._weights(), updates)
        return active_rollout(state, self._weights(), updates.masks(state))

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight and bias of both convolutions."""
        network = cast(nn.Module, self._modules["update_net"])
        layer1, _, layer2 = cast(list[nn.Module], network._modules.values())
        first = cast(dict[str, Tensor], layer1._parameters)
        last = cast(dict[str, Tensor], layer2._parameters)
        return first["weight"], first["bias"], last["weight"], last["bias"]
