"""Numbers beyond 32 bits: offsets, cells and steps."""

import pytest
import torch

from fastnca.backends.triton_fused.limits import shape_reasons
from fastnca.masks import philox
from tests.kernels.probes import offsets_kernel, update_kernel

LIMIT = 0x7FFFFF


def test_offsets_are_64_bit(device: torch.device) -> None:
    out = torch.zeros(3, dtype=torch.int64, device=device)
    for grid, y, x, height, width in [(70_000, 40_000, 7, 40_001, 319), (2**27 + 3, 1, 1, 2, 2)]:
        offsets_kernel[(1,)](out, grid, y, x, height, width)
        number = (16 * grid * height + y) * width + x
        assert number > 2**31
        cell, word = (grid * height + y) * width + x, (grid * height + y + 2) * width + x
        assert out.tolist() == [cell, word, number]


def test_mask_of_cells_and_steps_beyond_32_bits(device: torch.device) -> None:
    cells = torch.tensor([0, 1, 2, 3, 2**32 + 5, 2**34 - 1, 2**34, 2**40 + 3], device=device)
    for seed, step in [(0, 0), (-1, 2**32 - 1), (2**62 + 1, 2**32), (-(2**63), 2**33 + 5)]:
        counter = torch.tensor([seed, step], device=device)
        out = torch.zeros(8, dtype=torch.int32, device=device)
        update_kernel[(1,)](cells, counter, out, LIMIT)
        quad, step_word = cells // 4, torch.tensor(step)
        low = 0xFFFFFFFF
        words = philox(
            (quad.cpu() & low, quad.cpu() >> 32, step_word & low, step_word >> 32), seed % 2**64
        )
        word = words.gather(1, (cells.cpu() % 4)[:, None])[:, 0]
        assert torch.equal(out.cpu().bool(), (word >> 8) < LIMIT)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_shapes_beyond_the_numbering_are_refused(padding: str) -> None:
    assert shape_reasons(64, 4000, 4000, padding) == []
    for shape, words in [
        ((2**20, 4000, 4000), "tiles"),
        ((1, 4, 2**20 + 1), "wide"),
        ((1, 0, 4), "at least one cell"),
        ((1, 4, 0), "at least one cell"),
    ]:
        assert words in shape_reasons(*shape, padding)[-1]


def test_a_torus_beyond_the_offsets_is_refused() -> None:
    """A side of one or two cells would be its own neighbour beyond both borders."""
    limit = "at least 3 cells a side and at most 16777216 cells"
    for height, width, words in [
        (3, 3, ()),
        (2, 3, (limit,)),
        (3, 2, (limit,)),
        (1, 1, (limit,)),
        (2**14, 2**10 - 2, ()),
        (2**14, 2**10 - 1, (limit,)),
        (2**14 + 1, 2**10 - 2, (limit,)),
        (2**24, 1, (limit,)),
    ]:
        found = shape_reasons(1, height, width, "circular")
        assert len(found) == len(words)
        assert all(each in reason for each, reason in zip(words, found, strict=True))
        assert shape_reasons(1, height, width, "zeros") == []
