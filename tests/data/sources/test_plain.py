import numpy as np
import polars as pl
import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.prepare import prepare
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
