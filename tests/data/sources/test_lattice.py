"""LATTICE, in folders written as its own scripts write them."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.lattice import LATTICEFolder
from mmbench.errors import ConfigError, DataError

ASINS = ["097293751X", "B000IDSLOG", "9729375011", "NA", "B0043XBDOW"]
USERS = ["A2NAN", "AAA", "A10"]
TRAIN = {"0": [3, 1, 0], "1": [2, 0], "2": [4, 3]}
VAL = {"0": [2], "1": [4], "2": []}
TEST = {"0": [4], "1": [], "2": [1]}
TEXTS = [
    " Baby Strollers Stroller &amp; carStroller &amp; carfits\rall",
    " Toys nanNA",
    "",
    " Toys BabyCafé\x85Café\u2028x",
    " 5 4",
]


def write_parts(folder, parts):
    folder.mkdir(parents=True)
    for name, lists in zip(("train", "val", "test"), parts, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(lists))


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "sports"
    core = raw / "5-core"
    write_parts(core, (TRAIN, VAL, TEST))
    for name, ids in (("item", ASINS), ("user", USERS)):
        # A set's order: the indices do not ascend.
        lines = [f"{ids[k]}\t{k}\n" for k in reversed(range(len(ids)))]
        (core / f"{name}_list.txt").write_text("".join(lines))
    (core / "raw_text.txt").write_bytes(("\n".join(TEXTS) + "\n").encode())
    (core / "user-item-dict.json").write_text('{"0": [3, 1, 0, 2, 4]}')
    np.save(raw / "image_feat.npy", np.arange(10.0).reshape(5, 2) + 1)
    np.save(raw / "text_feat.npy", np.arange(15, dtype=np.float32).reshape(5, 3) + 1)
    (raw / "s_adj_mat.npz").write_bytes(b"a cache")
    return raw


@pytest.fixture
def cold(folder):
    """Items 4 and 2 are held out of training."""
    write_parts(
        folder / "0-core",
        (
            {"0": [3, 1, 0], "1": [0], "2": [3, 1]},
            {"0": [2], "1": [2], "2": []},
            {"0": [4], "1": [4], "2": [4]},
        ),
    )
    return folder


def pairs(raw, label):
    chosen = raw.interactions.filter(pl.col("split") == label)
    return list(zip(chosen["user"], chosen["item"], strict=True))


def test_the_split_and_the_order_of_the_lists_are_kept(tmp_path, folder):
    raw = LATTICEFolder().read(folder, tmp_path)
    wanted = [("0", "3"), ("0", "1"), ("0", "0"), ("1", "2"), ("1", "0"), ("2", "4"), ("2", "3")]
    assert pairs(raw, 0) == wanted
    assert pairs(raw, 1) == [("0", "2"), ("1", "4")]
    assert pairs(raw, 2) == [("0", "4"), ("2", "1")]
    assert raw.item_ids == tuple(ASINS)
    assert raw.user_ids == tuple(USERS)
    assert raw.positional
    assert raw.facts == {"source_layout": "LATTICE: 5-core"}
    names = [path.relative_to(folder).as_posix() for path in raw.files]
    assert names == [
        *(f"5-core/{part}.json" for part in ("train", "val", "test")),
        *("5-core/item_list.txt", "5-core/user_list.txt", "5-core/raw_text.txt"),
        *("image_feat.npy", "text_feat.npy"),
    ]


def test_ids_texts_and_features_reach_the_dataset(tmp_path, folder):
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    dataset = result.dataset
    assert result.notes == (f"recognised layout lattice in {folder}",)
    assert dataset.item_ids == ASINS
    assert dataset.user_ids == USERS
    assert dataset.feature_keys == ["textual__imported", "visual__imported"]
    np.testing.assert_array_equal(
        dataset.features("visual").matrix, np.arange(10).reshape(5, 2) + 1
    )
    stored = (dataset.root / "items.jsonl").read_bytes().splitlines()
    lines = [json.loads(line) for line in stored]
    # Only \n ends a line of raw_text.txt, so item 3 keeps its text, and item 4 its own.
    assert [line["text"] for line in lines] == [
        "Baby Strollers Stroller & carStroller & carfits all",
        "Toys nanNA",
        "",
        "Toys BabyCaféCafé x",
        "5 4",
    ]
    assert [line["text_status"] for line in lines] == ["ok", "ok", "missing", "ok", "ok"]


def test_the_bare_split_is_enough(tmp_path, folder):
    for name in ("item_list.txt", "user_list.txt", "raw_text.txt", "user-item-dict.json"):
        (folder / "5-core" / name).unlink()
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.item_ids == ["0", "1", "2", "3", "4"]
    assert dataset.feature_keys == ["textual__imported", "visual__imported"]


def test_everything_may_lie_in_one_folder(tmp_path, folder):
    flat = tmp_path / "flat"
    shutil.copytree(folder / "5-core", flat)
    for path in folder.glob("*.npy"):
        shutil.copy(path, flat)
    dataset = prepare("x", source=flat, data_dir=tmp_path / "data").dataset
    assert dataset.item_ids == ASINS
    assert dataset.feature_keys == ["textual__imported", "visual__imported"]


def test_the_cold_split_is_a_layout_of_its_own(tmp_path, cold):
    warm = prepare("warm", source=cold, data_dir=tmp_path / "data").dataset
    assert warm.manifest["facts"]["further_split"].endswith("--format lattice-0core")
    dataset = prepare(
        "cold", source=cold, format="lattice-0core", data_dir=tmp_path / "data"
    ).dataset
    assert dataset.item_ids == warm.item_ids
    label = dataset.split("imported").label
    assert sorted(set(dataset.item[label == 1].tolist())) == [2]
    assert sorted(set(dataset.item[label == 2].tolist())) == [4]
    assert sorted(set(dataset.item[label == 0].tolist())) == [0, 1, 3]
    assert dataset.manifest["facts"]["source_layout"] == "LATTICE: 0-core"
    assert dataset.feature_keys == ["textual__imported", "visual__imported"]


def test_the_cold_split_alone_is_recognised(tmp_path, cold):
    shutil.rmtree(cold / "5-core")
    result = prepare("x", source=cold, data_dir=tmp_path / "data")
    assert result.notes == (f"recognised layout lattice-0core in {cold}",)
    assert result.dataset.item_ids == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("inner", "option"), [("5-core", ""), ("0-core", " --format lattice-0core")]
)
def test_a_part_of_the_folder_is_pointed_back_to_the_whole(tmp_path, cold, inner, option):
    with pytest.raises(DataError, match=r"E103 .*pass the folder above it: ") as refused:
        prepare("x", source=cold / inner, data_dir=tmp_path / "data")
    assert str(refused.value).endswith(f"--source {cold}{option}")


def test_other_cores_are_read_when_there_is_one(tmp_path, folder):
    (folder / "5-core").rename(folder / "10-core")
    assert LATTICEFolder().read(folder, tmp_path).facts["source_layout"] == "LATTICE: 10-core"
    shutil.copytree(folder / "10-core", folder / "20-core")
    with pytest.raises(DataError, match=r"E103 .* holds 10-core, 20-core; move all but one"):
        LATTICEFolder().read(folder, tmp_path)
    shutil.copytree(folder / "10-core", folder / "5-core")
    assert LATTICEFolder().read(folder, tmp_path).facts["source_layout"] == "LATTICE: 5-core"


def test_a_core_would_tear_the_indices_apart(tmp_path, folder):
    from mmbench.data.cleaning import PrepareConfig

    with pytest.raises(ConfigError, match="E274 user_min=5 must be 0"):
        prepare("x", source=folder, config=PrepareConfig(user_min=5), data_dir=tmp_path / "data")


BROKEN = {
    "a pair in two parts": (
        "val.json", '{"0": [3]}', r"E231 1 user-item pairs are in more than one split",
    ),
    "truncated": ("train.json", '{"0": [3, 1], "1": [', r"E106 .*train\.json is not complete JSON"),
    "a list": ("train.json", "[[0, 1]]", r"E114 .*train\.json: it is no object"),
    "a number": ("train.json", "7", r"E114 .*train\.json: it is no object"),
    "no list": ("train.json", '{"0": {"1": 2}}', r"E114 .*user 0 has no list of items"),
    "a text": ("train.json", '{"0": ["1"]}', r"E212 .*user 0 has item '1'; items are indices"),
    "a fraction": ("train.json", '{"0": [1, 2.5]}', r"E212 .*user 0 has item '2\.5'"),
    "a whole fraction": ("train.json", '{"0": [1, 2.0]}', r"E212 .*user 0 has item '2\.0'"),
    "true": ("train.json", '{"0": [true]}', r"E212 .*user 0 has item 'True'"),
    "null": ("train.json", '{"0": [null]}', r"E212 .*user 0 has item 'None'"),
    "NaN": ("train.json", '{"0": [NaN]}', r"E212 .*user 0 has item 'NaN'"),
    "a negative item": ("train.json", '{"0": [1, -1]}', r"E212 .*user 0 has item '-1'"),
    "a huge item": ("train.json", '{"0": [99999999999999999999]}', r"E212 .*has item '9999999999"),
    "a list in a list": ("train.json", '{"0": [[1]]}', r"E212 .*user 0 has item '\[1\]'"),
    "a negative user": ("train.json", '{"-1": [1]}', r"E212 .*user '-1'; users are indices"),
    "a named user": ("train.json", '{"A1": [1]}', r"E212 .*user 'A1'"),
    "a padded user": ("train.json", '{"01": [1]}', r"E212 .*user '01'"),
    "a user twice": ("train.json", '{"0": [1], "0": [3]}', r"E114 .*user 0 is listed twice"),
    "nested too deep": ("train.json", '{"0": ' + "[" * 100_000, r"E106 .*train\.json is not"),
    "a page": ("test.json", "<!DOCTYPE html><html>log in</html>", r"E106 .*test\.json"),
    "nothing": ("test.json", "", r"E113 .*test\.json is empty"),
    "not UTF-8": ("train.json", b'{"0": [1],\n "\xe9": [1]}', r"E111 .*train\.json:2: byte 0xe9"),
    "an item without id": (
        "train.json", '{"0": [5]}', r"E213 .*item_list\.txt: item index 5 is used but has no line",
    ),
    "a user without id": (
        "train.json", '{"3": [1]}', r"E213 .*user_list\.txt: user index 3 is used but has no line",
    ),
    "an id twice": (
        "item_list.txt", "A\t0\nB\t1\nC\t2\nA\t3\nE\t4\n", r"E261 .*raw id 'A' has several indices",
    ),
    "an index twice": (
        "item_list.txt", "A\t0\nB\t1\nC\t1\nD\t3\nE\t4\n", r"E213 .*item_list\.txt:3: index 1",
    ),
    "a gap in the list": ("item_list.txt", "A\t0\nB\t1\nC\t3\n", r"E213 .*each of 0\.\.2"),
    "no index": ("item_list.txt", "A\t0\nB\n", r"E112 .*item_list\.txt:2: 1 fields"),
    "a wrong index": ("item_list.txt", "A\t0\nB\tone\n", r"E212 .*item_list\.txt:2: index 'one'"),
    "too few texts": ("raw_text.txt", "a\nb\n", r"E251 .*raw_text\.txt: 2 lines"),
    "texts not UTF-8": ("raw_text.txt", b"a\nb\nc\nd\xff\ne\n", r"E111 .*raw_text\.txt:4: byte"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_refused(tmp_path, folder, what):
    name, content, message = BROKEN[what]
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "5-core" / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, format="lattice", data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "x").exists()


def test_features_of_another_copy_are_refused(tmp_path, folder):
    np.save(folder / "text_feat.npy", np.ones((6, 3)))
    with pytest.raises(DataError, match=r"E251 .*text_feat\.npy: 6 rows, dataset has 5 items"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_gaps_and_features_of_other_size_do_not_go_together(tmp_path, folder):
    for path in (folder / "5-core").glob("*.txt"):
        path.unlink()
    (folder / "5-core" / "train.json").write_text('{"0": [9], "1": [0]}')
    with pytest.raises(
        DataError, match=r"E213 item indices 0\.\.9 have 5 gaps, first 3; positional"
    ):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_a_missing_part_is_named(tmp_path, folder):
    (folder / "5-core" / "val.json").unlink()
    assert not LATTICEFolder.recognises(folder)
    with pytest.raises(DataError, match=r"E101 val\.json not found under .*5-core"):
        prepare("x", source=folder, format="lattice", data_dir=tmp_path / "data")
