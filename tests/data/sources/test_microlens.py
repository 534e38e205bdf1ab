"""MicroLens in its raw form: pairs, histories, two kinds of title lists, covers, features."""

from __future__ import annotations

import numpy as np
import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.microlens import MicroLens
from mmbench.errors import DataError

T0 = 1_583_378_629_552  # milliseconds, as in MicroLens-50k_pairs.csv
ROWS = [
    ("9", "1", T0), ("9", "3", T0 + 5), ("1", "2", T0 + 7), ("1", "1", T0 + 8),
    ("36", "3", T0 + 9), ("36", "4", T0 + 12),
]  # fmt: skip
HISTORIES = "9\t1 3\n1\t2 1\n36\t3 4\n"
BARE = '1,First, with comma\n2,"Second" quote\n3,Third\n4,Fourth #tag\n'


def pairs_csv(rows=ROWS, header="user,item,timestamp"):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.fixture
def folder(tmp_path):
    """MicroLens-100k as it is unpacked, with all of its optional files."""
    root = tmp_path / "raw"
    root.mkdir()
    (root / "MicroLens-100k_pairs.csv").write_text(pairs_csv())
    (root / "MicroLens-100k_pairs.tsv").write_text(HISTORIES)
    (root / "MicroLens-100k_title_en.csv").write_text(BARE)
    (root / "MicroLens-100k_likes_and_views.txt").write_text("1\t10000\t44000\n2\t7\t9\n")
    (root / "tags_to_summary.csv").write_text("1,Food\n2,Music\n3,Food\n4,News\n")
    features = root / "extracted_modality_features"
    features.mkdir()
    for name, width in (
        ("title_en_text_features_BgeM3", 5),
        ("image_features_CLIPRN50", 4),
        ("video_features_VideoMAE", 3),
    ):
        matrix = np.arange(1, 4 * width + 1, dtype=np.float32).reshape(4, width)
        np.save(features / f"MicroLens-100k_{name}.npy", matrix)
    return root


def read(folder, name=None, scratch=None):
    card = MicroLens.find_card(name) if name else None
    return MicroLens(card).read(folder, scratch or folder)


def test_everything_that_was_published_is_read(folder, write_picture, tmp_path):
    for item in (1, 3, 4):
        write_picture(folder / f"MicroLens-100k_covers/{item}.jpg", seed=item)
    assert MicroLens.recognises(folder)
    result = prepare("microlens-100k", source=folder, data_dir=tmp_path / "data")
    dataset = result.dataset
    assert (dataset.user_ids, dataset.item_ids) == (["1", "9", "36"], ["1", "2", "3", "4"])
    order = sorted(zip(dataset.timestamp.tolist(), dataset.user, dataset.item, strict=True))
    named = [(dataset.user_ids[u], dataset.item_ids[i], t) for t, u, i in order]
    assert named == ROWS  # nothing was dropped: no core is taken
    assert dataset.texts == ["First, with comma", '"Second" quote', "Third", "Fourth #tag"]
    assert dataset.items[0]["fields"] == {
        "title": "First, with comma", "category": "Food", "likes": "10000", "views": "44000",
    }  # fmt: skip
    assert [path is not None for path in dataset.image_paths] == [True, False, True, True]
    visual = dataset.features("visual", "clip-rn50").matrix
    assert np.array_equal(visual[2], [9, 10, 11, 12])  # row i is item i + 1
    assert dataset.features("visual", "videomae").matrix.shape == (4, 3)
    assert dataset.features("textual", "bge-m3").matrix.shape == (4, 5)
    assert not any("W267" in warning for warning in result.warnings)


def test_the_50k_form(tmp_path):
    (tmp_path / "MicroLens-50k_pairs.csv").write_text(pairs_csv())
    (tmp_path / "MicroLens-50k_titles.csv").write_text(
        'item,title\n4,D\n2,"B, ""b"""\n1,NA\n3,"C\nc"\n', encoding="utf-8"
    )
    raw = read(tmp_path, "microlens-50k")
    assert dict(raw.items.rows()) == {"4": "D", "2": 'B, "b"', "1": "NA", "3": "C\nc"}
    assert raw.text_fields == ("title",)
    assert raw.interactions.rows() == [(u, i, None, t, None) for u, i, t in ROWS]
    assert "has_order" not in raw.facts
    assert raw.warnings == []


def test_columns_are_told_apart_by_the_header(tmp_path):
    turned = [(t, i, u) for u, i, t in ROWS]
    (tmp_path / "MicroLens-50k_pairs.csv").write_text(pairs_csv(turned, "timestamp,item,user"))
    assert MicroLens.recognises(tmp_path)
    raw = read(tmp_path)
    assert raw.interactions["user"].to_list() == [u for u, _, _ in ROWS]
    assert raw.items is None


def test_a_missing_header_is_refused(tmp_path):
    path = tmp_path / "MicroLens-50k_pairs.csv"
    path.write_text(pairs_csv()[len("user,item,timestamp\n") :])
    assert not MicroLens.recognises(tmp_path)
    with pytest.raises(DataError, match=rf"E113 .*{path.name}:1: '9,1,\d+' is no header"):
        read(tmp_path, "microlens-50k")
    path.write_text(pairs_csv(header="user,video,timestamp"))
    with pytest.raises(DataError, match=r"E113 .* column 'item' missing; found user, video"):
        read(tmp_path, "microlens-50k")


def test_histories_tell_the_order_where_pairs_are_missing(folder, tmp_path):
    (folder / "MicroLens-100k_pairs.csv").unlink()
    assert MicroLens.recognises(folder)
    raw = read(folder)
    assert raw.facts["has_order"] is True
    assert raw.interactions.select("user", "item").rows() == [(u, i) for u, i, _ in ROWS]
    assert raw.interactions["timestamp"].null_count() == len(ROWS)
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.manifest["time"]["has_timestamps"] is False


def test_pairs_win_over_histories_and_a_contradiction_is_told(folder):
    (folder / "MicroLens-100k_pairs.tsv").write_text("9\t1 3\n1\t2\n")
    raw = read(folder)
    assert raw.interactions.height == len(ROWS)
    assert raw.facts["interactions_from"] == "MicroLens-100k_pairs.csv"
    assert raw.warnings == [
        "W267 MicroLens-100k_pairs.tsv holds 2 users with 3 interactions, MicroLens-100k_pairs.csv "
        "3 with 6; MicroLens-100k_pairs.csv is used"
    ]


def test_items_without_title_are_told_and_kept(folder):
    (folder / "MicroLens-100k_title_en.csv").write_text(BARE.replace("3,Third\n", ""))
    raw = read(folder)
    assert raw.warnings == [
        "W269 1 of the 4 items of MicroLens-100k_pairs.csv are not in MicroLens-100k_title_en.csv, "
        "e.g. '3'; they have no text"
    ]
    assert raw.interactions.height == len(ROWS)


def test_titles_of_other_items_are_refused(folder):
    (folder / "MicroLens-100k_title_en.csv").write_text("11,a\n12,b\n")
    with pytest.raises(DataError, match=r"E266 none of the 2 item ids"):
        read(folder)


def test_another_subset_is_refused_by_name(folder):
    with pytest.raises(
        DataError, match=r"E103 .* holds MicroLens-100k .* but microlens-50k is MicroLens-50k"
    ):
        read(folder, "microlens-50k")
    (folder / "MicroLens-50k_pairs.csv").write_text(pairs_csv())
    assert read(folder, "microlens-50k").facts["interactions_from"] == "MicroLens-50k_pairs.csv"
    with pytest.raises(DataError, match=r"E103 .* holds MicroLens-100k, MicroLens-50k; pass"):
        read(folder)


def test_a_folder_inside_the_folder_is_found(folder, tmp_path, write_picture):
    write_picture(tmp_path / "covers/deep/2.png")
    assert MicroLens.recognises(tmp_path)
    raw = read(tmp_path, "microlens-100k")
    assert raw.image_root == tmp_path / "covers"
    assert raw.items.select("item", "image").rows()[1] == ("2", "deep/2.png")


@pytest.mark.parametrize("rows", [3, 5])
def test_features_of_other_items_are_refused(folder, rows):
    path = folder / "extracted_modality_features/MicroLens-100k_image_features_CLIPRN50.npy"
    np.save(path, np.ones((rows, 2), dtype=np.float32))
    with pytest.raises(DataError, match=rf"E251 .*CLIPRN50\.npy: {rows} rows, dataset has 4 items"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MicroLens-50k_image_features_X.npy", "E251 .* belongs to another dataset"),
        ("MicroLens-100k_smell_features_X.npy", "E118 .* the name tells no modality"),
        ("MicroLens-100k_image_features_My_Net (v2).npy", None),
        ("MicroLens-100k_image_features_cliprn50.npy", "E118 .* another visual clip-rn50 set"),
    ],
)
def test_names_of_feature_files(folder, name, message):
    np.save(folder / name, np.ones((4, 2), dtype=np.float32))
    if message is None:
        stored = {(f.modality, f.encoder) for f in read(folder).features}
        assert len(stored) == 4
        assert ("visual", "my-net-v2") in stored
    else:
        with pytest.raises(DataError, match=message):
            read(folder)


def test_features_for_ids_that_are_not_numbers_are_refused(folder):
    (folder / "MicroLens-100k_title_en.csv").unlink()
    (folder / "MicroLens-100k_pairs.tsv").unlink()
    (folder / "MicroLens-100k_pairs.csv").write_text(pairs_csv([("a", "v1", T0)]))
    with pytest.raises(DataError, match=r"E251 .* row i belongs to item i \+ 1, but items of"):
        read(folder)


def test_features_are_never_unpickled(folder):
    path = folder / "extracted_modality_features/MicroLens-100k_image_features_CLIPRN50.npy"
    np.save(path, np.array([{"a": 1}] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"E118 .* Python objects, which are never unpickled"):
        read(folder)


def test_seconds_instead_of_milliseconds_are_seen(folder, tmp_path):
    rows = [(u, i, t // 1000) for u, i, t in ROWS]
    (folder / "MicroLens-100k_pairs.csv").write_text(pairs_csv(rows))
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.manifest["time"]["unit_in"] == "s"
    assert dataset.manifest["time"]["min"] == T0 // 1000 * 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pairs_csv() + "1,2\n", r"E112 .*pairs\.csv:8: 2 fields, expected 3"),
        (pairs_csv() + "1,2,soon\n", r"E216 .*pairs\.csv:8: timestamp 'soon'"),
        ("user,item,timestamp\n", r"E241 .*pairs\.csv has a header and no rows"),
        ("<html>Sign in</html>\n", r"E106 .*pairs\.csv is a web page"),
        (pairs_csv().encode() + b"1,\xff,1\n", r"E111 .*pairs\.csv:8: byte 0xff"),
    ],
)
def test_broken_pairs_are_refused(folder, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "MicroLens-100k_pairs.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(folder, "microlens-100k")


def test_malformed_lines_below_a_thousandth_are_left_out_and_told(folder):
    rows = [(str(user), str(item), T0 + user) for user in range(500) for item in (1, 2, 3, 4)]
    (folder / "MicroLens-100k_pairs.tsv").unlink()
    (folder / "MicroLens-100k_pairs.csv").write_text(pairs_csv(rows) + "torn li\n")
    raw = read(folder)
    assert raw.interactions.height == 2000
    (warning,) = raw.warnings
    assert warning.startswith("W112 1 of 2,002 lines of ")
    assert "line 2002: 1 field" in warning


def test_tags_listed_twice_are_refused(folder):
    (folder / "tags_to_summary.csv").write_text("1,Food\n1,Music\n")
    with pytest.raises(DataError, match=r"E261 .*tags_to_summary.csv: item '1' has several lines"):
        read(folder)


def test_odd_folders_are_not_recognised(tmp_path):
    assert not MicroLens.recognises(tmp_path)
    (tmp_path / "x_pairs.csv").write_bytes(bytes(range(256)))
    (tmp_path / "y_pairs.tsv").write_text("u1\tv1 v2\n")
    (tmp_path / "z_pairs.csv").mkdir()
    assert not MicroLens.recognises(tmp_path)
    assert not MicroLens.recognises(tmp_path / "none")
    with pytest.raises(DataError, match=r"E101 MicroLens-50k_pairs.csv not found under"):
        read(tmp_path / "none", "microlens-50k")


def test_cards_name_their_files():
    cards = {card.name: card for card in MicroLens.cards()}
    assert list(cards) == ["microlens-50k", "microlens-100k", "microlens-1m"]
    addresses = {file.path: file.addresses[0] for file in cards["microlens-100k"].files}
    assert addresses["MicroLens-100k_pairs.csv"] == (
        "https://recsys.westlake.edu.cn/MicroLens-100k-Dataset/MicroLens-100k_pairs.csv"
    )
    assert cards["microlens-50k"].parts == ["pictures"]
    assert cards["microlens-100k"].parts == ["features", "pictures", "tags"]
    assert cards["microlens-1m"].files == ()
    assert "MicroLens-1M_pairs.csv" in cards["microlens-1m"].by_hand.format(folder="here")
