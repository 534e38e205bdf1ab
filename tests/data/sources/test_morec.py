"""MoRec's files: histories, item lists of one to three columns, a folder of pictures."""

from __future__ import annotations

import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.morec import MoRec
from mmbench.errors import DataError

USERS = "U1\tv3 v1 v4 v1 v5\nU2\tv1 v9 v3 v4 v5\nU3\tv1 v3\n"


def read(folder, name=None):
    return MoRec(MoRec.find_card(name) if name else None).read(folder, folder)


@pytest.fixture
def folder(tmp_path):
    """H&M as in MoRec's repository: ids alone, lines of Windows."""
    root = tmp_path / "raw"
    root.mkdir()
    (root / "hm_50w_users.tsv").write_text(USERS)
    (root / "hm_50w_items.tsv").write_bytes(b"v1\r\nv3\r\nv4\r\nv5\r\nv9\r\nv77\r\n")
    return root


def test_histories_and_pictures(folder, write_picture, tmp_path):
    write_picture(folder / "hm_images/v3.jpg")
    assert MoRec.recognises(folder)
    raw = read(folder, "morec-hm")
    users = ["U1"] * 5 + ["U2"] * 5 + ["U3"] * 2
    items = ["v3", "v1", "v4", "v1", "v5", "v1", "v9", "v3", "v4", "v5", "v1", "v3"]
    assert raw.interactions.select("user", "item").rows() == list(zip(users, items, strict=True))
    assert raw.facts["has_order"] is True
    assert raw.text_fields == ()
    assert raw.warnings == []
    dataset = prepare("morec-hm", source=folder, data_dir=tmp_path / "data").dataset
    # U3 has two items; U1 has five of which two are the same, so four that count.
    assert dataset.user_ids == ["U2"]
    assert dataset.manifest["time"]["has_timestamps"] is False
    assert dataset.image_paths[dataset.item_ids.index("v3")] == folder / "hm_images/v3.jpg"


def test_titles_and_abstracts(tmp_path):
    (tmp_path / "mind_60w_users.tsv").write_text("U1\tN1 N2\n")
    (tmp_path / "mind_60w_items.tsv").write_text(
        'N1\tThe "Cheaters", caught\tAll of it.\nN2\tNA\t\nN3\t\tno title\n', encoding="utf-8"
    )
    assert MoRec.recognises(tmp_path)
    raw = read(tmp_path, "morec-mind")
    assert raw.items.rows() == [
        ("N1", 'The "Cheaters", caught', "All of it."), ("N2", "NA", None), ("N3", None, "no title")
    ]  # fmt: skip
    assert raw.text_fields == ("title",)


def test_names_with_the_size_behind_are_paired(tmp_path):
    (tmp_path / "hm_pick_users_20W.tsv").write_text(USERS)
    (tmp_path / "hm_pick_items_20W.tsv").write_text("".join(f"v{k}\tShirt {k}\n" for k in range(9)))
    (tmp_path / "hm_pick_items_5W.tsv").write_text("v1\tother\n")
    raw = read(tmp_path)
    assert raw.facts["interactions_from"] == "hm_pick_users_20W.tsv"
    assert raw.items.columns == ["item", "title"]
    assert raw.warnings == [
        "W269 1 of the 5 items of hm_pick_users_20W.tsv are not in hm_pick_items_20W.tsv, e.g. "
        "'v9'; they have no text"
    ]


def test_pictures_in_lmdb_are_not_read_and_that_is_told(folder):
    (folder / "hm_image.lmdb").mkdir()
    (folder / "hm_image.lmdb/data.mdb").write_bytes(b"\x80\x04pickled")
    raw = read(folder)
    assert raw.image_root is None
    (warning,) = raw.warnings
    assert "hm_image.lmdb is an LMDB of pickled Python objects, which are never read" in warning
    assert "put the folder of picture files (hm_50w_images)" in warning


def test_another_dataset_is_refused_by_name(folder):
    with pytest.raises(DataError, match=r"E103 .* holds hm_50w .* but morec-mind is mind_60w"):
        read(folder, "morec-mind")
    (folder / "x_users.tsv").write_text("a\tb\n")
    (folder / "x_items.tsv").write_text("b\n")
    assert read(folder, "morec-hm").interactions.height == 12
    with pytest.raises(DataError, match=r"E103 .* holds hm_50w, x; pass the folder of one"):
        read(folder)


def test_empty_histories_are_counted(folder):
    (folder / "hm_50w_users.tsv").write_text(USERS + "U4\t\n")
    assert read(folder).warnings == [
        "W201 1 users of hm_50w_users.tsv have an empty history; left out"
    ]


def test_items_listed_twice_with_other_titles_are_refused(folder, tmp_path):
    (folder / "hm_50w_items.tsv").write_text("v1\ta\nv1\tb\nv3\tc\n")
    with pytest.raises(DataError, match=r"E261 .* 'v1' listed 2 times with different content"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hm_50w_users.tsv", USERS + "U9 v1 v2\n", r"E112 .*users\.tsv:4: 1 fields, expected 2"),
        ("hm_50w_users.tsv", "", r"E113 .*users\.tsv is empty"),
        ("hm_50w_users.tsv", "<html><p>login\t1</html>", r"E106 .*users\.tsv is a web page"),
        ("hm_50w_users.tsv", USERS.encode() + b"U\xff\tv1\n", r"E111 .*users\.tsv:4: byte 0xff"),
        ("hm_50w_items.tsv", "v1\ta\tb\tc\n", r"E112 .*items\.tsv:1: 4 fields, expected at most 3"),
        ("hm_50w_items.tsv", "v1\ta\nv3\n", r"E112 .*items\.tsv:2: 1 fields, expected 2"),
        ("hm_50w_items.tsv", "w1\nw2\n", r"E266 none of the 2 item ids"),
    ],
)
def test_broken_files_are_refused(folder, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(folder, "morec-hm")


def test_other_folders_are_not_recognised(tmp_path):
    assert not MoRec.recognises(tmp_path)
    (tmp_path / "hm_50w_users.tsv").write_text(USERS)
    assert not MoRec.recognises(tmp_path)  # its item list is missing
    with pytest.raises(DataError, match=r"E101 no \*_users\.tsv with its \*_items\.tsv under"):
        read(tmp_path, "morec-hm")
    (tmp_path / "hm_50w_items.tsv").mkdir()
    assert not MoRec.recognises(tmp_path)
    (tmp_path / "x_users.tsv").write_bytes(bytes(range(256)))
    (tmp_path / "x_items.tsv").touch()
    assert not MoRec.recognises(tmp_path)


def test_cards_tell_what_to_fetch_and_where_it_goes():
    said = MoRec.find_card("morec-hm").by_hand.format(folder="here")
    assert "hm_50w_users.tsv and hm_50w_items.tsv from dataset/HM" in said
    assert "into here, and unpack hm_images.zip (linked there) to here/hm_images" in said
