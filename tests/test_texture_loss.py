"""The loss between textures."""

import copy

import pytest
import torch

from fastnca.losses.texture import TextureLoss
from fastnca.textures import TEXTURES, create_texture


def as_state(picture, channels=12):
    """A state `[N, C, H, W]` that looks like `picture` `[N, 4, H, W]`."""
    hidden = picture.new_zeros(len(picture), channels - 3, *picture.shape[2:])
    return torch.cat([picture[:, :3] - 0.5, hidden], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [48, (33, 50)])
def test_a_state_that_looks_like_the_target_has_no_loss(dtype, size):
    picture = create_texture("coral", size, dtype=dtype)
    loss = TextureLoss()
    value = loss([as_state(picture)], loss.prepare(picture))
    assert value.shape == (1,)
    assert value.dtype == dtype
    assert value.item() < 1e-9
    assert loss([as_state(picture) * 0.5], loss.prepare(picture)).item() > 0.01


def test_a_shift_around_the_torus_changes_nothing():
    loss = TextureLoss(levels=3)
    target = loss.prepare(create_texture("zebra", 48, dtype=torch.float64))
    state = as_state(create_texture("cheetah", 48, dtype=torch.float64))
    expected = loss([state], target)
    assert torch.allclose(loss([state.roll((4, -16), (2, 3))], target), expected, rtol=1e-12)
    odd = loss([state.roll((3, 1), (2, 3))], target)
    assert torch.allclose(odd, expected, rtol=0.05)


def test_samples_of_one_material_are_closer_than_two_materials():
    loss = TextureLoss()
    samples = {name: as_state(create_texture(name, 96, seed=1)) for name in TEXTURES}
    for name in TEXTURES:
        target = loss.prepare(create_texture(name, 96))
        values = {other: loss([state], target).item() for other, state in samples.items()}
        own = values.pop(name)
        assert 0 < own < 0.05
        assert own < 0.2 * min(values.values())


def test_a_state_without_structure_has_a_loss_near_one():
    loss = TextureLoss()
    picture = create_texture("coral", 64)
    mean = picture.mean(dim=(2, 3), keepdim=True).expand_as(picture)
    value = loss([as_state(mean)], loss.prepare(picture)).item()
    assert value == pytest.approx(1, abs=0.1)


def test_a_larger_sample_is_no_worse_and_an_equal_picture_tiled_is_equal():
    loss = TextureLoss()
    picture = create_texture("cheetah", 48, dtype=torch.float64)
    target = loss.prepare(picture)
    assert loss([as_state(picture.repeat(1, 1, 2, 2))], target).item() < 1e-3
    tiled = loss.prepare(picture.repeat(1, 1, 2, 2))
    assert loss([as_state(picture)], tiled).item() < 1e-3
    for size in (32, 47, 80):
        sample = as_state(create_texture("cheetah", size, dtype=torch.float64))
        assert 0 < loss([sample], target).item() < 0.5


@pytest.mark.long
def test_the_gradient_is_that_of_finite_differences():
    loss = TextureLoss(levels=2, features=3)
    target = loss.prepare(create_texture("zebra", 12, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(1, 4, 6, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss([x, 0.5 * x], target), (state,), eps=1e-7)


def test_the_gradient_is_finite_from_the_start_and_reaches_colours_only():
    loss = TextureLoss()
    target = loss.prepare(create_texture("coral", 48))
    state = torch.zeros(2, 12, 32, 32, requires_grad=True)
    loss([state], target.expand(2, *target.shape[1:])).sum().backward()
    assert state.grad.isfinite().all()
    assert state.grad[:, :3].abs().max() > 0
    assert (state.grad[:, 3:] == 0).all()


def test_a_step_down_the_gradient_lowers_the_loss():
    loss = TextureLoss()
    target = loss.prepare(create_texture("zebra", 32))
    state = 0.1 * torch.randn(1, 12, 32, 32)
    first = None
    for _ in range(30):
        state.requires_grad_()
        value = loss([state], target).sum()
        (slope,) = torch.autograd.grad(value, state)
        state = (state - 0.1 * slope / slope.abs().max()).detach()
        first = value.item() if first is None else first
    assert value.item() < 0.5 * first


def test_several_states_have_the_mean_of_their_losses():
    loss = TextureLoss()
    target = loss.prepare(create_texture("cheetah", 32, dtype=torch.float64))
    states = [torch.randn(2, 12, 32, 32, dtype=torch.float64) * scale for scale in (0.1, 0.5, 1)]
    single = torch.stack([loss([state], target.expand(2, -1, -1, -1)) for state in states])
    assert torch.allclose(loss(states, target.expand(2, -1, -1, -1)), single.mean(dim=0))


def test_every_row_has_its_own_target():
    loss = TextureLoss()
    pictures = torch.cat([create_texture(name, 40) for name in TEXTURES])
    prepared = loss.prepare(pictures)
    assert len(prepared) == 3
    state = as_state(pictures.flip(0))
    together = loss([state], prepared)
    alone = [loss([state[i : i + 1]], loss.prepare(pictures[i : i + 1])) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-9)
    assert together[1] < 1e-9 < together[0]
    shared = loss([state], prepared[:1].expand(3, *prepared.shape[1:]))
    copied = loss([state], prepared[:1].repeat(3, 1, 1, 1))
    assert torch.allclose(shared, copied)


def test_the_loss_draws_nothing_and_its_seed_fixes_it():
    picture, state = create_texture("zebra", 32), torch.randn(1, 12, 32, 32)
    before = torch.get_rng_state()
    values = []
    for seed in (0, 0, 1):
        loss = TextureLoss(seed=seed)
        values.append(loss([state], loss.prepare(picture)))
        assert torch.equal(loss([state], loss.prepare(picture)), values[-1])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert torch.equal(copy.deepcopy(loss)([state], loss.prepare(picture)), values[2])


def test_bad_values_are_named():
    for values in ({"levels": 0}, {"patch": 4}, {"patch": 1}, {"features": 0}):
        with pytest.raises(ValueError, match="levels >= 1, features >= 1 and an odd patch"):
            TextureLoss(**values)
    loss = TextureLoss()
    with pytest.raises(ValueError, match="at least 8x8 cells, got 16x7"):
        loss.prepare(torch.zeros(1, 4, 16, 7))
    target = loss.prepare(create_texture("zebra", 16))
    with pytest.raises(ValueError, match="at least 8x8 cells, got 7x16"):
        loss([torch.zeros(1, 12, 7, 16)], target)
    with pytest.raises(ValueError, match="at least one state"):
        loss([], target)


def test_the_loss_is_the_same_everywhere():
    """The value was written down once: other directions or features would change what it means."""
    loss = TextureLoss()
    assert loss.capturable is True
    target = loss.prepare(create_texture("zebra", 32, dtype=torch.float64))
    value = loss([as_state(create_texture("coral", 32, dtype=torch.float64))], target)
    assert value.item() == pytest.approx(5.093307718817361, rel=1e-6)


def test_the_sorted_values_are_those_of_the_definition():
    """The first bank of the first level, written out with a loop."""
    loss = TextureLoss(levels=1, features=4)
    picture = create_texture("zebra", (4, 5), dtype=torch.float64)
    filters = loss._weights[0][0].double()
    rows = loss.prepare(picture)[0, 0]
    for row, each in zip(rows, filters, strict=True):
        values = []
        for y in range(4):
            for x in range(5):
                patch = picture[0, :3].roll((2 - y, 2 - x), (1, 2))
                total = sum(
                    each[:, i, j] @ patch[:, i % 4, j % 5] for i in range(5) for j in range(5)
                )
                values.append(total.item())
        assert row.tolist() == pytest.approx(sorted(values), abs=1e-12)
