"""CAX under JAX: the tutorial's rule built from CAX's perceive and update modules.

CAX keeps channels last and takes the last channel for alpha, so the channels are reordered on the
way in and out. Its cell dropout divides what it keeps by the update rate; a step size of the rate
makes that the tutorial's step. Only forward steps and their gradient are built, no trainer.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from cax.core import ComplexSystem
from cax.core.perceive import ConvPerceive
from cax.core.update import NCAUpdate
from flax import nnx
from torch import Tensor

from bench.cases import Case
from bench.runners import Outcome, Timed
from fastnca import create_target_circle
from fastnca.reference import sobel_filters

_ORDER = [0, 1, 2, *range(4, 16), 3]  # alpha last
_BACK = np.argsort(_ORDER)
_RATE = 0.5


class _CellularAutomaton(ComplexSystem):
    """CAX's way to say: perceive, then update."""

    def __init__(self, hidden: int, train: bool) -> None:
        rngs = nnx.Rngs(0)
        self.perceive = ConvPerceive(
            channel_size=16, perception_size=48, feature_group_count=16, rngs=rngs
        )
        self.update = NCAUpdate(
            channel_size=16,
            perception_size=48,
            hidden_layer_sizes=(hidden,),
            step_size=_RATE if train else 1.0,
            cell_dropout_rate=1 - _RATE if train else 0.0,
            rngs=rngs,
        )

    def _step(
        self, state: jax.Array, input: jax.Array | None = None, *, sow: bool = False
    ) -> jax.Array:
        return self.update(state, self.perceive(state), input)


_TRAINED = nnx.DiffState(0, nnx.All(nnx.Param, nnx.PathContains("update")))


@partial(nnx.jit, static_argnames="steps")
def _differentiate(
    model: _CellularAutomaton, state: jax.Array, target: jax.Array, steps: int
) -> tuple[nnx.State, jax.Array]:
    """Return the gradient of the tutorial's loss, and the state after `steps` steps."""

    def loss(model: _CellularAutomaton) -> tuple[jax.Array, jax.Array]:
        end = model(state, num_steps=steps)
        rgba = jnp.concatenate([end[..., :3], end[..., -1:]], axis=-1)
        inside = (rgba >= 0) & (rgba <= 1)  # as get_visible_state, which has a gradient at 0 and 1
        visible = jnp.where(inside, rgba, jax.lax.stop_gradient(jnp.clip(rgba, 0, 1)))
        return jnp.mean((visible - target) ** 2), end

    return nnx.grad(loss, argnums=_TRAINED, has_aux=True)(model)


class CaxRunner:
    """Run CAX; see `bench.runners.Runner`.

    Args:
        weights: the tutorial's `state_dict`.
        device: where it runs.

    Raises:
        RuntimeError: JAX has no device of this type.
    """

    def __init__(self, weights: dict[str, Tensor], device: torch.device) -> None:
        self._torch_device = device
        self._device = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
        self._models = {train: self._build(weights, train) for train in (False, True)}

    def masks(self, mode: str) -> str:
        """See `Runner`."""
        return "own"

    def timed(self, case: Case, state: Tensor) -> Timed:
        """See `Runner`.

        Raises:
            NotImplementedError: the mode is training.
        """
        if case.mode == "training":
            raise NotImplementedError("the training iteration is not built for CAX")
        model = self._models[case.mode != "inference"]
        start, target = self._to_jax(state), self._target(state)

        def run() -> jax.Array:
            if case.with_gradient:
                return jax.block_until_ready(_differentiate(model, start, target, case.steps))
            return jax.block_until_ready(model(start, num_steps=case.steps))

        return Timed(run)

    def outcome(
        self, mode: str, state: Tensor, steps: int, train: bool, gradient: bool, seed: int
    ) -> Outcome:
        """See `Runner`; the seed is not used."""
        model, start = self._models[train], self._to_jax(state)
        if not gradient:
            return Outcome(self._to_torch(model(start, num_steps=steps)), {})
        grads, end = _differentiate(model, start, self._target(state), steps)
        first, last = grads["update"]["layers"][0], grads["update"]["layers"][1]
        hidden = first["bias"][...].shape[0]
        w1 = np.asarray(first["kernel"][...]).reshape(16, 3, hidden)[_BACK]
        w2 = np.asarray(last["kernel"][...]).reshape(hidden, 16)[:, _BACK]
        gradients = {
            "update_net.0.weight": w1.reshape(48, hidden).T[:, :, None, None],
            "update_net.0.bias": np.asarray(first["bias"][...]),
            "update_net.2.weight": w2.T[:, :, None, None],
            "update_net.2.bias": np.asarray(last["bias"][...])[_BACK],
        }
        tensors = {
            name: torch.tensor(np.ascontiguousarray(value)).to(self._torch_device)
            for name, value in gradients.items()
        }
        return Outcome(self._to_torch(end), tensors)

    def _build(self, weights: dict[str, Tensor], train: bool) -> _CellularAutomaton:
        """Make the model with the tutorial's weights."""
        w1, b1, w2, b2 = (
            weights[f"update_net.{name}"].detach().cpu().numpy()
            for name in ("0.weight", "0.bias", "2.weight", "2.bias")
        )
        hidden = w1.shape[0]
        with jax.default_device(self._device):
            model = _CellularAutomaton(hidden, train)
            filters = np.tile(sobel_filters().permute(1, 2, 0).numpy()[:, :, None], 16)
            model.perceive.conv.kernel[...] = jnp.asarray(filters)
            first, last = model.update.layers
            by_channel = w1[:, :, 0, 0].reshape(hidden, 16, 3)[:, _ORDER]
            first.kernel[...] = jnp.asarray(by_channel.reshape(hidden, 48).T[None, None])
            first.bias[...] = jnp.asarray(b1)
            last.kernel[...] = jnp.asarray(w2[_ORDER, :, 0, 0].T[None, None])
            last.bias[...] = jnp.asarray(b2[_ORDER])
        return model

    def _target(self, state: Tensor) -> jax.Array:
        """Return the circle, `[1, H, W, 4]`."""
        circle = create_target_circle(state.shape[-1]).permute(0, 2, 3, 1).contiguous().numpy()
        return jax.device_put(circle, self._device)

    def _to_jax(self, state: Tensor) -> jax.Array:
        """Turn `[B, 16, H, W]` into `[B, H, W, 16]` with alpha last."""
        rows = state[:, _ORDER].permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return jax.device_put(rows, self._device)

    def _to_torch(self, state: jax.Array) -> Tensor:
        """Turn it back."""
        rows = np.ascontiguousarray(np.asarray(state)[..., _BACK])
        return torch.from_numpy(rows.copy()).permute(0, 3, 1, 2).to(self._torch_device)
