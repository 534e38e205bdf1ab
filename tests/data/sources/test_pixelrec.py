"""PixelRec in its raw form: interactions and item information of one file name, and covers."""

from __future__ import annotations

import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.pixelrec import PixelRec
from mmbench.data.sources.plain import PlainTables
from mmbench.errors import DataError

T0 = 1_580_000_000  # Unix seconds
HEADER = "item_id,user_id,timestamp"
ROWS = [("i7", "u1", T0), ("i408373", "u1", T0 + 1), ("i0", "u2", T0 + 2), ("i7", "u2", T0 + 9)]
COUNTERS = (
    "view_number,comment_number,thumbup_number,share_number,coin_number,favorite_number,"
    "barrage_number"
)
ITEMS = (
    f"item_id,{COUNTERS},title,tag,description\n"
    'i7,3951000.0,5732,1,2,3,4,5,"Cats, and ""dogs""",pets,"first line\nsecond, line"\n'
    "i0,,,,,,,,标题,生活,\n"
    "i408373,1,2,3,4,5,6,7,,NA,-\n"
)


def table(rows=ROWS, header=HEADER):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def read(folder, name=None):
    return PixelRec(PixelRec.find_card(name) if name else None).read(folder, folder)


@pytest.fixture
def folder(tmp_path):
    """Pixel200K: two files of the same name in two folders."""
    root = tmp_path / "raw"
    for place, content in (("interaction", table()), ("item_info", ITEMS)):
        (root / place).mkdir(parents=True)
        (root / place / "Pixel200K.csv").write_text(content, encoding="utf-8")
    return root


def test_the_large_subsets(folder, write_picture, tmp_path):
    write_picture(folder / "cover/i7.jpg")
    write_picture(folder / "cover/i99.jpg", seed=1)
    assert PixelRec.recognises(folder)
    result = prepare("pixelrec-200k", source=folder, data_dir=tmp_path / "data")
    dataset = result.dataset
    assert sorted(dataset.item_ids) == ["i0", "i408373", "i7"]
    assert len(dataset.item) == len(ROWS)
    assert dataset.manifest["time"]["unit_in"] == "s"
    at = dataset.item_ids.index("i7")
    assert dataset.texts[at] == 'Cats, and "dogs"'
    assert dataset.items[at]["fields"]["description"] == "first line\nsecond, line"
    assert dataset.items[at]["fields"]["view_number"] == "3951000.0"
    assert dataset.image_paths[at] == folder / "cover/i7.jpg"
    assert [line["text_status"] for line in dataset.items].count("missing") == 1


def test_the_small_subset_has_names_of_its_own(tmp_path):
    (tmp_path / "PixelRec50K").mkdir()
    (tmp_path / "PixelRec50K/interaction.csv").write_text(table())
    (tmp_path / "PixelRec50K/item_info.csv").write_text(ITEMS, encoding="utf-8")
    assert PixelRec.recognises(tmp_path)
    raw = read(tmp_path, "pixelrec-50k")
    assert raw.interactions.rows() == [(u, i, None, t, None) for i, u, t in ROWS]
    assert raw.text_fields == ("title",)
    assert raw.items["tag"].to_list() == ["pets", "生活", "NA"]
    assert raw.warnings == []


def test_columns_are_told_apart_by_the_header(folder):
    path = folder / "interaction/Pixel200K.csv"
    path.write_text(table([(u, i, t) for i, u, t in ROWS], "user_id,item_id,timestamp"))
    assert read(folder).interactions["item"].to_list() == [i for i, _, _ in ROWS]


def test_a_missing_header_is_refused(folder):
    (folder / "interaction/Pixel200K.csv").write_text(table()[len(HEADER) + 1 :])
    assert not PixelRec.recognises(folder)
    with pytest.raises(
        DataError, match=r"E113 .*:1 is 'i7,u1,1580000000'.*must be item_id,user_id"
    ):
        read(folder, "pixelrec-200k")


def test_another_subset_is_refused_by_name(folder):
    with pytest.raises(
        DataError, match=r"E103 .* holds Pixel200K \(Pixel200K\.csv\), but pixelrec-1m is Pixel1M"
    ):
        read(folder, "pixelrec-1m")
    (folder / "interaction/Pixel1M.csv").write_text(table(ROWS[:2]))
    raw = read(folder, "pixelrec-1m")
    assert raw.interactions.height == 2
    # Item ids mean the same in every subset: the information of another serves.
    assert raw.files == (
        folder / "interaction/Pixel1M.csv", folder / "item_info/Pixel200K.csv",
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"E103 .* holds Pixel1M, Pixel200K; pass the folder of one"
    ):
        read(folder)


def test_without_information_and_covers_there_are_interactions(folder):
    (folder / "item_info/Pixel200K.csv").unlink()
    raw = read(folder, "pixelrec-200k")
    assert (raw.items, raw.image_root, raw.text_fields) == (None, None, ())


def test_covers_alone_describe_items(folder, write_picture):
    (folder / "item_info/Pixel200K.csv").unlink()
    write_picture(folder / "cover/i0.PNG")
    raw = read(folder)
    assert raw.items.rows() == [("i0", "i0.PNG"), ("i408373", None), ("i7", None)]


def test_covers_still_packed_are_told(folder):
    (folder / "cover.7z").touch()
    assert read(folder).warnings == [
        "W263 cover.7z is still packed, so its pictures are not used; unpack it where it lies"
    ]


def test_items_without_information_are_told(folder):
    path = folder / "item_info/Pixel200K.csv"
    path.write_text(ITEMS.replace("i0,", "i5,").replace("i408373,", ",", 1), encoding="utf-8")
    assert read(folder).warnings == [
        "W201 1 rows of Pixel200K.csv without item id dropped",
        "W269 2 of the 3 items of Pixel200K.csv are not in Pixel200K.csv, e.g. 'i0', 'i408373'; "
        "they have no text",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table() + "i1,u1\n", r"E112 .*Pixel200K\.csv:6: 2 fields, expected 3"),
        (table() + "i1,u1,x\n", r"E216 .*Pixel200K\.csv:6: timestamp 'x'"),
        (HEADER + "\n", "E241 .* has a header and no rows"),
        ("<!doctype html><title>Google Drive - Quota exceeded</title>", "E106 .* is a web page"),
        (table().encode() + b"i1,u\xff,1\n", r"E111 .*Pixel200K\.csv:6: byte 0xff"),
    ],
)
def test_broken_interactions_are_refused(folder, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "interaction/Pixel200K.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(folder, "pixelrec-200k")


def test_broken_information_is_refused(folder):
    path = folder / "item_info/Pixel200K.csv"
    path.write_text(ITEMS + "i9,1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"E112 .* 3 fields, expected 11"):
        read(folder)


def test_other_folders_are_not_recognised(tmp_path):
    assert not PixelRec.recognises(tmp_path)
    (tmp_path / "interactions.csv").write_text(table())
    assert PlainTables.recognises(tmp_path)
    assert not PixelRec.recognises(tmp_path)
    (tmp_path / "Pixel.csv").write_bytes(b"\x00\xff" * 5000)
    assert not PixelRec.recognises(tmp_path)
    with pytest.raises(DataError, match=r"E101 no Pixel"):
        read(tmp_path / "none", "pixelrec-8m")


def test_cards_tell_what_to_fetch_and_where_it_goes():
    cards = {card.name: card for card in PixelRec.cards()}
    assert list(cards) == ["pixelrec-50k", "pixelrec-200k", "pixelrec-1m", "pixelrec-8m"]
    said = cards["pixelrec-1m"].by_hand.format(folder="data/_raw/pixelrec-1m")
    for words in (
        "Pixel1M.csv into data/_raw/pixelrec-1m/interaction",
        "Pixel1M.csv into data/_raw/pixelrec-1m/item_info",
        "data/_raw/pixelrec-1m/cover",
    ):
        assert words in said
    small = cards["pixelrec-50k"].by_hand.format(folder="here")
    assert "interaction.csv and item_info.csv" in small
    assert "cover.7z into here/cover" in small
