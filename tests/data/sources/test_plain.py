import gzip

import numpy as np
import polars as pl
import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
from mmbench.data.sources.plain import PlainTables
from mmbench.errors import DataError, UnknownNameError

NO_CORE = PrepareConfig(user_min=0, item_min=0)
ALL = "user_id,item_id,rating,timestamp"


@pytest.fixture
def make(tmp_path):
    def run(folder, name="x", config=NO_CORE, **more):
        return prepare(name, source=folder, config=config, data_dir=tmp_path / "data", **more)

    return run


def pairs(dataset):
    users, items = dataset.user_ids, dataset.item_ids
    return {(users[u], items[i]) for u, i in zip(dataset.user, dataset.item, strict=True)}


def test_csv_tsv_and_parquet_hold_the_same_dataset(tmp_path, write_table, full_rows, make):
    folder = write_table(full_rows, ALL)
    csv = make(folder).dataset
    lines = (folder / "interactions.csv").read_text()
    (folder / "interactions.csv").unlink()
    (folder / "interactions.tsv").write_text(lines.replace(",", "\t"))
    tsv = make(folder, "y").dataset
    (folder / "interactions.tsv").unlink()
    columns = dict(zip(ALL.split(","), zip(*full_rows, strict=True), strict=True))
    pl.DataFrame(columns).write_parquet(folder / "interactions.parquet")
    parquet = make(folder, "z").dataset
    assert csv.fingerprint == tsv.fingerprint == parquet.fingerprint
    assert pairs(csv) == {row[:2] for row in full_rows}
    assert csv.split_names == ["random-per-user"]


@pytest.mark.parametrize("ties", ["item", "hash"])
def test_shuffled_rows_give_the_same_fingerprints(write_table, full_rows, make, ties):
    config = PrepareConfig(ties=ties)
    rows = [(u, i, r, t // 100 * 100) for u, i, r, t in full_rows]  # ties within each user
    rows += rows[:5]  # and repeated pairs
    first = make(write_table(rows, ALL), "a", config, splits=["leave-one-out", "random-global"])
    order = np.random.default_rng(1).permutation(len(rows))
    second = make(
        write_table([rows[k] for k in order], ALL),
        "b",
        config,
        splits=["leave-one-out", "random-global"],
    )
    assert first.dataset.fingerprint == second.dataset.fingerprint
    for name in first.dataset.split_names:
        assert first.dataset.split(name).fingerprint == second.dataset.split(name).fingerprint


def test_item_table_pictures_and_text(write_table, write_picture, make):
    write_table(
        [
            ("p", "Pear &amp; Co", "Fruit|Fresh", "sub/pear.png"),
            ("q", "", "", "gone.png"),
            ("unused", "Nobody bought it", "", ""),
        ],
        "item_id,title,categories,image",
        "items.csv",
    )
    folder = write_table([("a", "p"), ("a", "q"), ("b", "p"), ("b", "r")])
    write_picture(folder / "images/sub/pear.png")
    result = make(folder)
    dataset = result.dataset
    assert dataset.item_ids == ["p", "q", "r"]
    assert dataset.texts == ["Pear & Co. Fruit, Fresh", "", ""]
    assert dataset.image_paths == [folder / "images/sub/pear.png", None, None]
    assert dataset.items[0]["title"] == "Pear & Co"
    assert [line["text_status"] for line in dataset.items] == ["ok", "missing", "missing"]
    assert "W262 2 items without text, 2 without image, 2 without both" in result.warnings
    assert result.report["samples"]["pictures not found"] == ["gone.png"]


def test_pictures_are_found_by_item_id(write_table, write_picture, make):
    folder = write_table([("a", "P1"), ("a", "q.2"), ("b", "r")])
    write_picture(folder / "images/P1.png")
    write_picture(folder / "images/Q.2.jpg", seed=1)
    dataset = make(folder).dataset
    assert dataset.image_paths == [folder / "images/P1.png", folder / "images/Q.2.jpg", None]


def test_corrupt_pictures_are_named_and_left_out_or_refused(
    tmp_path, write_table, write_picture, make
):
    folder = write_table([("a", "p"), ("a", "q"), ("b", "r")])
    write_picture(folder / "images/p.png")
    broken = write_picture(folder / "images/q.png", side=64)
    broken.write_bytes(broken.read_bytes()[:500])
    write_picture(folder / "images/r.png", side=2)
    result = make(folder)
    assert result.dataset.image_paths == [folder / "images/p.png", None, None]
    told = [w for w in result.warnings if w.startswith("W263")]
    assert "1 corrupt, 1 placeholders" in told[0]
    assert "q.png" in told[0]
    with pytest.raises(DataError, match=r"with --strict warnings are errors: .*q\.png"):
        make(folder, "y", strict=True)
    assert not (tmp_path / "data/y").exists()
    only = make(folder, "z", PrepareConfig(user_min=0, item_min=0, require="image"))
    assert only.dataset.item_ids == ["p"]


def test_features_are_matched_by_id(write_table, make):
    folder = write_table([("a", "p"), ("a", "q"), ("b", "r")])
    (folder / "features").mkdir()
    np.save(folder / "features/visual__clip.npy", np.array([[3.0, 3], [9, 9], [1, 1]]))
    (folder / "features/visual__clip.ids.txt").write_text("r\nelsewhere\np\n")
    dataset = make(folder).dataset
    features = dataset.features("visual")
    assert features.encoder == "clip"
    assert features.matrix.tolist() == [[1, 1], [0, 0], [3, 3]]
    assert features.mask.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("name", "ids", "message"),
    [
        ("visual.npy", None, r"E101 visual\.ids\.txt not found"),
        ("visual.npy", "p\nq\n", r"E251 .*visual\.npy: 3 rows, but 2 item ids"),
        ("visual.npy", "p\nq\np\n", r"E251 .*item 'p' has several rows"),
        ("visual.npy", "x\ny\nz\n", r"E251 .*none of its item ids is in the dataset"),
        ("clip.npy", "p\nq\nr\n", r"E118 .*begin the name with its modality"),
    ],
)
def test_features_that_cannot_be_matched_are_refused(write_table, make, name, ids, message):
    folder = write_table([("a", "p"), ("a", "q"), ("b", "r")])
    (folder / "features").mkdir()
    np.save(folder / "features" / name, np.ones((3, 2)))
    if ids is not None:
        (folder / "features" / name).with_suffix(".ids.txt").write_text(ids)
    with pytest.raises(DataError, match=message):
        make(folder)


def test_own_labels_become_the_imported_split_and_forbid_a_core(write_table, make):
    rows = [(u, i, ("train", "train", "valid", "TEST")[i]) for u in range(3) for i in range(4)]
    folder = write_table(rows, "user_id,item_id,split")
    dataset = make(folder, config=PrepareConfig(), splits=["random-per-user"]).dataset
    assert dataset.manifest["config"]["user_min"] == 0
    # The labels are kept although another split was asked for.
    assert dataset.split_names == ["random-per-user", "imported"]
    assert dataset.split("imported").label.tolist() == [0, 0, 1, 2] * 3


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("user,item", ("a", "p"), "E113 .*column 'user_id' missing; found user, item"),
        ("user_id,item_id,split", ("a", "q", "dev"), r"E221 .*interactions\.csv:3: split 'dev'"),
        (
            "user_id,item_id,rating",
            ("a", "q", "good"),
            r"E211 .*interactions\.csv:3: rating 'good'",
        ),
        ("user_id,item_id,timestamp", ("a", "q", "now"), r"E216 .*interactions\.csv:.*'now'"),
    ],
)
def test_bad_interactions_are_refused(write_table, make, header, row, message):
    good = ("a", "p", "0" if "split" in header else "1000000000")[: len(row)]
    with pytest.raises(DataError, match=message):
        make(write_table([good, row], header))


def test_bad_item_tables_are_refused(write_table, make):
    folder = write_table([("a", "p"), ("b", "q")])
    write_table([("p", "x"), ("p", "y")], "item_id,title", "items.csv")
    with pytest.raises(
        DataError, match=r"E261 items of .*: 'p' listed 2 times with different content"
    ):
        make(folder)
    write_table([("p", "x"), ("p", "x")], "item_id,title", "items.csv")
    assert "W261 1 identical rows of the item table merged" in make(folder).warnings
    write_table([("p", "x"), (None, "y")], "item_id,title", "items.csv")
    with pytest.raises(DataError, match="1 rows without item_id"):
        make(folder, "y")
    write_table([("p", "../x.png")], "item_id,image", "items.csv")
    with pytest.raises(DataError, match=r"E265 item 'p': image path '\.\./x\.png' not allowed"):
        make(folder, "y")


def test_an_unknown_text_field_offers_the_nearest(write_table, make):
    folder = write_table([("a", "p"), ("b", "q")])
    write_table([("p", "x")], "item_id,title", "items.csv")
    with pytest.raises(UnknownNameError, match=r'unknown text field .* Did you mean "title"'):
        make(folder, config=PrepareConfig(user_min=0, item_min=0, text_fields=("titel",)))


def test_two_interaction_tables_are_ambiguous(write_table, make):
    folder = write_table([("a", "p")])
    write_table([("a", "p")], name="interactions.tsv")
    with pytest.raises(DataError, match=r"E103 .* holds interactions\.csv and interactions\.tsv"):
        make(folder)


def test_an_empty_table_is_refused(write_table, make):
    with pytest.raises(DataError, match=r"E241 .*has a header and no rows"):
        make(write_table([]))


def test_packed_tables_hold_the_same_dataset(write_table, full_rows, make):
    folder = write_table(full_rows, ALL)
    plain = make(folder).dataset
    text = (folder / "interactions.csv").read_bytes()
    (folder / "interactions.csv").unlink()
    (folder / "interactions.csv.gz").write_bytes(gzip.compress(text))
    packed = make(folder, "y")
    assert packed.dataset.fingerprint == plain.fingerprint
    assert any("recognised" in note for note in packed.notes)
    (folder / "interactions.tsv.gz").write_bytes(gzip.compress(text.replace(b",", b"\t")))
    with pytest.raises(DataError, match=r"E103 .* holds interactions\.csv\.gz and .*\.tsv\.gz"):
        make(folder, "z")
    (folder / "interactions.csv.gz").unlink()
    assert make(folder, "z").dataset.fingerprint == plain.fingerprint


def test_columns_that_nobody_needs_are_named_and_not_read(tmp_path, write_table):
    rows = [(f"u{k}", f"i{k}", "x" * 50, k) for k in range(3)]
    folder = write_table(rows, "user_id,item_id,comment,n")
    raw = PlainTables().read(folder, tmp_path)
    assert raw.facts == {"columns_ignored": ["comment", "n"]}
    assert raw.interactions["user"].to_list() == ["u0", "u1", "u2"]
    (folder / "interactions.csv").unlink()
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "comment", "n"], orient="row")
    table.write_parquet(folder / "interactions.parquet")
    again = PlainTables().read(folder, tmp_path)
    assert again.facts == raw.facts
    assert again.interactions.equals(raw.interactions)


def test_malformed_lines_are_left_out_with_a_warning(tmp_path, write_table):
    rows = [(f"u{k % 50}", f"i{k // 50}") for k in range(2500)]
    folder = write_table([*rows[:15], ("u", "i", "one too many"), *rows[15:]])
    raw = PlainTables().read(folder, tmp_path)
    assert raw.interactions.height == 2500
    assert raw.warnings == [
        f"W112 1 of 2,502 lines of {folder / 'interactions.csv'} are malformed and left out, "
        "e.g. line 17: 3 fields, expected 2"
    ]
    folder = write_table([*rows[:15], ("u", "i", "one too many"), *rows[15:900]])
    with pytest.raises(DataError, match=r"E112 .*interactions\.csv:17: 3 fields, expected 2 .*"):
        PlainTables().read(folder, tmp_path)


def test_what_was_left_out_is_told_by_prepare(write_table, make):
    rows = [(f"u{k % 50}", f"i{k // 50}") for k in range(2500)]
    result = make(write_table([*rows, ("u",)]))
    assert any(w.startswith("W112 1 of 2,502 lines of") for w in result.warnings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("interactions.csv", b"<!DOCTYPE html><html>log in", r"E106 .*a web page, perhaps a login"),
        ("interactions.csv", b"PK\x03\x04", r"E106 .*is a zip archive"),
        ("interactions.parquet", b"<html>", r"E106 .*a web page"),
        ("interactions.csv", b"user_id,item_id\nJos\xe9,p\n", r"E111 .*csv:2: byte 0xe9 is not"),
        ("interactions.csv", b"", r"E113 .*interactions\.csv is empty"),
        (
            "interactions.csv.gz",
            gzip.compress(b"user_id,item_id\na,p\n", mtime=0)[:-9],
            r"E106 .*truncated",
        ),
        (
            "interactions.csv",
            b"user_id,item_id,timestamp\na,p,2020-01-01\nb,q,1577836800\n",
            r"E216 .*interactions\.csv:2: timestamp '2020-01-01'; times must all be",
        ),
        (
            "interactions.csv",
            b"user_id,item_id,timestamp\na,p,1577836800\nb,q,9000\n",
            r"E216 1 timestamps of .* outside 1995\.\.today, e\.g\. 9000 in data row 2",
        ),
        (
            "interactions.csv",
            b"user_id,item_id,timestamp\na,p,1577836800\nb,q,1577836800000\n",
            r"E214 timestamps of .* mix milliseconds and another unit \(1 of 2\)",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(tmp_path, make, name, content, message):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        make(folder)
    assert not (tmp_path / "data").exists()


def test_an_item_table_of_other_ids_is_refused(write_table, make):
    folder = write_table([("a", "0123"), ("b", "0456")])
    write_table([("123", "x"), ("456", "y")], "item_id,title", "items.csv")
    with pytest.raises(
        DataError,
        match=r"E266 .*items\.csv .*e\.g\. '123' in the one and '0123' in the other; l",
    ):
        make(folder)
    write_table([("p", "x"), ("q", "y")], "item_id,title", "items.csv")
    with pytest.raises(DataError, match=r"E266 none of the 2 item ids .* do not belong together"):
        make(folder)
    # A part of the ids, and ids with blanks around them, are fine.
    write_table([(" 0123 ", "x"), ("q", "y")], "item_id,title", "items.csv")
    assert make(folder).dataset.texts == ["x", ""]


def test_odd_folders_are_not_recognised(tmp_path):
    assert not PlainTables.recognises(tmp_path)
    assert not PlainTables.recognises(tmp_path / "nowhere")
    (tmp_path / "interactions.csv").mkdir()
    assert not PlainTables.recognises(tmp_path)
