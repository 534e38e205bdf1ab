"""Opening pictures: upright, transparency on white, 16 bits kept, nothing too large."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmbench.encoders.pictures import MAX_BYTES, open_picture
from mmbench.errors import DataError


def test_transparency_is_laid_on_white(tmp_path):
    # Red below full transparency: convert("RGB") alone would show it.
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").getpixel((5, 5)) == (255, 255, 255)
    half = Image.new("LA", (10, 10), (0, 128))
    half.save(tmp_path / "la.png")
    assert open_picture(tmp_path / "la.png").getpixel((5, 5)) == pytest.approx((127,) * 3, abs=1)
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=1)
    assert open_picture(tmp_path / "p.png").getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    grey = np.asarray(open_picture(tmp_path / "deep.png"))[..., 0]
    assert len(np.unique(grey)) > 200
    assert grey.min() == 0
    assert grey.max() == 255


def test_exif_turns_the_picture(tmp_path):
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste(Image.new("RGB", (20, 20), "red"), (0, 0))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left side comes on top
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = open_picture(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0)
    assert upright.getpixel((10, 35)) == (0, 0, 255)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "move.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "move.gif").getpixel((4, 4)) == (255, 0, 0)


def test_smaller_decoding_keeps_enough_pixels(tmp_path):
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "large.jpg")
    assert open_picture(tmp_path / "large.jpg").size == (1600, 1200)
    small = open_picture(tmp_path / "large.jpg", at_least=128)
    assert 128 <= min(small.size) < 300


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    for side in (8_500, 100_000):  # above our limit; above the one where the library raises
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))
        (tmp_path / "bomb.png").write_bytes(data + chunk(b"IEND", b""))
        with pytest.raises(DataError, match=r"bomb\.png cannot be used .*pixels"):
            open_picture(tmp_path / "bomb.png")


def test_too_large_a_file_is_refused(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"huge\.png cannot be used .*MiB"):
        open_picture(tmp_path / "huge.png")


def test_other_formats_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "page.tif")
    with pytest.raises(DataError, match=r"page\.tif cannot be used"):
        open_picture(tmp_path / "page.tif")
