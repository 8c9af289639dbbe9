"""Game of Life, seeds, damage, drawn targets and target files."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from fastnca import (
    FileFormatError,
    create_seed,
    create_target,
    create_target_circle,
    game_of_life_step,
    get_visible_state,
    load_target,
)
from fastnca.states import disc, rectangle
from fastnca.targets import TARGETS
from tests import tutorial

grids = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8))


@given(grids)
@settings(deadline=None)
def test_life_equals_its_definition_and_the_tutorial(cells):
    height, width = cells.shape
    padded = np.pad(cells, 1).astype(int)
    neighbours = sum(
        padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if dy or dx
    )
    expected = (neighbours == 3) | (cells & (neighbours == 2))
    grid = torch.from_numpy(cells)
    step = game_of_life_step(grid)
    assert step.dtype == torch.float32
    assert np.array_equal(step.numpy() == 1, expected)
    assert torch.equal(step, game_of_life_step(grid.double()))
    if height > 1 and width > 1:  # the tutorial's squeeze drops axes of length one
        assert torch.equal(step, tutorial.game_of_life_step(grid.float()))


def test_glider_moves_by_one_cell_in_four_steps():
    grid = torch.zeros(12, 12)
    grid[2:5, 2:5] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 1, 1]])
    end = grid
    for _ in range(4):
        end = game_of_life_step(end)
    assert torch.equal(end, grid.roll((1, 1), (0, 1)))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_seed_and_circle_equal_the_tutorials(size):
    assert torch.equal(create_seed(size), tutorial.create_seed(size))
    assert torch.equal(create_seed(size, 8), tutorial.create_seed(size, 8))
    assert torch.equal(create_target_circle(size), tutorial.create_target_circle(size))


def test_seed_options():
    seed = create_seed(5, 6, batch=3, fill_hidden=True, dtype=torch.float64)
    assert seed.shape == (3, 6, 5, 5)
    assert seed.dtype == torch.float64
    assert seed[:, :, 2, 2].tolist() == [[0, 0, 0, 1, 1, 1]] * 3
    assert seed.sum() == 9
    assert create_target_circle(8, batch=2, dtype=torch.float64).shape == (2, 4, 8, 8)


def test_visible_state_is_clamped_rgba():
    state = torch.randn(2, 16, 3, 3) * 3
    visible = get_visible_state(state)
    assert visible.shape == (2, 4, 3, 3)
    assert torch.equal(visible, tutorial.get_visible_state(state))


def test_visible_state_has_a_gradient_at_both_ends_on_every_torch():
    state = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan")]).view(1, 1, 1, 6)
    state = state.expand(1, 4, 1, 6).clone().requires_grad_()
    get_visible_state(state).sum().backward()
    assert state.grad[0, 0, 0].tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("size", [24, 64])
def test_drawn_targets_are_premultiplied_shapes(name, size):
    target = create_target(name, size)
    assert target.shape == (1, 4, size, size)
    rgb, alpha = target[0, :3], target[0, 3]
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (rgb <= alpha + 1e-6).all()
    assert 0.08 < alpha.mean() < 0.6
    edge = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    assert edge.max() == 0
    assert len({create_target(other, size).sum().item() for other in TARGETS}) == len(TARGETS)


def test_rectangle_and_disc():
    marked = rectangle(6, 8, (1, 2, 3, 5))
    assert marked.sum() == 6
    assert marked[1:3, 2:5].all()
    assert rectangle(6, 8, (-3, -3, 99, 99)).all()
    discs = disc(9, 9, torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([0.5, 0.3]))
    assert discs.shape == (2, 9, 9)
    assert discs[0, 4, 4]
    assert discs[0].sum() == 9  # cells are a quarter apart: the 3x3 block is inside 0.5
    assert discs[1, 8, 0]
    assert discs[1].sum() == 3


def save(path, picture, **options):
    picture.save(path, **options)
    return path


def test_picture_is_scaled_centred_and_premultiplied(tmp_path):
    picture = Image.new("RGBA", (20, 10), (200, 100, 50, 128))
    target = load_target(save(tmp_path / "p.png", picture), size=32, padding=6)
    assert target.shape == (1, 4, 32, 32)
    assert target.dtype == torch.float32
    inside = target[0, :, 11:21, 6:26]
    alpha = 128 / 255
    colors = (200 / 255 * alpha, 100 / 255 * alpha, 50 / 255 * alpha, alpha)
    for channel, value in zip(inside, colors, strict=True):
        torch.testing.assert_close(channel, torch.full_like(channel, value), atol=0.01, rtol=0)
    assert target.sum() == pytest.approx(float(inside.sum()))


def test_padding_defaults_to_an_eighth(tmp_path):
    path = save(tmp_path / "p.png", Image.new("RGB", (9, 9), "red"))
    alpha = load_target(path, 64)[0, 3]
    assert alpha[8:56, 8:56].min() == 1
    assert alpha.sum() == 48 * 48


def test_exif_orientation_is_obeyed(tmp_path):
    picture = Image.new("RGB", (16, 8), "black")
    picture.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right: left becomes top
    path = save(tmp_path / "p.jpg", picture, exif=exif, quality=95)
    red = load_target(path, 16, 0)[0, 0]
    assert red[:6, 5:11].mean() > 0.9
    assert red[10:, 5:11].mean() < 0.1


def test_first_frame_and_palette(tmp_path):
    frames = [Image.new("P", (4, 4), color) for color in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    path = save(tmp_path / "p.gif", frames[0], save_all=True, append_images=frames[1:])
    target = load_target(path, 4, 0)
    assert target[0, :, 0, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1)])
def test_extreme_proportions(tmp_path, size):
    path = save(tmp_path / "p.png", Image.new("RGB", size, "blue"))
    assert load_target(path, 16, 2)[0, 3].sum() >= 1


def damaged(path, change):
    data = bytearray(save(path, Image.effect_noise((40, 40), 50)).read_bytes())
    change(data)
    path.write_bytes(data)
    return path


BAD_FILES = {
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: damaged(path, lambda d: d.__delitem__(slice(200, None))),
    "broken header": lambda path: damaged(path, lambda d: d.__setitem__(slice(12, 40), b"x" * 28)),
    "another format": lambda path: path.write_bytes(_tiff()),
    "too many pixels": lambda path: save(path, Image.new("1", (5000, 4000))),
    "too many bytes": lambda path: path.write_bytes(b"\0" * ((32 << 20) + 1)),
}


def _tiff():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_picture(tmp_path, name):
    path = tmp_path / "picture.png"
    BAD_FILES[name](path)
    with pytest.raises(FileFormatError, match=r"picture\.png: (not a picture|too large)"):
        load_target(path)


def test_missing_file_and_no_room(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such picture file"):
        load_target(tmp_path / "none.png")
    path = save(tmp_path / "p.png", Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match="leaves no cell"):
        load_target(path, 16, 8)
