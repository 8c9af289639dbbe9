"""The update mask against published vectors, Triton's own generator, and its statistics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastnca import masks, update_mask

FULL = 0xFFFFFFFF

# Known answers of philox4x32-10 from the Random123 distribution: counter, key, output.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (FULL, FULL, FULL, FULL),
        (FULL, FULL),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def python_philox(counter, key):
    """The definition in Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & FULL, (p0 >> 32) ^ c[3] ^ k[1], p0 & FULL]
        k = [(k[0] + 0x9E3779B9) & FULL, (k[1] + 0xBB67AE85) & FULL]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter, key, output):
    words = masks.philox(tuple(map(torch.tensor, counter)), key[0] | key[1] << 32)
    assert tuple(words.tolist()) == output
    assert python_philox(counter, key) == output


words32 = st.integers(0, FULL)


@given(st.tuples(words32, words32, words32, words32), st.integers(0, 2**64 - 1))
def test_philox_equals_its_definition(counter, seed):
    words = masks.philox(tuple(map(torch.tensor, counter)), seed)
    assert tuple(words.tolist()) == python_philox(counter, (seed & FULL, seed >> 32))


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    step=st.integers(0, 2**40),
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    rate=st.floats(0, 1),
)
def test_each_cell_reads_its_own_word(seed, step, shape, rate):
    batch, _, height, width = shape
    mask = update_mask(seed, step, shape, rate)
    assert mask.shape == (batch, 1, height, width)
    assert mask.dtype == torch.bool
    key = (seed % 2**64 & FULL, seed % 2**64 >> 32)
    for cell, bit in enumerate(mask.flatten().tolist()):
        counter = (cell // 4 & FULL, cell // 4 >> 32, step & FULL, step >> 32)
        word = python_philox(counter, key)[cell % 4]
        assert bit == ((word >> 8) < round(rate * 2**24))


def test_many_steps_equal_single_steps_over_chunk_borders(monkeypatch):
    monkeypatch.setattr(masks, "_CHUNK", 16)
    monkeypatch.setattr(masks, "_MASK_BYTES", 500)
    shape = (3, 16, 7, 9)
    single = torch.stack([update_mask(4, step, shape, 0.4)[:, 0] for step in range(5, 16)])
    assert torch.equal(masks.update_masks(4, 5, 11, shape, 0.4), single)
    assert torch.equal(torch.stack(list(masks.iterate_masks(4, 5, 11, shape, 0.4))), single)
    monkeypatch.undo()
    assert torch.equal(masks.update_masks(4, 5, 11, shape, 0.4), single)


def test_rates_zero_and_one_are_exact():
    assert not update_mask(1, 0, (4, 1, 50, 50), 0.0).any()
    assert update_mask(1, 0, (4, 1, 50, 50), 1.0).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_of_updating_cells(rate):
    mask = masks.update_masks(11, 0, 4, (4, 1, 256, 256), rate).double()
    deviation = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(float(mask.mean()) - rate) < 5 * deviation


def test_steps_batch_items_and_neighbours_are_uncorrelated():
    bits = masks.update_masks(3, 0, 8, (8, 1, 64, 64), 0.5).double() * 2 - 1
    lags = {
        "step": bits[1:] * bits[:-1],
        "batch": bits[:, 1:] * bits[:, :-1],
        "row": bits[:, :, 1:] * bits[:, :, :-1],
        "column": bits[..., 1:] * bits[..., :-1],
    }
    for name, product in lags.items():
        assert abs(float(product.mean())) < 5 / product.numel() ** 0.5, name


def test_no_repetition_across_steps_and_batch_items():
    rows = masks.update_masks(3, 0, 64, (32, 1, 16, 16), 0.5).view(64 * 32, 256)
    assert len(torch.unique(rows, dim=0)) == 64 * 32


def test_no_repetition_beyond_32_bits():
    """Cells and steps whose numbers agree in the low 32 bits draw different words."""
    low = torch.arange(1000)
    zero = torch.zeros_like(low)
    draws = [
        masks.philox((low, zero + cell_high, zero + step_low, zero + step_high), 9)
        for cell_high, step_low, step_high in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    assert len(torch.unique(torch.cat(draws), dim=0)) == 4000
    far = [update_mask(9, step, (1, 1, 40, 40), 0.5) for step in (5, 5 + 2**32, 5 + 2**33)]
    assert not torch.equal(far[0], far[1])
    assert not torch.equal(far[1], far[2])


def test_seeds_that_differ_in_the_high_word_differ():
    shape = (1, 1, 32, 32)
    assert not torch.equal(update_mask(7, 0, shape, 0.5), update_mask(7 + 2**32, 0, shape, 0.5))
    assert torch.equal(update_mask(-1, 0, shape, 0.5), update_mask(2**64 - 1, 0, shape, 0.5))


def test_equals_tritons_generator():
    """The words are those of `tl.philox`, and of `tl.rand` where their counters coincide."""
    pytest.importorskip("triton")
    from tests.philox_kernel import philox_kernel, rand_kernel

    count, seed, step = 64, 0x1234_5678_9ABC_DEF0, 77
    words = torch.zeros(4, count, dtype=torch.int32)
    philox_kernel[(1,)](words, seed, step, COUNT=count)
    quads = torch.arange(count)
    zero = torch.zeros_like(quads)
    ours = masks.philox((quads, zero, zero + step, zero), seed)
    assert torch.equal(words.long().T & FULL, ours)

    uniform = torch.zeros(count)
    rand_kernel[(1,)](uniform, seed, COUNT=count)
    first = masks.philox((quads, zero, zero, zero), seed)[:, 0]
    signed = torch.where(first >= 2**31, first - 2**32, first)
    folded = torch.where(signed < 0, -signed - 1, signed)
    torch.testing.assert_close(uniform, folded.float() * 4.6566127342e-10, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((1.5, 0, (1, 1, 2, 2), 0.5), TypeError, "seed must be an int"),
        ((2**64, 0, (1, 1, 2, 2), 0.5), ValueError, "64 bits"),
        ((1, -1, (1, 1, 2, 2), 0.5), ValueError, "counted from 0"),
        ((1, 0, (2, 2), 0.5), ValueError, "batch, channels, height, width"),
        ((1, 0, (1, 1, 2, 2), 1.5), ValueError, r"in \[0, 1\]"),
        ((1, 0, (1, 1, 2, 2), float("nan")), ValueError, r"in \[0, 1\]"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        update_mask(*arguments)
