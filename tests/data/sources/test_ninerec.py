"""NineRec in its raw form: pairs in either order, histories, texts in two languages, covers."""

from __future__ import annotations

import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.data.sources.ninerec import NineRec
from mmbench.errors import DataError

T0 = 1_650_000_000_000
ROWS = [("u3", "v007", T0), ("u3", "v2", T0 + 1), ("u1", "v9", T0 + 2), ("u1", "v2", T0 + 3)]
HISTORIES = "u3\tv007 v2\nu1\tv9 v2\n"
CHINESE = "韩国电影\uff0c《女教师》"  # the comma of Chinese is no separator
ITEMS = (
    f'v9,{CHINESE},"Korean Movie, The Governess"\n'
    'v007,"He said ""好""",NA\n'
    "v2,,Plain title\n"
    "v55,没有人看,Nobody watches\n"
)


def pairs_csv(order="uvt", rows=ROWS):
    cells = [dict(zip("uvt", row, strict=True)) for row in rows]
    return "".join(",".join(str(row[name]) for name in order) + "\n" for row in cells)


def read(folder, name=None):
    return NineRec(NineRec.find_card(name) if name else None).read(folder, folder)


def pairs(raw):
    return raw.interactions.select("user", "item", "timestamp").rows()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    (root / "KU_pair.csv").write_text(pairs_csv())
    (root / "KU_item.csv").write_text(ITEMS, encoding="utf-8")
    (root / "KU_url.csv").write_text("v9,https://example.org/9\n")
    return root


def test_a_target_set(folder, write_picture, tmp_path):
    write_picture(folder / "KU_cover/v9.jpg")
    assert NineRec.recognises(folder)
    result = prepare("ninerec-ku", source=folder, data_dir=tmp_path / "data")
    dataset = result.dataset
    assert sorted(dataset.item_ids) == ["v007", "v2", "v9"]
    texts = dict(zip(dataset.item_ids, dataset.texts, strict=True))
    assert texts == {"v9": "Korean Movie, The Governess", "v007": "NA", "v2": "Plain title"}
    at = dataset.item_ids.index("v9")
    assert dataset.items[at]["fields"]["title_zh"] == CHINESE
    assert dataset.image_paths[at] == folder / "KU_cover/v9.jpg"
    assert dataset.manifest["time"]["unit_in"] == "ms"
    config = PrepareConfig(text_fields=("title_zh",))
    chinese = prepare("zh", source=folder, config=config, data_dir=tmp_path / "data").dataset
    texts = dict(zip(chinese.item_ids, chinese.texts, strict=True))
    assert texts == {"v9": CHINESE, "v007": 'He said "好"', "v2": ""}


def test_the_order_of_the_columns_is_told_by_the_ids(folder):
    expected = pairs(read(folder))
    (folder / "KU_pair.csv").write_text(pairs_csv("vut"))
    assert NineRec.recognises(folder)
    assert pairs(read(folder)) == expected == ROWS


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (pairs_csv() + "v9,u3,5\n", 5),
        ("user,item,timestamp\n" + pairs_csv(), 1),
        ("1,2,3\n", 1),
        ("u1,u2,3\n", 1),
        ("v1,v2,3\n", 1),
    ],
)
def test_ids_that_do_not_tell_user_from_item_are_refused(folder, content, line):
    (folder / "KU_pair.csv").write_text(content)
    with pytest.raises(DataError, match=rf"E113 .*KU_pair\.csv:{line}: .* do not tell user from"):
        read(folder, "ninerec-ku")


def test_sets_without_times_are_read_in_the_order_of_their_histories(tmp_path):
    (tmp_path / "QB_pair.csv").write_text(pairs_csv("uv"))
    (tmp_path / "QB_behaviour.tsv").write_text(HISTORIES)
    assert NineRec.recognises(tmp_path)
    raw = read(tmp_path, "ninerec-qb")
    assert raw.facts == {"interactions_from": "QB_behaviour.tsv", "has_order": True}
    assert pairs(raw) == [(u, v, None) for u, v, _ in ROWS]
    assert raw.warnings == []
    (tmp_path / "QB_pair.csv").unlink()
    assert NineRec.recognises(tmp_path)
    assert pairs(read(tmp_path)) == pairs(raw)


@pytest.mark.parametrize("order", ["uv", "vu"])
def test_pairs_without_times_and_histories_have_no_order(tmp_path, order):
    (tmp_path / "TN_pair.csv").write_text(pairs_csv(order))
    raw = read(tmp_path, "ninerec-tn")
    assert pairs(raw) == [(u, v, None) for u, v, _ in ROWS]
    assert "has_order" not in raw.facts
    (tmp_path / "TN_pair.csv").write_text(
        "".join(line + ",\n" for line in pairs_csv(order).split())
    )
    assert NineRec.recognises(tmp_path)
    assert pairs(read(tmp_path)) == pairs(raw)


def test_pairs_with_times_win_and_a_contradiction_is_told(folder):
    (folder / "KU_behaviour.tsv").write_text(HISTORIES)
    raw = read(folder)
    assert pairs(raw) == ROWS
    assert raw.warnings == []
    (folder / "KU_behaviour.tsv").write_text(HISTORIES + "u8\tv2\n")
    assert read(folder).warnings == [
        "W267 KU_behaviour.tsv holds 3 users with 5 interactions, KU_pair.csv 2 with 4; "
        "KU_pair.csv is used"
    ]


def test_histories_of_other_ids_are_refused(tmp_path):
    (tmp_path / "QB_behaviour.tsv").write_text("u1\tv1 v2\nu2\tv1 12\n")
    with pytest.raises(DataError, match=r"E113 .*QB_behaviour\.tsv: 'u2' and '12' do not tell"):
        read(tmp_path)


def test_the_archive_of_all_targets(tmp_path, write_picture):
    for domain in ("Bili_Food", "DY"):
        place = tmp_path / "Downstream" / domain
        place.mkdir(parents=True)
        (place / f"{domain}_pair.csv").write_text(pairs_csv("vut"))
        write_picture(place / f"{domain}_cover/v2.jpg", seed=len(domain))
    raw = read(tmp_path, "ninerec-bili-food")
    assert raw.facts["interactions_from"] == "Bili_Food_pair.csv"
    assert raw.image_root == tmp_path / "Downstream/Bili_Food/Bili_Food_cover"
    with pytest.raises(DataError, match=r"E103 .* holds Bili_Food, DY; pass the folder of one"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"E103 .* holds Bili_Food, DY .* but ninerec-qb is QB"):
        read(tmp_path, "ninerec-qb")


def test_the_source_sets_share_their_covers(tmp_path, write_picture):
    (tmp_path / "Bili_500K_pair.csv").write_text(pairs_csv())
    write_picture(tmp_path / "Source_Bili_2M_cover/v2.jpg")
    raw = read(tmp_path, "ninerec-bili-500k")
    assert raw.items.rows() == [("v007", None), ("v2", "v2.jpg"), ("v9", None)]


def test_items_without_text_are_told(folder):
    (folder / "KU_item.csv").write_text(ITEMS.replace("v2,", "v3,"), encoding="utf-8")
    assert read(folder).warnings == [
        "W269 1 of the 3 items of KU_pair.csv are not in KU_item.csv, e.g. 'v2'; they have no text"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("KU_pair.csv", pairs_csv() + "u1\n", r"E112 .*KU_pair\.csv:5: 1 fields, expected 3"),
        ("KU_pair.csv", pairs_csv() + "u1,v1,no\n", r"E216 .*KU_pair\.csv:5: timestamp 'no'"),
        ("KU_pair.csv", "u1,v1,5,6\n", r"E112 .*KU_pair\.csv:1: 4 fields"),
        ("KU_pair.csv", "", r"E113 .*KU_pair\.csv is empty"),
        ("KU_pair.csv", "<html>\nu1,v1,1", r"E106 .*KU_pair\.csv is a web page"),
        ("KU_pair.csv", pairs_csv().encode() + b"u1,v\xfe,1\n", r"E111 .*KU_pair\.csv:5"),
        ("KU_item.csv", "v2,a,b\nv9,c\n", r"E112 .*KU_item\.csv:2: 2 fields, expected 3"),
        ("KU_item.csv", "x1,a,b\n", r"E266 none of the 1 item ids"),
        ("KU_item.csv", "<HTML>", r"E106 .*KU_item\.csv is a web page"),
    ],
)
def test_broken_files_are_refused(folder, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(folder, "ninerec-ku")


def test_other_folders_are_not_recognised(tmp_path):
    assert not NineRec.recognises(tmp_path)
    (tmp_path / "x_pair.csv").write_text("1,2,3\n")
    (tmp_path / "y_behaviour.tsv").write_text("1\t2 3\n")
    (tmp_path / "z_pair.csv").mkdir()
    assert not NineRec.recognises(tmp_path)
    with pytest.raises(DataError, match=r"E101 TN_pair.csv and TN_behaviour.tsv not found"):
        read(tmp_path / "none", "ninerec-tn")


def test_cards_tell_what_to_fetch_and_where_it_goes():
    names = [card.name for card in NineRec.cards()]
    assert names == [
        "ninerec-bili-2m", "ninerec-bili-500k", "ninerec-bili-food", "ninerec-bili-dance",
        "ninerec-bili-movie", "ninerec-bili-cartoon", "ninerec-bili-music", "ninerec-ku",
        "ninerec-qb", "ninerec-tn", "ninerec-dy",
    ]  # fmt: skip
    assert NineRec.find_card("ninerec-kwai").name == "ninerec-ku"
    assert NineRec.find_card("ninerec-bili").name == "ninerec-bili-2m"
    said = NineRec.find_card("ninerec-tn").by_hand.format(folder="here")
    assert "TN_behaviour.tsv, TN_item.csv and the folder TN_cover" in said
    assert "into here" in said
    said = NineRec.find_card("ninerec-bili-500k").by_hand.format(folder="here")
    assert "Source Datasets" in said
    assert "Bili_500K_pair.csv, Bili_500K_item.csv and the folder Source_Bili_2M_cover" in said
