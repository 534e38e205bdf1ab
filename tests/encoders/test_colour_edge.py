"""The picture descriptor: pictures of known content, odd files, broken files."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmbench.encoders.colour_edge import DIM, ColourEdge
from mmbench.errors import DataError

EDGES = slice(54 + 80, 54 + 80 + 128)
TEXTURE = slice(54 + 80 + 128, DIM)


def encode(*paths):
    return ColourEdge().encode_images(list(paths))


def saved(folder, name, picture, **options):
    path = folder / name
    picture.save(path, **options)
    return path


def plain(colour, size=(80, 60)):
    return Image.new("RGB", size, colour)


def stripes(vertical, size=64, step=8):
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    for k in range(0, size, 2 * step):
        box = (k, 0, k + step - 1, size) if vertical else (0, k, size, k + step - 1)
        draw.rectangle(box, fill="black")
    return picture


def test_shape_length_and_repetition(tmp_path):
    paths = [saved(tmp_path, f"{k}.png", plain((k, 100, 200))) for k in range(0, 250, 50)]
    vectors = encode(*paths)
    assert vectors.shape == (5, DIM)
    assert DIM == 321
    assert vectors.dtype == np.float32
    assert (vectors >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors, encode(*paths))
    assert encode().shape == (0, DIM)


def test_a_picture_does_not_depend_on_the_others(tmp_path):
    paths = [saved(tmp_path, f"{k}.png", plain((k, k // 2, 255 - k))) for k in range(200)]
    np.testing.assert_array_equal(encode(*paths)[150], encode(paths[150])[0])  # the second block


def test_one_colour_is_one_bin_of_each_histogram(tmp_path):
    red = encode(saved(tmp_path, "red.png", plain("red")))[0]
    # Whole picture: 1 bin of share 1; grid: 4 bins of 1/4; no edges; texture: 1 bin of share 1.
    # Roots of the shares, then divided by the length sqrt(3) of the three blocks that are there.
    np.testing.assert_allclose(np.sort(red[:54])[-2:], [0, 1 / np.sqrt(3)], atol=1e-6)
    np.testing.assert_allclose(np.sort(red[54:134])[-5:], [0, *[0.5 / np.sqrt(3)] * 4], atol=1e-6)
    assert not red[EDGES].any()
    np.testing.assert_allclose(np.sort(red[TEXTURE])[-2:], [0, 1 / np.sqrt(3)], atol=1e-6)


def test_colours_are_told_apart_and_shades_are_near(tmp_path):
    colours = ["red", (235, 10, 10), "green", "blue", "black", "white"]
    vectors = encode(*(saved(tmp_path, f"{k}.png", plain(c)) for k, c in enumerate(colours)))
    colour = vectors[:, :54]
    overlap = colour @ colour.T * 3
    assert overlap[0, 1] == pytest.approx(1)  # a shade of red is red
    assert np.abs(overlap - np.diag(np.diag(overlap)))[1:, 1:].max() < 1e-6


def test_edges_know_their_direction(tmp_path):
    paths = [saved(tmp_path, f"{v}.png", stripes(v)) for v in (True, False)]
    upright, lying = encode(*paths)[:, EDGES].reshape(2, 16, 8)
    # Direction 0 is a change across, direction 4 (a right angle of 180 / 8 each) one down.
    assert (upright.argmax(axis=1) == 0).all()
    assert (lying.argmax(axis=1) == 4).all()
    assert upright[:, 4].max() < 0.05


def test_texture_tells_noise_from_plain(tmp_path):
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    rough, flat = encode(
        saved(tmp_path, "noisy.png", noisy), saved(tmp_path, "flat.png", plain("grey"))
    )
    assert (rough[TEXTURE] > 0.01).sum() > 20
    assert (flat[TEXTURE] > 0.01).sum() == 1


def test_place_matters_to_the_grid_alone(tmp_path):
    left = plain("blue", (64, 64))
    left.paste(plain("red", (32, 64)), (0, 0))
    right = plain("blue", (64, 64))
    right.paste(plain("red", (32, 64)), (32, 0))
    a, b = encode(saved(tmp_path, "a.png", left), saved(tmp_path, "b.png", right))
    np.testing.assert_allclose(a[:54], b[:54], atol=1e-6)
    assert np.abs(a[54:134] - b[54:134]).max() > 0.1


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.png", "L"),
        ("bits.png", "1"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("alpha.png", "RGBA"),
        ("grey-alpha.png", "LA"),
        ("cmyk.jpg", "CMYK"),
        ("bitmap.bmp", "RGB"),
        ("web.webp", "RGB"),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (70, 50)])
def test_any_mode_and_size(tmp_path, name, mode, size):
    picture = plain((200, 30, 60), size).convert(mode)
    vector = encode(saved(tmp_path, name, picture))[0]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_same_content_in_another_mode_is_the_same_vector(tmp_path):
    grey = plain((120, 120, 120))
    a, b = encode(saved(tmp_path, "rgb.png", grey), saved(tmp_path, "l.png", grey.convert("L")))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"<html>not found</html>", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n", ""),
    ],
)
def test_broken_files_are_named(tmp_path, data, reason):
    good, bad = saved(tmp_path, "good.png", plain("red")), tmp_path / "bad.jpg"
    bad.write_bytes(data)
    with pytest.raises(DataError, match=rf"picture .*bad\.jpg cannot be used .*{reason}"):
        encode(good, bad)


def test_truncated_jpeg_and_png_are_errors_not_grey_halves(tmp_path):
    rng = np.random.default_rng(0)
    noisy = Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png"):
        path = saved(tmp_path, name, noisy)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"{name} cannot be used .*truncated"):
            encode(path)


def test_first_five_offenders_and_the_rest_counted(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(8)]
    with pytest.raises(DataError) as caught:
        encode(*paths)
    assert "0.png not found" in str(caught.value)
    assert "4.png not found" in str(caught.value)
    assert "5.png" not in str(caught.value)
    assert "and 3 more" in str(caught.value)
