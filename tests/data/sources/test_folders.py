"""Finding raw files in the folder given and one folder deeper."""

import pytest

from mmbench.data.sources.folders import find_file, find_home, list_pictures, need_home
from mmbench.errors import DataError


def test_the_folder_itself_comes_before_those_in_it(tmp_path):
    for place in (tmp_path / "b", tmp_path / "a", tmp_path / "c/deeper"):
        place.mkdir(parents=True)
        (place / "x.csv").touch()
    assert find_home(tmp_path, ["x.csv"]) == tmp_path / "a"
    (tmp_path / "x.csv").touch()
    assert find_home(tmp_path, ["x.csv"]) == tmp_path
    assert find_home(tmp_path / "c", ["x.csv"]) == tmp_path / "c/deeper"


def test_all_that_is_needed_must_lie_together(tmp_path):
    for name in ("a/x.csv", "b/y.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert find_home(tmp_path, ["x.csv"], ["y", "y.txt"]) is None
    (tmp_path / "a/y").touch()
    assert find_home(tmp_path, ["x.csv"], ["y.txt", "y"]) == tmp_path / "a"
    assert find_file(tmp_path / "a", ["y.txt", "y"]) == tmp_path / "a/y"


def test_the_fullest_folder_tells_what_is_missing(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.csv").touch()
    with pytest.raises(DataError) as told:
        need_home(tmp_path, ["x.csv"], ["y.csv"], cure="fetch it")
    assert str(told.value) == f"E101 y.csv not found under {tmp_path / 'raw'}; fetch it"


def test_an_archive_that_is_still_packed_is_named(tmp_path):
    (tmp_path / "all.zip").touch()
    with pytest.raises(DataError, match=r"E101 x\.csv .* but all\.zip lies there still packed"):
        need_home(tmp_path, ["x.csv"], cure="fetch it")


def test_odd_folders_hold_nothing(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x.csv").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "loop", tmp_path / "x.csv"):
        assert find_home(folder, ["x.csv"]) is None
    assert list_pictures(tmp_path / "nowhere") == {}


def test_pictures_are_listed_one_folder_deep(tmp_path):
    names = ["1.jpg", "010/2.JPEG", "011/3.png", "011/3.webp", "011/deeper/4.jpg", "5.txt", "6",
             "7.8.jpg", ".jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_pictures(tmp_path) == {
        "1": "1.jpg",
        "2": "010/2.JPEG",
        "3": "011/3.png",
        "7.8": "7.8.jpg",
    }
