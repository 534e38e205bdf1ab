"""Taobao clothes matching, in samples written in the form of Tianchi's files."""

import shutil
from pathlib import Path

import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.data.prepared import open_dataset
from mmbench.data.sources.taobao import Taobao
from mmbench.errors import DataError

ITEMS = [
    "29 155 123950,53517,106068,59598",
    "49 228 73035,33202",
    "59 284 123950",
    "79 291 ",
]


def history():
    """Six users buy each of three items, in another order each."""
    return [
        f"{9_000_000_000 + u} {(29, 49, 59)[(u + k) % 3]} 201409{10 + k:02d}"
        for u in range(6)
        for k in range(3)
    ]


@pytest.fixture
def folder(tmp_path, write_picture):
    raw = tmp_path / "taobao"
    raw.mkdir()
    (raw / "dim_items.txt").write_text("\n".join(ITEMS) + "\n")
    (raw / "user_bought_history.txt").write_text("\n".join(history()) + "\n")
    (raw / "dim_fashion_matchsets.txt").write_text("1 29;49,59\n")
    write_picture(raw / "images/29.jpg", 1)
    write_picture(raw / "images/2/49.JPG", 2)
    return raw


def test_purchases_categories_and_pictures_are_read(tmp_path, folder):
    raw = Taobao().read(folder, tmp_path)
    assert raw.interactions.row(1, named=True) == {
        "user": "9000000000",
        "item": "49",
        "rating": None,
        "timestamp": 1410393600000,  # 2014-09-11, midnight UTC
        "split": None,
    }
    assert raw.items.rows() == [
        ("29", "155", "123950,53517,106068,59598", "29.jpg"),
        ("49", "228", "73035,33202", "2/49.JPG"),
        ("59", "284", "123950", None),
        ("79", "291", None, None),
    ]
    assert raw.text_fields == ()
    assert raw.warnings == []


def test_items_have_pictures_and_no_text(tmp_path, folder):
    dataset = prepare(
        "taobao-match",
        source=folder,
        data_dir=tmp_path / "data",
        config=PrepareConfig(user_min=3),
        splits=["leave-one-out"],
    ).dataset
    assert dataset.item_ids == ["29", "49", "59"]
    assert dataset.texts == ["", "", ""]
    assert dataset.image_paths == [folder / "images/29.jpg", folder / "images/2/49.JPG", None]
    # User 0 bought 29, 49, 59, user 1 49, 59, 29: the last one is the test.
    assert dataset.item[:6].tolist() == [0, 1, 2, 1, 2, 0]
    assert dataset.split().label[:6].tolist() == [0, 1, 2, 0, 1, 2]


def test_files_without_suffix_one_folder_deeper_are_found(tmp_path, folder):
    for name in ("dim_items", "user_bought_history"):
        (folder / f"{name}.txt").rename(folder / name)
    assert Taobao.recognises(folder.parent)
    assert Taobao().read(folder.parent, tmp_path).interactions.height == 18


def test_without_pictures_it_goes_on_and_says_so(tmp_path, folder):
    (folder / "images").rename(folder / "tianchi_images")
    raw = Taobao().read(folder, tmp_path)
    assert raw.image_root is None
    assert raw.warnings == [
        f"W262 {folder / 'images'} is not there, so no item has a picture; put the pictures there "
        "to have them"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dim_items.txt", None, r"E101 dim_items\.txt not found under .*tianchi"),
        ("user_bought_history.txt", None, r"E101 user_bought_history\.txt not found .*tianchi"),
        ("user_bought_history.txt", b"\n", r"E\d+ .*user_bought_history\.txt .*(empty|no rows)"),
        ("user_bought_history.txt", b"<html><body>login", r"E106 .*history\.txt is a web page"),
        ("dim_items.txt", b"<html><body>login", r"E106 .*dim_items\.txt is a web page"),
        ("user_bought_history.txt", b"1 29 2014-09-10\n", r"E216 .*:1: '2014-09-10'; .*20140911"),
        ("user_bought_history.txt", b"1 29 20141340\n", r"E216 .*:1: '20141340'"),
        ("user_bought_history.txt", b"1,29,20140910\n", r"E112 .*:1: 1 fields, expected 3"),
        ("user_bought_history.txt", b"1 77 20140910\n", r"E266 none of the 4 item ids"),
        ("dim_items.txt", b"29 155 1\n29 156 1\n", r"E261 .*'29' listed 2 times"),
        ("dim_items.txt", b"29\n49\n", r"E112 .*dim_items\.txt:1"),
        ("dim_items.txt", b"29 155 \xff\n", r"E111 .*dim_items\.txt:1: byte 0xff"),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("taobao", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data/taobao").exists()


def test_it_says_what_to_fetch_by_hand_and_goes_on_from_there(mmbench, folder):
    said = mmbench("prepare", "taobao")
    assert said.status == 2
    text = " ".join(said.err.split())
    assert "E104 taobao needs a login or a manual download: https://tianchi.aliyun.com" in text
    for place in ("dim_items.txt", "user_bought_history.txt", "images/ITEM.jpg"):
        assert f"data/_raw/taobao/{place}" in said.err

    shutil.copytree(folder, "data/_raw/taobao")
    said = mmbench("prepare", "taobao", "--user-core", 3, "--no-features")
    assert said.status == 0, said.err
    said = mmbench(
        "prepare", "taobao", "--as", "mine", "--source", folder, "--user-core", 3, "--no-features"
    )
    assert said.status == 0, said.err
    ours, mine = (open_dataset(Path("data") / name) for name in ("taobao", "mine"))
    assert ours.fingerprint == mine.fingerprint
    assert ours.manifest["counts"]["users"] == 6
