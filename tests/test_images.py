"""Picture files as targets: every kind of pixel, the first frame, what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastnca import FileFormatError, load_target


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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, depth, color_type, rows, key=None):
    """Write a PNG of any depth; Pillow writes 16 bits of grey only, and no colour key for them."""
    width = len(rows[0])
    samples = np.array(rows).reshape(len(rows), -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    size = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
    if key is not None:
        content += chunk(b"tRNS", np.array(key, ">u2").tobytes())
    content += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    path.write_bytes(content + chunk(b"IEND", b""))
    return path


def read_pixels(path):
    """Load a picture of 4x4 pixels without scaling; return its first row as straight RGBA."""
    row = load_target(path, 4, 0, dtype=torch.float64)[0, :, 0].T
    colors = row[:, :3] / row[:, 3:].clamp(min=1e-9)
    return (torch.cat([colors, row[:, 3:]], dim=1) * 255).round().int().tolist()


GREY, COLOR, GREY_ALPHA, COLOR_ALPHA = 0, 2, 4, 6  # colour types of PNG
A, B = 16384, 257 * 200  # 16-bit samples: a quarter of white, and 200 of 255
CLEAR = [0, 0, 0, 0]


def grey(value, alpha=255):
    return [value, value, value, alpha]


# depth, colour type, one row of samples, the colour key, and the row as 8-bit RGBA
PNGS = {
    "1-bit grey": (1, GREY, [0, 1, 0, 1], None, [grey(0), grey(255)] * 2),
    "1-bit grey, black clear": (1, GREY, [0, 1, 0, 1], 0, [CLEAR, grey(255)] * 2),
    "1-bit grey, white clear": (1, GREY, [0, 1, 0, 1], 1, [grey(0), CLEAR] * 2),
    "2-bit grey": (2, GREY, [0, 1, 2, 3], None, [grey(0), grey(85), grey(170), grey(255)]),
    "2-bit grey, one clear": (2, GREY, [0, 1, 2, 3], 1, [grey(0), CLEAR, grey(170), grey(255)]),
    "4-bit grey, one clear": (4, GREY, [0, 5, 14, 15], 5, [grey(0), CLEAR, grey(238), grey(255)]),
    "8-bit grey, one clear": (8, GREY, [0, 5, 64, 255], 5, [grey(0), CLEAR, grey(64), grey(255)]),
    "16-bit grey": (16, GREY, [0, 255, A, 65535], None, [grey(0), grey(1), grey(64), grey(255)]),
    "16-bit grey, one clear": (
        *(16, GREY, [A, A + 1, B, 65535], A),
        [CLEAR, grey(64), grey(200), grey(255)],
    ),
    "16-bit grey and alpha": (
        *(16, GREY_ALPHA, [(A, 65535), (B, 257 * 128), (65535, 65535), (B, 0)], None),
        [grey(64), grey(200, 128), grey(255), CLEAR],
    ),
    "8-bit colour, one clear": (
        *(8, COLOR, [(64, 0, 255), (64, 0, 254), (1, 2, 3), (0, 0, 0)], (64, 0, 255)),
        [CLEAR, [64, 0, 254, 255], [1, 2, 3, 255], grey(0)],
    ),
    "16-bit colour": (
        *(16, COLOR, [(A, 0, B), (0, B, 0), (B, B, B), (65535, 0, A)], None),
        [[64, 0, 200, 255], [0, 200, 0, 255], grey(200), [255, 0, 64, 255]],
    ),
    "16-bit colour, one clear": (
        *(16, COLOR, [(A, 0, B), (0, B, 0), (B, B, B), (65535, 0, A)], (A, 0, B)),
        [CLEAR, [0, 200, 0, 255], grey(200), [255, 0, 64, 255]],
    ),
    "16-bit colour and alpha": (
        *(16, COLOR_ALPHA, [(A, 0, B, 65535), (B, B, B, 257 * 51), (B, 0, 0, 0), (A,) * 4], None),
        [[64, 0, 200, 255], grey(200, 51), CLEAR, grey(64, 64)],
    ),
}


@pytest.mark.parametrize("name", PNGS)
def test_a_png_of_any_depth_keeps_its_values(tmp_path, name):
    depth, color_type, row, key, expected = PNGS[name]
    path = write_png(tmp_path / "p.png", depth, color_type, [row] * 4, key)
    assert read_pixels(path) == expected


def palette():
    picture = Image.new("P", (4, 4))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.paste(1, (1, 0, 2, 4))
    picture.paste(2, (2, 0, 4, 4))
    return picture


RED, GREEN, BLUE = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]
COLORS = [RED, GREEN, BLUE, BLUE]

# a picture, the options that it is saved with, and its first row as 8-bit RGBA
MODES = {
    "palette.png": (palette(), {}, COLORS),
    "palette.gif": (palette(), {}, COLORS),
    "palette.bmp": (palette(), {}, COLORS),
    "alpha palette.png": (
        *(palette(), {"transparency": bytes([255, 51])}),
        [RED, [0, 255, 0, 51], BLUE, BLUE],
    ),
    "clear index.png": (palette(), {"transparency": 2}, [RED, GREEN, CLEAR, CLEAR]),
    "clear index.gif": (palette(), {"transparency": 1}, [RED, CLEAR, BLUE, BLUE]),
    "grey and alpha.png": (Image.new("LA", (4, 4), (100, 50)), {}, [grey(100, 50)] * 4),
    "bilevel.bmp": (Image.new("1", (4, 4), 1), {}, [grey(255)] * 4),
    "grey.jpg": (Image.new("L", (4, 4), 100), {"quality": 100}, [grey(100)] * 4),
    "grey.gif": (Image.new("L", (4, 4), 100), {}, [grey(100)] * 4),
    "luminance.jpg": (Image.new("YCbCr", (4, 4), (100, 128, 128)), {}, [grey(100)] * 4),
    "inks.jpg": (
        *(Image.new("CMYK", (4, 4), (0, 255, 128, 64)), {"quality": 100}),
        [[191, 0, 95, 255]] * 4,
    ),
    "colours.webp": (palette().convert("RGB"), {"lossless": True}, COLORS),
    "colours and alpha.webp": (
        *(Image.new("RGBA", (4, 4), (9, 99, 255, 128)), {"lossless": True}),
        [[9, 99, 255, 128]] * 4,
    ),
    "profile.png": (palette().convert("RGB"), {"icc_profile": b"not a profile"}, COLORS),
}


@pytest.mark.parametrize("name", MODES)
def test_every_kind_of_pixel_keeps_its_value(tmp_path, name):
    picture, options, expected = MODES[name]
    assert read_pixels(save(tmp_path / name, picture, **options)) == expected


def test_a_16_bit_picture_is_turned_upright(tmp_path):
    picture = Image.new("I;16", (4, 4), A)
    picture.paste(B, (3, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 2  # mirrored
    path = save(tmp_path / "p.png", picture, exif=exif)
    assert read_pixels(path) == [grey(200), *[grey(64)] * 3]


def test_the_hidden_colour_of_transparent_pixels_stays_hidden(tmp_path):
    picture = Image.new("RGBA", (60, 60), (0, 255, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 31, 60))
    target = load_target(save(tmp_path / "p.png", picture), 20, 0)[0]
    assert target[1].max() == 0
    assert ((target[3] > 0) & (target[3] < 1)).any()
    torch.testing.assert_close(target[0], target[3], atol=1 / 255, rtol=0)


@pytest.mark.parametrize("name", ["p.png", "p.webp", "p.gif"])
def test_the_first_picture_of_an_animation_is_read(tmp_path, name):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "red")]
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert read_pixels(path) == [RED] * 4


@pytest.mark.parametrize("alpha", [0, 25])
def test_a_picture_too_transparent_to_live_is_refused(tmp_path, alpha):
    path = save(tmp_path / "p.png", Image.new("RGBA", (8, 4), (255, 255, 255, alpha)))
    with pytest.raises(FileFormatError, match=r"p\.png: nothing to grow: .* of its 12x6 cells"):
        load_target(path, 16)


def test_a_picture_just_opaque_enough_to_live_is_read(tmp_path):
    path = save(tmp_path / "p.png", Image.new("RGBA", (8, 4), (255, 255, 255, 26)))
    assert load_target(path, 16)[0, 3].max() == 26 / 255


def test_a_speck_that_scaling_dissolves_is_refused(tmp_path):
    picture = Image.new("RGBA", (400, 400))
    picture.putpixel((200, 200), (255, 255, 255, 255))
    with pytest.raises(FileFormatError, match="crop it or make it more opaque"):
        load_target(save(tmp_path / "p.png", picture), 16)
