"""The discs of damage: where, how large, how often and from when."""

import math

import pytest
import torch

from fastnca.training.sampling import cut_discs, draw_discs
from tests.runs import make_trainer


def test_damage_zeroes_discs_and_nothing_else():
    states = torch.ones(50, 4, 40, 40)
    discs = draw_discs(50, (0.1, 0.4), 0.5, torch.Generator().manual_seed(0))
    damaged = cut_discs(states, *discs)
    gone = damaged[:, 0] == 0
    assert torch.equal(damaged, (~gone)[:, None].float().expand_as(states))
    radii = (gone.sum(dim=(1, 2)) / math.pi).sqrt() / 19.5
    assert radii.min() > 0.07
    assert radii.max() < 0.43
    assert radii.std() > 0.05


def test_damage_begins_after_so_many_iterations():
    each = make_trainer("regenerating", damage=2, damage_start=2, pool_size=6)
    each.pool.states[:] = torch.rand_like(each.pool.states)
    with torch.no_grad():
        each.model.update_net[2].bias.zero_()  # the model does nothing, so states stay
    seen = []

    class Spy(type(each.iterate)):
        def prepare(self, draw):
            batch = super().prepare(draw)
            seen.append(int((batch.states[1:] != batch.drawn[1:]).any()))
            return batch

    each.iterate.__class__ = Spy
    for _ in range(4):
        each.pool.states[:] = torch.rand_like(each.pool.states)
        each.step()
    assert seen == [0, 0, 1, 1]


def test_damage_rate_is_how_often_a_disc_is_cut_out():
    each = make_trainer("regenerating", damage=2, damage_rate=0.75, seed=3)
    radii = torch.stack([each.sampler.next().radii for _ in range(2000)])
    assert ((radii == 0) | (radii >= 0.1)).all()
    cut = (radii > 0).float()
    assert (cut.mean(0) - 0.75).abs().max() < 0.04
    assert abs(float(cut.prod(1).mean()) - 0.75**2) < 0.045  # each for itself
    always = make_trainer("regenerating", damage=2, seed=3)
    assert all(always.sampler.next().radii.all() for _ in range(100))


def test_damage_radius_is_that_of_the_discs():
    each = make_trainer("regenerating", damage=2, damage_radius=(0.25, 0.5), seed=3)
    radii = torch.stack([each.sampler.next().radii for _ in range(500)])
    assert radii.min() == pytest.approx(0.25, abs=2e-3)
    assert radii.max() == pytest.approx(0.5, abs=2e-3)
    usual = make_trainer("regenerating", damage=2, seed=3)
    found = torch.stack([usual.sampler.next().radii for _ in range(500)])
    torch.testing.assert_close((found - 0.1) / 0.3, (radii - 0.25) / 0.25)  # the same draws


def test_damage_offset_is_how_far_discs_lie_from_the_middle():
    usual, near, middle = (
        make_trainer("regenerating", damage=2, seed=3, **options)
        for options in ({}, {"damage_offset": 0.25}, {"damage_offset": 0.0})
    )
    draws = [[each.sampler.next() for each in (usual, near, middle)] for _ in range(500)]
    centers = torch.stack([draw.centers for draw, _, _ in draws])
    assert centers.abs().amax((0, 1)).tolist() == pytest.approx([0.5, 0.5], abs=2e-3)
    for far, close, none in draws:  # the same draws
        torch.testing.assert_close(close.centers, far.centers / 2)
        assert not none.centers.any()
        assert torch.equal(far.radii, close.radii)
