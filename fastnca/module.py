"""The drop-in `NeuralCA`: the reference's class with faster ways to compute the same steps."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from fastnca import reference
from fastnca.backends import check_backend
from fastnca.backends.autograd import observed
from fastnca.backends.choose import (
    PRECISIONS,
    choose_backend,
    choose_seed,
    operand_precision,
    step_seed,
)
from fastnca.backends.cpp import cpp_rollout
from fastnca.backends.torch_active import active_rollout
from fastnca.backends.triton_fused import fused_rollout
from fastnca.checks import OutOfRangeError, Parameters, check_count, check_state, check_steps
from fastnca.masks import Updates, check_update_rate, make_counter
from fastnca.recognition import the_rule
from fastnca.states import ALPHA, NUM_CHANNELS


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

    @the_rule
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
            return self._advance(backend, state, 1, update_rate, step_seed(self, state), 0)
        mask = None
        if self.training:
            mask = torch.rand_like(state[:, :1, :, :]) < update_rate
        if backend in ("cpp", "torch"):
            updates = Updates(1, None if mask is None else mask.transpose(0, 1))
            with contextlib.suppress(OutOfRangeError):
                return self._active(backend, state, updates)
        return self._step(state, 1.0 if mask is None else mask.to(state.dtype))

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
            checkpoint_every: keep every k-th state, k at least 1, for the backward pass and
                recompute the others bit-identically. Only `triton` uses it; `torch` and `cpp` keep
                no states.
            count: `[]` int64 tensor, how many of the `steps` are taken, read where `seed` is.

        Returns:
            `[B, C, H, W]`; with 0 steps the state itself.

        Raises:
            BackendError: the requested backend cannot run.
            TypeError: the state is not a tensor of the model's dtype, or a count not an int.
            ValueError: shape, device, update rate, steps or seed do not fit.
        """
        backend = self._check(state, update_rate)
        check_steps(first_step, steps)
        check_count(checkpoint_every, "checkpoint_every", least=1)
        seed = choose_seed(self, seed, state, backend)
        return self._advance(
            backend, state, steps, update_rate, seed, first_step, checkpoint_every, count
        )

    def trajectory(
        self,
        state: Tensor,
        steps: int,
        every: int = 1,
        update_rate: float = 0.5,
        *,
        seed: int | Tensor | None = None,
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
        check_steps(0, steps)
        check_count(every, "every", least=1)
        seed = choose_seed(self, seed, state, backend)
        return self._trajectory(backend, state, steps, every, update_rate, seed)

    def _trajectory(
        self,
        backend: str,
        state: Tensor,
        steps: int,
        every: int,
        update_rate: float,
        seed: int | Tensor | None,
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
        seed: int | Tensor | None,
        first_step: int,
        checkpoint_every: int = 1,
        count: Tensor | None = None,
    ) -> Tensor:
        """Compute `run_steps` with a backend."""
        if backend == "triton" and steps > 0:
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
        if backend != "reference" and steps > 0 and observed((state, *self._weights())):
            from fastnca.backends.operators import rollout

            counter = make_counter(seed, first_step, steps, count, state.device)
            random = seed is not None
            result: Tensor = rollout(
                state, *self._weights(), counter, float(update_rate), random, backend
            )
            return result
        seed = int(seed) if isinstance(seed, Tensor) else seed
        steps = steps if count is None else min(steps, max(int(count), 0))
        if backend != "reference" and steps > 0:
            with contextlib.suppress(OutOfRangeError):
                updates = Updates(steps, None, seed, first_step, update_rate)
                return self._active(backend, state, updates)
        return super().run_steps(state, steps, update_rate, seed=seed, first_step=first_step)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model into directory `path` as `config.json` and `model.safetensors`.

        Each is replaced atomically. `path` is a directory; it is made if missing.

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
        """Read a model that `save` wrote, or a state dict of another program.

        A file of `torch.save` or safetensors may hold the state dict itself or a checkpoint with
        one such dictionary, and its names may share a prefix (`module.`, `_orig_mod.`). Fixed
        filters and biases that are left out are filled in; half precision becomes float32.

        Args:
            path: directory with `config.json` and `model.safetensors`, or a file of at most
                256 MiB.
            backend: as in the constructor.
            precision: as in the constructor.

        Returns:
            The model on the CPU, in training mode, float32 or float64 as it was saved.

        Raises:
            FileFormatError: the file is damaged, holds no model or several, or another rule.
            FileNotFoundError: there is nothing at `path`.
        """
        from fastnca.storage.model import load_model

        return load_model(cls, path, backend=backend, precision=precision)

    def _check(self, state: Tensor, update_rate: float, single: bool = False) -> str:
        """Check the arguments of a call, a single step or not; return who computes it."""
        perception = self._modules.get("perception")  # faster than the attributes
        like = perception._parameters.get("filters") if perception is not None else None
        check_state(state, self.num_channels, self._like(state) if like is None else like)
        check_update_rate(update_rate)
        return choose_backend(self, self.backend, self.precision, state, single)

    def _like(self, state: Tensor) -> Tensor:
        """Return a tensor of the model's dtype and device; `state` if it has none."""
        filters = getattr(getattr(self, "perception", None), "filters", None)
        return filters if isinstance(filters, Tensor) else next(self.parameters(), state)

    def _active(self, backend: str, state: Tensor, updates: Updates) -> Tensor:
        """Compute steps on active cells; may raise `OutOfRangeError`."""
        if backend == "cpp":
            return cpp_rollout(state, self._weights(), updates)
        return active_rollout(state, self._weights(), updates.masks(state))

    def _weights(self) -> Parameters:
        """Return weight and bias of both convolutions."""
        network: Any = self._modules["update_net"]  # faster than attributes
        layer1, _, layer2 = network._modules.values()
        first, last = layer1._parameters, layer2._parameters
        return first["weight"], first["bias"], last["weight"], last["bias"]
