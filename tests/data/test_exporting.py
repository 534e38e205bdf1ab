"""Export to other toolboxes: the files as they must be, and the way back to the same dataset."""

import json

import numpy as np
import pytest
import yaml

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.exporting import LAYOUTS, MARK, export_dataset
from mmbench.data.features import write_features
from mmbench.data.prepare import prepare
from mmbench.data.prepared import open_dataset
from mmbench.errors import ConfigError, DataError, UnknownNameError

NO_CORE = PrepareConfig(user_min=0, item_min=0)
LAYOUT_NAMES = ("mmrec", "recbole")
# Ids that readers change who guess types, and that need quotes or no quotes.
USERS = ("NA", "007", "a b", "é", '"q"', "7")
ITEMS = ("null", "01", "x:y", "None", "c d", '"', "ß", "10")


@pytest.fixture
def odd(tmp_path):
    """Raw ids, texts, ratings, tied times and features of every width, as plain tables."""
    raw = tmp_path / "raw"
    (raw / "features").mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = ["user_id\titem_id\trating\ttimestamp"]
    for u, user in enumerate(USERS):
        for i in rng.permutation(len(ITEMS)):
            rating = "" if (u, i) == (1, 2) else f"{0.1 * (u + 1) + i:.3f}"
            time = 10**9 + 60 * int(rng.integers(4))  # many ties
            cells = (user, ITEMS[i], rating, time)
            lines.append("\t".join('"' + str(c).replace('"', '""') + '"' for c in cells))
    (raw / "interactions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = [
        ("NA", "plain"),
        ('"Awake" (2001)', 'he said ""'),
        ("tab\there", "two\nlines\r\nor three"),
        ("&amp; more <b>bold</b>", "a  b"),
        ("nan", ""),
        ('"', "5"),
        ("日本", "\x0bvertical"),
        ("", ""),
    ]
    rows = ["item_id,title,description,the kind:of"]
    for item, (title, description) in zip(ITEMS, texts, strict=True):
        cells = (item, title, description, "toy" if title else "")
        rows.append(",".join('"' + c.replace('"', '""') + '"' for c in cells))
    (raw / "items.csv").write_bytes(("\n".join(rows) + "\n").encode())
    for name, dtype, held in (
        ("visual__clip", np.float32, ITEMS[:6]),
        ("visual__vit.b_16", np.float16, ITEMS),
        ("textual__minilm", np.float32, ITEMS[2:]),
        ("joint__vlmo", np.float32, ITEMS),
    ):
        matrix = (rng.standard_normal((len(held), 5)) * 10.0 ** rng.integers(-7, 4, (1, 5))).astype(
            dtype
        )
        np.save(raw / f"features/{name}.npy", matrix)
        (raw / f"features/{name}.ids.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
    return prepare(
        "odd",
        source=raw,
        config=NO_CORE,
        splits=["random-per-user", "global-temporal", "leave-one-out"],
        data_dir=tmp_path / "data",
    ).dataset


@pytest.fixture
def positional(tmp_path, write_inter, labelled_rows):
    """Indices with features, and items without interactions: one in the middle, one at the end."""
    folder = write_inter([(u, (0, 1, 3, 4)[i], label) for u, i, label in labelled_rows])
    matrix = np.arange(18, dtype=np.float16).reshape(6, 3)  # row 0 starts with a zero
    matrix[4] = 0
    np.save(folder / "audio_feat.npy", matrix)
    lines = ["asin\titemID", *(f"B{k}\t{k}" for k in (4, 5, 0, 3, 1, 2))]
    (folder / "i_id_mapping.csv").write_text("\n".join(lines) + "\n")
    users = ["user_id\tuserID", *(f"A{9 - k}\t{k}" for k in range(6))]
    (folder / "u_id_mapping.csv").write_text("\n".join(users) + "\n")
    return prepare("positional", source=folder, data_dir=tmp_path / "data").dataset


def assert_same(before, after, split):
    """All that a fingerprint covers, and the labels of the exported split."""
    for column in ("user", "item", "timestamp", "rating"):
        np.testing.assert_array_equal(getattr(before, column), getattr(after, column))
    assert before.user_ids == after.user_ids
    assert before.item_ids == after.item_ids
    assert before.fingerprint == after.fingerprint
    assert after.split_names == ["imported"]
    np.testing.assert_array_equal(before.split(split).label, after.split("imported").label)
    assert before.split(split).fingerprint == after.split("imported").fingerprint


def assert_same_features(before, after, keys):
    assert after.feature_keys == sorted(keys.values())
    for old, new in keys.items():
        one, two = before.features(*old.split("__")), after.features(*new.split("__"))
        assert one.matrix.dtype == two.matrix.dtype
        np.testing.assert_array_equal(one.matrix, two.matrix)
        np.testing.assert_array_equal(one.mask, two.mask)


def read_back(exported, tmp_path):
    return prepare("back", source=exported.folder, data_dir=tmp_path / "again").dataset


@pytest.mark.parametrize("split", ["random-per-user", "leave-one-out"])
def test_raw_ids_come_back_from_mmrec(odd, tmp_path, split):
    chosen = ("visual=vit.b_16", "textual")
    done = export_dataset(odd, "mmrec", tmp_path / "out/odd", split=split, features=chosen)
    again = read_back(done, tmp_path)
    assert_same(odd, again, split)
    keys = {"visual__vit.b_16": "visual__imported", "textual__minilm": "textual__imported"}
    assert_same_features(odd, again, keys)
    assert done.features == tuple(keys)


@pytest.mark.parametrize("split", ["random-per-user", "leave-one-out"])
def test_raw_ids_and_texts_come_back_from_recbole(odd, tmp_path, split):
    done = export_dataset(odd, "recbole", tmp_path / "out/odd.v2", split=split)
    again = read_back(done, tmp_path)
    assert_same(odd, again, split)
    assert_same_features(odd, again, {key: key for key in odd.feature_keys})
    assert len(done.features) == 4
    assert odd.texts == again.texts
    assert [line["title"] for line in odd.items] == [line["title"] for line in again.items]
    assert odd.texts[0] == '". 5'  # ids stand in byte order, '"' comes first
    assert again.items[0]["fields"]["the_kind_of"] == "toy"


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_positions_come_back(positional, tmp_path, layout):
    done = export_dataset(positional, layout, tmp_path / "p")
    again = read_back(done, tmp_path)
    assert positional.item_ids == ["B0", "B1", "B2", "B3", "B4", "B5"]
    assert positional.user_ids[0] == "A9"
    assert positional.manifest["counts"]["items_unseen"] == 2
    assert_same(positional, again, "imported")
    assert_same_features(positional, again, {"acoustic__imported": "acoustic__imported"})
    assert again.manifest["counts"]["items_unseen"] == 2
    trailing = "the last 1 items have no interactions here. MMRec takes the largest itemID"
    assert [w.startswith(trailing) for w in done.warnings] == [True] * (layout == "mmrec")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_excluded_rows_are_left_out_and_counted(tmp_path, write_table, layout):
    # Users 0..7 at times of their own: the last user has no training row, the one before some.
    rows = [(f"u{u}", f"i{i}", 10**9 + 1000 * u + i) for u in range(10) for i in range(6)]
    raw = write_table(rows, header="user_id,item_id,timestamp")
    dataset = prepare(
        "x", source=raw, splits=["global-temporal"], config=NO_CORE, data_dir=tmp_path / "data"
    ).dataset
    # 60 times; quantiles 0.8 and 0.9 lie at ranks 47.2 and 53.1: 48, 6 and 6 rows. Users u8 and
    # u9 have held-out rows alone, which are excluded.
    label = dataset.split().label
    assert np.bincount(label, minlength=4).tolist() == [48, 0, 0, 12]
    done = export_dataset(dataset, layout, tmp_path / "out")
    assert done.rows == (48, 0, 0, 12)
    lines = [
        line
        for path in done.files
        if path.suffix == ".inter"
        for line in path.read_text().splitlines()[1:]
    ]
    assert len(lines) == 48


def test_mmrec_files_are_as_mmrec_reads_them(tmp_path, write_table):
    raw = write_table(
        [
            ("u", "B", "4.5", 10**9 + 5, "train"),
            ("u", "A", "0.1", 10**9 + 9, "test"),
            ("v", "B", "3", 10**9 + 1, "valid"),
            ("v", "C", "16777216", 10**9, "train"),
        ],
        header="user_id,item_id,rating,timestamp,split",
    )
    dataset = prepare("x", source=raw, data_dir=tmp_path / "data").dataset
    done = export_dataset(dataset, "mmrec", tmp_path / "baby")
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "baby.inter", "baby.yaml", "i_id_mapping.csv", MARK, "u_id_mapping.csv",
    ]  # fmt: skip
    assert {path.name for path in done.files} == {p.name for p in done.folder.iterdir()}
    assert (done.folder / "baby.inter").read_text() == (
        "userID\titemID\trating\ttimestamp\tx_label\n"
        "0\t1\t4.5\t1000000005000\t0\n"
        "0\t0\t0.1\t1000000009000\t2\n"
        "1\t2\t16777216.0\t1000000000000\t0\n"
        "1\t1\t3.0\t1000000001000\t1\n"
    )
    assert (done.folder / "i_id_mapping.csv").read_text() == "asin\titemID\nA\t0\nB\t1\nC\t2\n"
    assert (done.folder / "u_id_mapping.csv").read_text() == "user_id\tuserID\nu\t0\nv\t1\n"
    settings = yaml.safe_load((done.folder / "baby.yaml").read_text())
    assert settings["inter_file_name"] == "baby.inter"
    assert settings["inter_splitting_label"] == "x_label"
    assert settings["field_separator"] == "\t"
    assert (settings["USER_ID_FIELD"], settings["ITEM_ID_FIELD"]) == ("userID", "itemID")
    assert settings["TIME_FIELD"] == "timestamp"
    record = json.loads((done.folder / MARK).read_text())
    assert record["fingerprint"] == dataset.fingerprint
    assert record["split"]["fingerprint"] == dataset.split().fingerprint


def test_recbole_files_are_as_recbole_reads_them(tmp_path, write_table):
    raw = write_table(
        [("u", "B", "train"), ("u", '"A""a"', "test"), ("v", "B", "valid"), ("v", "C", "train")],
        header="user_id,item_id,split",
    )
    write_table(
        [('"A""a"', '"""Hi"" there"'), ("B", "Bear & co"), ("C", "")],
        header="item_id,title",
        name="items.csv",
    )
    dataset = prepare("x", source=raw, data_dir=tmp_path / "data").dataset
    write_features(
        dataset.root, dataset.fingerprint, "visual", "clip",
        np.array([[1, 0.1], [0, 0], [-2.5, 1e-9]], np.float32), np.array([True, False, True]), {},
    )  # fmt: skip
    done = export_dataset(open_dataset(dataset.root), "recbole", tmp_path / "shop")
    files = {p.name: p.read_text() for p in done.files}
    assert files.pop("shop.train.inter") == (
        "user_id:token\titem_id:token\tmmbench_index:float\nu\tB\t0\nv\tC\t3\n"
    )
    assert files.pop("shop.valid.inter").splitlines()[1:] == ["v\tB\t2"]
    assert files.pop("shop.test.inter").splitlines()[1:] == ['u\tA"a\t1']
    assert files.pop("shop.user") == "user_id:token\tmmbench_index:float\nu\t0\nv\t1\n"
    # A cell that begins with a quote sign stands in quotes: RecBole's reader takes them off.
    assert files.pop("shop.item") == (
        "item_id:token\tmmbench_index:float\ttitle:token_seq\ttext:token_seq\n"
        'A"a\t0\t"""Hi"" there"\t"""Hi"" there"\n'
        "B\t1\tBear & co\tBear & co\n"
        "C\t2\t\t\n"
    )
    assert files.pop("shop.visual__clip") == (
        'visual_id:token\tvisual_emb:float_seq\nA"a\t1.0 0.1\nC\t-2.5 1e-9\n'
    )
    written = files.pop("shop.yaml")
    settings = yaml.safe_load(written)
    assert settings["benchmark_filename"] == ["train", "valid", "test"]
    assert settings["eval_args"]["mode"] == "full"
    assert settings["load_col"] == {"inter": ["user_id", "item_id"], "item": ["item_id"]}
    assert "TIME_FIELD" not in settings
    offered = yaml.safe_load(
        "\n".join(line[2:] for line in written.splitlines() if line.startswith("# al"))
    )
    assert offered == {"alias_of_item_id": ["visual_id"]}
    assert "# preload_weight: {visual_id: visual_emb}" in written
    assert set(files) == {MARK}


def test_ids_that_recbole_takes_for_nothing_are_told(odd, tmp_path):
    done = export_dataset(odd, "recbole", tmp_path / "o")
    assert any("takes 1 user ids for empty cells ('NA')" in w for w in done.warnings)
    assert any("takes 2 item ids for empty cells ('None', 'null')" in w for w in done.warnings)


def test_users_without_training_are_told(tmp_path, write_table):
    rows = [(f"u{u}", f"i{u % 3}", ("train", "valid", "test")[u % 3]) for u in range(9)]
    raw = write_table([*rows, ("u3", "i1", "test")], header="user_id,item_id,split")
    dataset = prepare("x", source=raw, data_dir=tmp_path / "data").dataset
    done = export_dataset(dataset, "recbole", tmp_path / "o")
    # u1, u4, u7 are in validation alone, u2, u5, u8 in test alone.
    assert done.warnings == (
        "6 users have no training rows; RecBole ranks for them too, mmbench does not",
    )


def test_cold_cases_that_a_layout_cannot_tell(tmp_path, write_table):
    # i0..i9 have 12 interactions each, the last one of every user is with a rare item or with i0.
    rows = [
        (f"u{u}", item, 10**9 + 100 * u + k)
        for u in range(12)
        for k, item in enumerate([f"i{k}" for k in range(1, 10)] + [f"rare{u}" if u % 2 else "i0"])
    ]
    raw = write_table(rows, header="user_id,item_id,timestamp")
    dataset = prepare(
        "x",
        source=raw,
        splits=["cold-items", "cold-sequences"],
        config=NO_CORE,
        data_dir=tmp_path / "data",
    ).dataset
    told = {
        split: list(export_dataset(dataset, "mmrec", tmp_path / split, split=split).warnings)
        for split in dataset.split_names
    }
    # Every held-out row of cold-items is a cold case; of cold-sequences only the rare items are.
    assert told["cold-items"] == []
    assert told["cold-sequences"] == [
        "MMRec judges every held-out row; which of them are the cold cases of cold-sequences its "
        "layout does not tell"
    ]


def test_the_same_export_is_the_same_bytes_and_replaces_only_itself(odd, tmp_path):
    target = tmp_path / "o"
    first = export_dataset(odd, "recbole", target)
    bytes_before = {path.name: path.read_bytes() for path in first.files}
    with pytest.raises(DataError, match=r"E301 --to .*/o holds an earlier export; .*--force"):
        export_dataset(odd, "recbole", target)
    second = export_dataset(odd, "recbole", target, force=True)
    assert {path.name: path.read_bytes() for path in second.files} == bytes_before
    (target / MARK).unlink()
    with pytest.raises(DataError, match=r"E301 .* is not empty and no earlier export"):
        export_dataset(odd, "recbole", target, force=True)
    assert (target / "o.item").exists()
    (tmp_path / "empty").mkdir()
    assert export_dataset(odd, "recbole", tmp_path / "empty").files


def test_features_are_chosen_by_name(odd, tmp_path):
    def written(*features, layout="mmrec"):
        target = tmp_path / f"o{len(list(tmp_path.iterdir()))}"
        return export_dataset(odd, layout, target, features=features).features

    assert written("none") == ()
    assert written("textual") == ("textual__minilm",)
    assert written("visual__clip") == ("visual__clip",)
    assert written("visual=clip", "visual__clip") == ("visual__clip",)
    assert written("visual=clip", "visual=vit.b_16", layout="recbole") == (
        "visual__clip", "visual__vit.b_16",
    )  # fmt: skip
    with pytest.raises(
        ConfigError,
        match=r"odd has several visual feature sets \(clip, vit\.b_16\) and MMRec's layout holds "
        r"one of each modality; name it with --features visual=clip",
    ):
        written()
    with pytest.raises(ConfigError, match=r"several visual feature sets: clip, vit\.b_16\. Name"):
        written("visual", layout="recbole")
    with pytest.raises(ConfigError, match="no place for joint features; leave joint__vlmo out"):
        written("joint")
    with pytest.raises(UnknownNameError, match=r"unknown feature set of odd 'visual=clib'\..*clip"):
        written("visual=clib")


def test_what_mmrec_has_no_place_for_is_told(odd, tmp_path):
    write = {"features": ("visual=clip", "textual"), "split": "leave-one-out"}
    assert export_dataset(odd, "mmrec", tmp_path / "a", **write).warnings == ()
    for key in ("visual__clip", "visual__vit.b_16"):
        for file in (odd.root / "features" / key).iterdir():
            file.unlink()
        (odd.root / "features" / key).rmdir()
    done = export_dataset(odd, "mmrec", tmp_path / "b")
    assert done.features == ("textual__minilm",)
    assert done.warnings == ("MMRec's layout has no place for joint__vlmo; left out",)


def test_unknown_names_offer_the_nearest(odd, tmp_path):
    assert tuple(LAYOUTS) == LAYOUT_NAMES
    with pytest.raises(UnknownNameError, match=r"unknown layout to export 'recbol'\. Did you mean"):
        export_dataset(odd, "recbol", tmp_path / "o")
    with pytest.raises(UnknownNameError, match=r"unknown split of odd 'leave-one'\. Did you mean"):
        export_dataset(odd, "mmrec", tmp_path / "o", split="leave-one", features=["none"])
    assert not (tmp_path / "o").exists()


def test_places_that_cannot_be_written_to(odd, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"E301 --to .*/file is a file; name a folder"):
        export_dataset(odd, "recbole", tmp_path / "file")
    with pytest.raises(DataError, match=r"E108 cannot write below .*choose a --to that you may"):
        export_dataset(odd, "recbole", tmp_path / "file/below/o")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"the folder's name becomes the dataset's name"):
        export_dataset(odd, "recbole", tmp_path / "two words")
    with pytest.raises(DataError, match=r"E301 .* is not empty and no earlier export"):
        export_dataset(odd, "recbole", odd.root, force=True)
    assert open_dataset(odd.root).fingerprint == odd.fingerprint


def test_nothing_is_left_when_writing_fails(odd, tmp_path):
    folder = odd.root / "features/joint__vlmo"
    (folder / "matrix.npy").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"E302 .*joint__vlmo is damaged"):
        export_dataset(odd, "recbole", tmp_path / "o")
    lines = (odd.root / "items.jsonl").read_text(encoding="utf-8")
    (odd.root / "items.jsonl").write_text(lines.replace("{", "", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"E302 .*items\.jsonl"):
        export_dataset(open_dataset(odd.root), "recbole", tmp_path / "o", features=["none"])
    assert [path for path in tmp_path.iterdir() if path.name.startswith("o")] == []


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_long_tables_are_written_block_by_block(odd, tmp_path, monkeypatch, layout):
    whole = export_dataset(odd, layout, tmp_path / "a/o", features=["textual"])
    monkeypatch.setattr("mmbench.data.exports.job.BLOCK_ROWS", 7)
    monkeypatch.setattr("mmbench.data.exports.recbole._BLOCK_CELLS", 11)
    blocks = export_dataset(odd, layout, tmp_path / "b/o", features=["textual"])
    assert [p.name for p in whole.files] == [p.name for p in blocks.files]
    for one, two in zip(whole.files, blocks.files, strict=True):
        assert one.read_bytes() == two.read_bytes()
