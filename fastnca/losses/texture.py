"""A loss between textures that needs no trained network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

COLORS = 3
_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # orthogonal, as opponent colours
_FLAT = 1e-4  # variance, for colours in [0, 1], below which a feature of the target hardly counts


class TextureLoss:
    """Sliced Wasserstein distance of patches and of random features, at several scales.

    A texture is what all its places have in common: the distribution of its patches, wherever they
    lie. Both pictures become pyramids of circularly padded means of 2x2 cells. At each level every
    patch is projected on fixed random directions; this is the first bank of features. The second
    is a 3x3 convolution, with fixed random weights, of the first after a ReLU: what no linear
    projection sees, such as how edges lie to each other. Statistics of random filters after a ReLU
    are known to describe many textures (Ustyuzhaninov et al., "What does it take to generate
    natural textures?", ICLR 2017).

    The values of one feature at all places are compared by their sorted values, t of the target
    and s of the state (Rabin et al., "Wasserstein Barycenter and its Application to Texture
    Mixing", SSVM 2011; Heitz et al., "A Sliced Wasserstein Loss for Neural Texture Synthesis",
    CVPR 2021):

        loss = mean over levels, banks and features of  mean_i (s_i - t_i)² / (var(t) + 1e-4)

    So a feature that varies little, such as a shade of colour, counts as much as brightness does.
    The loss is 0 for equal distributions, for instance for a state that is shifted around the
    torus by multiples of `2 ** (levels - 1)` cells.

    Of four directions one looks at brightness, two at the opponent colours red minus blue and
    green minus both, and one at all three channels with weights of their own. Half of them are
    blind to a constant colour. They are drawn once, from a seed, so that equal states have equal
    losses. States and targets may differ in size; the sorted values of the target are interpolated
    then. All is computed in the dtype of the arguments, float32 or float64.

    Args:
        levels: pictures of a pyramid, at least 1.
        patch: odd height and width of a patch, at least 3.
        features: features of a level and bank, at least 1.
        seed: fixes the directions and the weights.

    Attributes:
        capturable: True; a call neither reads from the device nor branches on values, so that
            a CUDA graph may hold it, once `prepare` has been called on that device.
        least: smallest height and width of states and targets.

    Raises:
        ValueError: a number is out of range.
    """

    capturable = True

    def __init__(
        self, *, levels: int = 3, patch: int = 5, features: int = 32, seed: int = 0
    ) -> None:
        if levels < 1 or features < 1 or patch < 3 or patch % 2 == 0:
            raise ValueError(
                "a texture loss needs levels >= 1, features >= 1 and an odd patch >= 3, got "
                f"levels={levels}, features={features}, patch={patch}"
            )
        self.least = patch // 2 * 2 ** (levels - 1)
        generator = torch.Generator("cpu").manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

        first = draw(levels, features, COLORS, patch, patch)
        for number, axis in enumerate(_AXES):
            weights = torch.tensor(axis, dtype=torch.float32, device="cpu")[:, None, None]
            first[:, number::4] = first[:, number::4, :1] * weights
        first[:, : features // 2] -= first[:, : features // 2].mean(dim=(-2, -1), keepdim=True)
        second = draw(levels, features, features, 3, 3)
        self._weights = tuple(
            weights / weights.flatten(2).norm(dim=2)[:, :, None, None, None]
            for weights in (first, second)
        )
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def prepare(self, target: Tensor) -> Tensor:
        """Compute what a call needs of a target.

        Args:
            target: `[N, 4, H, W]`, opaque RGBA in [0, 1].

        Returns:
            `[N, 2 * levels, features, H * W]`, on the target's device and of its dtype: the sorted
            values. At coarser levels, which have fewer, each stands there several times.

        Raises:
            ValueError: the target is too small.
        """
        banks = [values.sort(dim=-1).values for values in self._features(target[:, :COLORS])]
        count = banks[0].shape[-1]
        ranks = torch.arange(count, device=target.device)
        return torch.stack([v[..., ranks * v.shape[-1] // count] for v in banks], dim=1)

    def __call__(self, states: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss of each sample, the mean over states on the way of a rollout.

        Args:
            states: at least one of `[B, C, H, W]`; the colours are the first three channels
                plus 0.5.
            target: `[B, ...]`, rows of what `prepare` returned; an expanded row is used once.

        Returns:
            `[B]`, of the states' dtype.

        Raises:
            ValueError: the states are too small, or there are none.
        """
        if not states:
            raise ValueError("a texture loss needs at least one state")
        if target.stride(0) == 0:
            target = target[:1]
        losses = []
        for state in states:
            for bank, values in enumerate(self._features(state[:, :COLORS] + 0.5)):
                wanted = _resample(target[:, bank], values.shape[-1])
                distance = (values.sort(dim=-1).values - wanted).square().mean(dim=-1)
                spread = wanted.var(dim=-1, unbiased=False) + _FLAT
                losses.append((distance / spread).mean(dim=-1))
        return torch.stack(losses).mean(dim=0)

    def _features(self, rgb: Tensor) -> list[Tensor]:
        """Compute both banks of each level of `[B, 3, H, W]`: each `[B, features, places]`."""
        if min(rgb.shape[-2:]) < self.least:
            raise ValueError(
                f"this texture loss needs a grid of at least {self.least}x{self.least} cells, got "
                f"{rgb.shape[-2]}x{rgb.shape[-1]}"
            )
        banks = []
        for level, (first, second) in enumerate(zip(*self._weights_like(rgb), strict=True)):
            if level:
                height, width = rgb.shape[-2:]
                even = F.pad(rgb, (0, width % 2, 0, height % 2), mode="circular")
                rgb = F.avg_pool2d(even, 2)
            seen = _convolve(rgb, first)
            banks += [seen.flatten(2), _convolve(seen.relu(), second).flatten(2)]
        return banks

    def _weights_like(self, rgb: Tensor) -> tuple[Tensor, ...]:
        """Return the weights on a picture's device and in its dtype, copied there once."""
        key = rgb.device, rgb.dtype
        if key not in self._copies:
            self._copies[key] = tuple(weights.to(rgb) for weights in self._weights)
        return self._copies[key]


def _convolve(picture: Tensor, weights: Tensor) -> Tensor:
    """Convolve on the torus: `[B, C, H, W]` by `[D, C, k, k]`, k odd, is `[B, D, H, W]`."""
    margin = weights.shape[-1] // 2
    return F.conv2d(F.pad(picture, (margin,) * 4, mode="circular"), weights)


def _resample(ordered: Tensor, count: int) -> Tensor:
    """Interpolate `[..., Q]` sorted values at the middles of `count` equal shares of their ranks.

    Positions are integers over `2 * count`, so values that stand there several times in a row, as
    `prepare` leaves them, are found again exactly.
    """
    have = ordered.shape[-1]
    if have == count:
        return ordered
    position = (2 * torch.arange(count, device=ordered.device) + 1) * have - count
    position = position.clamp(0, 2 * count * (have - 1))
    low = position // (2 * count)
    share = (position % (2 * count)).to(ordered.dtype) / (2 * count)
    left = ordered.index_select(-1, low)
    right = ordered.index_select(-1, (low + 1).clamp_max(have - 1))
    return left + share * (right - left)
