import hashlib

import pytest
from PIL import Image

from mmbench.data.pictures import check_paths, check_picture, check_pictures, duplicate_groups
from mmbench.errors import DataError


def test_a_good_picture_is_hashed(tmp_path, write_picture):
    path = write_picture(tmp_path / "a.png")
    picture = check_picture(path)
    assert picture.status == "ok"
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_colour_modes_and_a_wrong_extension_do_not_matter(tmp_path, mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    Image.new(mode, (20, 20)).save(tmp_path / "a.png", format=form)
    assert check_picture(tmp_path / "a.png").status == "ok"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_truncated_picture_is_corrupt(tmp_path, write_picture, suffix):
    path = write_picture(tmp_path / f"a{suffix}", side=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert check_picture(path).status == "corrupt"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "empty file"), (b"<html>404 not found</html>", "cannot identify image file")],
)
def test_what_is_no_picture_is_corrupt(tmp_path, content, problem):
    (tmp_path / "a.jpg").write_bytes(content)
    picture = check_picture(tmp_path / "a.jpg")
    assert (picture.status, picture.problem) == ("corrupt", problem)


def test_a_tiny_picture_is_a_placeholder(tmp_path, write_picture):
    picture = check_picture(write_picture(tmp_path / "a.gif", side=1))
    assert (picture.status, picture.problem) == ("placeholder", "only 1x1 pixels")


def test_huge_dimensions_are_refused_before_decoding(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    picture = check_picture(tmp_path / "a.png")
    assert (picture.status, picture.problem) == ("corrupt", "9000x9000 pixels are too many")


def test_many_pictures_keep_their_order(tmp_path, write_picture):
    for k in range(40):
        write_picture(tmp_path / f"{k}.png", seed=k % 30)
    paths = [tmp_path / f"{k}.png" for k in range(40)] + [None, tmp_path / "none.png"]
    found = check_pictures(paths)
    assert [p.status for p in found] == ["ok"] * 40 + ["missing"] * 2
    assert found[3].sha256 == found[33].sha256 != found[4].sha256
    assert duplicate_groups(found) == [2] * 10


@pytest.mark.parametrize(
    "path", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:\\a.jpg"]
)
def test_paths_stay_below_the_image_folder(path):
    with pytest.raises(DataError, match=r"E265 item 'b': image path"):
        check_paths({"a": "x/a.jpg", "b": path})
