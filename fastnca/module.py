"""The drop-in `NeuralCA`: the reference's class with faster ways to compute the same steps."""

from collections.abc import Iterator
from os import PathLike
from typing import Any, Self

from torch import Tensor

from fastnca import reference
from fastnca.backends import check_backend
from fastnca.backends.choose import PRECISIONS, Explanation, explain
from fastnca.backends.dispatch import advance, advance_one_step, iterate
from fastnca.checks import check_count
from fastnca.masks import Updates
from fastnca.recognition import the_rule
from fastnca.rule import Rule
from fastnca.states import NUM_CHANNELS


class NeuralCA(reference.NeuralCA):
    """The tutorial's Neural Cellular Automaton, fast, and every rule that `Rule` describes.

    Parameters, `state_dict` keys, `forward` and the random numbers it draws are the reference's;
    see `fastnca.reference` for the equations.

    Args:
        num_channels: channels C of the state; at least 4, unless no cell is tested for life.
        hidden_dim: width of the hidden layer, at least 1; a rule may give other layers.
        rule: what a step computes; the tutorial's rule if None.
        backend: who computes it: "auto", "reference", "torch", "cpp" (both on active cells) or
            "triton" (fused).
        precision: operand precision of the fused kernels, "auto", "fp16", "bf16" or "ieee";
            the other backends compute in the state's dtype.

    Attributes:
        rule: what a step computes.
        metadata: JSON-serialisable facts that are saved with the model, for instance its grid
            size. Not used by the model itself.

    Raises:
        TypeError: a size is not an int, or the rule is none.
        ValueError: a size is out of range, or backend or precision is unknown.
    """

    def __init__(
        self,
        num_channels: int = NUM_CHANNELS,
        hidden_dim: int = 128,
        *,
        rule: Rule | None = None,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        check_count(num_channels, "num_channels", least=1)
        check_count(hidden_dim, "hidden_dim", least=1)
        if not isinstance(rule, Rule | None):
            raise TypeError(f"rule must be a fastnca.Rule, got {type(rule).__name__}")
        (rule or Rule()).check_channels(num_channels)
        super().__init__(num_channels, hidden_dim, rule=rule)
        self.hidden_dim = self.rule.hidden[0] if self.rule.hidden else 0
        self.backend = check_backend(backend, "backend")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        self.metadata: dict[str, Any] = {}

    def extra_repr(self) -> str:
        """Return rule, backend and precision for `print(model)`."""
        return f"rule={self.rule}, backend={self.backend!r}, precision={self.precision!r}"

    def explain(self, state: Tensor) -> Explanation:
        """Say which backend computes rollouts from `state` `[B, C, H, W]`, and why no faster one.

        Raises:
            BackendError, TypeError, ValueError: as `run_steps`.
        """
        return explain(self, state)

    @the_rule
    def forward(self, state: Tensor, update_rate: float = 0.5) -> Tensor:
        """Advance a state by one step.

        Args:
            state: `[B, C, H, W]`, of the model's dtype and device, any strides.
            update_rate: probability in [0, 1] that a cell updates. Used in training mode only,
                where the mask is drawn from torch's generator exactly as the tutorial draws it
                (the fused kernels draw the mask's seed); in eval mode every cell updates.

        Returns:
            `[B, C, H, W]`.

        Raises:
            BackendError: the requested backend cannot run.
            TypeError: the state is not a tensor of the model's dtype.
            ValueError: shape, device or update rate do not fit.
        """
        return advance_one_step(self, state, update_rate)

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
                recompute the others bit-identically, where a backend keeps states at all.
            count: `[]` int64 tensor, how many of the `steps` are taken, read where `seed` is.

        Returns:
            `[B, C, H, W]`; with 0 steps the state itself.

        Raises:
            BackendError: the requested backend cannot run.
            TypeError: the state is not a tensor of the model's dtype, or a count not an int.
            ValueError: shape, device, update rate, steps or seed do not fit.
        """
        updates = Updates(steps, None, seed, first_step, update_rate, count)
        return advance(self, state, updates, checkpoint_every)

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
        return iterate(self, state, Updates(steps, None, seed, 0, update_rate), every)

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
