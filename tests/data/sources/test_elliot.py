"""Elliot's tables and Ducho's feature files."""

import json

import numpy as np
import polars as pl
import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.elliot import ElliotFolder
from mmbench.errors import DataError

# Ids with a dot, a leading zero, the word NA, and all digits.
ITEMS = ["B00.1", "097293751X", "NA", "9729375011"]
USERS = ["A1", "0A2", "nan"]
TRAIN = [("A1", "097293751X", 5.0), ("A1", "B00.1", 4.0), ("0A2", "NA", 1.0), ("nan", "NA", 3.0)]
VAL = [("A1", "9729375011", 5.0), ("0A2", "B00.1", 2.0)]
TEST = [("A1", "NA", 4.0), ("nan", "097293751X", 3.0)]
# By first appearance in train, val, test.
NUMBERED = ["097293751X", "B00.1", "NA", "9729375011"]
META = (
    "asin\tdescription\timUrl\n"
    'B00.1\t"A ""soft"" bear,\nwith\ttab"\thttp://ecx.images-amazon.com/images/I/1.jpg\n'
    "097293751X\tnan\thttp://ecx.images-amazon.com/images/I/2.jpg\n"
    "NA\t\t\n"
    "9729375011\tBanana &amp; nanny\t\n"
)


def write_rows(path, rows, stamp=""):
    path.write_text("".join(f"{user}\t{item}\t{rating}{stamp}\n" for user, item, rating in rows))


def write_vectors(folder, vectors, row=True):
    folder.mkdir(parents=True)
    for name, vector in vectors.items():
        array = np.array(vector, dtype=np.float32)
        np.save(folder / f"{name}.npy", array[None, :] if row else array)


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "baby"
    raw.mkdir()
    for name, rows in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        write_rows(raw / f"{name}.tsv", rows)
    (raw / "meta.tsv").write_text(META)
    return raw


def vectors(scale=1.0):
    return {item.partition(".")[0]: [k * scale, 1.0, 2.0] for k, item in enumerate(ITEMS, 1)}


def test_tables_without_header_keep_ids_and_labels(tmp_path, folder):
    raw = ElliotFolder().read(folder, tmp_path)
    assert raw.interactions.select("user", "item", "rating", "split").rows() == [
        *((*row, 0) for row in TRAIN),
        *((*row, 1) for row in VAL),
        *((*row, 2) for row in TEST),
    ]
    assert raw.interactions["timestamp"].null_count() == 8
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.split_names == ["imported"]
    assert sorted(dataset.item_ids) == sorted(ITEMS)
    assert sorted(dataset.user_ids) == sorted(USERS)
    facts = dataset.manifest["facts"]
    assert facts == {"source_layout": "Elliot: train.tsv, val.tsv, test.tsv"}


def test_texts_and_pictures_are_joined(tmp_path, folder, write_picture):
    write_picture(folder / "images" / "B00.1.jpg", seed=1)
    write_picture(folder / "images" / "NA.jpg", seed=2)
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    stored = (dataset.root / "items.jsonl").read_bytes().splitlines()
    lines = {line["id"]: line for line in map(json.loads, stored)}
    assert {item: line["text"] for item, line in lines.items()} == {
        "B00.1": 'A "soft" bear, with tab',
        "097293751X": "nan",
        "NA": "",
        "9729375011": "Banana & nanny",
    }
    assert lines["B00.1"]["image"] == "B00.1.jpg"
    assert lines["NA"]["image_status"] == "ok"
    assert lines["097293751X"]["image_status"] == "missing"
    assert lines["097293751X"]["image_address"].endswith("/I/2.jpg")
    assert lines["9729375011"]["image"] is None


def test_reviews_alone_are_unlabelled_and_may_have_times(tmp_path, folder):
    for name in ("train", "val", "test"):
        (folder / f"{name}.tsv").unlink()
    write_rows(folder / "reviews.tsv", TRAIN + VAL + TEST, stamp="\t1369699200")
    assert ElliotFolder.recognises(folder)
    raw = ElliotFolder().read(folder, tmp_path)
    assert raw.interactions["split"].null_count() == 8
    assert raw.interactions["timestamp"].unique().to_list() == [1369699200]


def test_the_split_is_read_where_reviews_are_there_too(tmp_path, folder):
    write_rows(folder / "reviews.tsv", TRAIN + VAL + TEST)
    names = [path.name for path in ElliotFolder().read(folder, tmp_path).files]
    assert names == ["train.tsv", "val.tsv", "test.tsv", "meta.tsv"]


def test_without_validation_prepare_asks_for_a_split(tmp_path, folder):
    (folder / "val.tsv").unlink()
    with pytest.raises(DataError, match=r"E222 imported split has no valid rows; choose another"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


@pytest.mark.parametrize("row", [True, False])
def test_feature_files_become_a_matrix(tmp_path, folder, row):
    inner = "sentence_transformers/sentence-transformers/all-mpnet-base-v2/1"
    write_vectors(folder / "visual_embeddings_32" / "torch/ResNet50/avgpool", vectors(), row)
    write_vectors(folder / "textual_embeddings_32" / inner, vectors(2.0), row)
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.feature_keys == [
        "textual__sentence-transformers-sentence-transformers-all-mpnet-base-v2-1",
        "visual__torch-resnet50-avgpool",
    ]
    wanted = [[ITEMS.index(item) + 1, 1, 2] for item in dataset.item_ids]
    np.testing.assert_array_equal(dataset.features("visual").matrix, wanted)
    np.testing.assert_array_equal(
        dataset.features("textual").matrix[:, 0], 2 * np.array(wanted)[:, 0]
    )
    told = dataset.manifest["facts"]["feature_files"]["visual__torch-resnet50-avgpool"]
    assert told["folder"] == "visual_embeddings_32/torch/ResNet50/avgpool"
    assert told["files"] == 4
    assert sorted(path.name for path in folder.iterdir()) == [
        *("meta.tsv", "test.tsv", "textual_embeddings_32", "train.tsv", "val.tsv"),
        "visual_embeddings_32",
    ]


def test_items_without_a_file_are_told_and_kept(tmp_path, folder):
    some = {name: vector for name, vector in vectors().items() if name != "NA"}
    some["B0-unknown"] = [9.0, 9.0, 9.0]
    write_vectors(folder / "visual_embeddings" / "torch/vgg/fc", some)
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert len(result.dataset.item_ids) == 4
    mask = result.dataset.features("visual").mask
    lacking = [item for item, there in zip(result.dataset.item_ids, mask, strict=True) if not there]
    assert lacking == ["NA"]
    (warning,) = [w for w in result.warnings if w.startswith("W262 fc of visual features")]
    assert "1 of 4 items have no file, e.g. 'NA'" in warning


def test_items_that_differ_behind_the_dot_have_no_file_of_their_own(tmp_path, folder):
    write_rows(folder / "val.tsv", [*VAL, ("A1", "B00.2", 3.0)])
    write_vectors(folder / "visual_embeddings" / "torch/vgg/fc", vectors())
    raw = ElliotFolder().read(folder, tmp_path)
    assert "B00.1" not in raw.features[0].item_ids
    assert any("2 of 5 items have no file, e.g. 'B00.1'" in warning for warning in raw.warnings)


def test_numbered_folders_follow_the_first_appearance(tmp_path, folder):
    numbered = {str(k): [k + 1.0, 5.0] for k in range(4)}
    write_vectors(folder / "visual_embeddings_indexed_32" / "torch/vgg/fc", numbered)
    raw = ElliotFolder().read(folder, tmp_path)
    matrix = np.load(raw.features[0].path)
    assert {item: row[0] for item, row in zip(raw.features[0].item_ids, matrix, strict=True)} == {
        item: k + 1.0 for k, item in enumerate(NUMBERED)
    }


def test_numbered_tables_and_folders_go_together(tmp_path, folder):
    number = {item: k for k, item in enumerate(NUMBERED)}
    user_number = {"A1": 0, "0A2": 1, "nan": 2}
    for name, rows in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        (folder / f"{name}.tsv").unlink()
        numbered = [(user_number[user], number[item], rating) for user, item, rating in rows]
        write_rows(folder / f"{name}_indexed.tsv", numbered)
    (folder / "meta.tsv").unlink()
    write_vectors(
        folder / "visual_embeddings_32_indexed" / "torch/vgg/fc",
        {str(k): [k + 1.0] for k in range(4)},
    )
    write_vectors(folder / "textual_embeddings_32" / "st/mpnet/1", vectors())
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert result.dataset.item_ids == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(result.dataset.features("visual").matrix[:, 0], [1, 2, 3, 4])
    assert result.dataset.feature_keys == ["visual__torch-vgg-fc"]
    assert any(
        warning.startswith("W251 textual_embeddings_32/st/mpnet/1 left out: its files are named by")
        for warning in result.warnings
    )


def test_the_same_vectors_by_id_and_by_number_are_read_once(tmp_path, folder):
    write_vectors(folder / "visual_embeddings_32" / "torch/vgg/fc", vectors())
    write_vectors(
        folder / "visual_embeddings_indexed_32" / "torch/vgg/fc", {str(k): [9.0] for k in range(4)}
    )
    (feature,) = ElliotFolder().read(folder, tmp_path).features
    assert np.load(feature.path).shape == (4, 3)


def test_batch_sizes_tell_folders_of_one_model_apart(tmp_path, folder):
    for variant in ("_32", "_128", ""):
        write_vectors(folder / f"visual_embeddings{variant}" / "torch/vgg/fc", vectors())
    write_vectors(folder / "audio_embeddings", vectors())
    found = {(f.modality, f.encoder) for f in ElliotFolder().read(folder, tmp_path).features}
    assert found == {
        ("visual", "torch-vgg-fc"),
        ("visual", "torch-vgg-fc-32"),
        ("visual", "torch-vgg-fc-128"),
        ("acoustic", "imported"),
    }


def spoil(folder, what):
    leaf = folder / "visual_embeddings" / "torch/vgg/fc"
    write_vectors(leaf, vectors())
    path = leaf / "NA.npy"
    if what == "objects":
        np.save(path, np.array([None, {}], dtype=object), allow_pickle=True)
        return r"E118 .*NA\.npy: it holds Python objects"
    if what == "length":
        np.save(path, np.ones((1, 4)))
        return r"E118 .*NA\.npy: 4 values, .*\.npy has 3; all files"
    if what == "map":
        np.save(path, np.ones((7, 7, 3)))
        return r"E118 .*NA\.npy: its shape is \[7, 7, 3\]; a file holds one vector"
    if what == "nan":
        np.save(path, np.array([1.0, np.nan, 1.0]))
        return r"E118 .*NA\.npy: NaN, infinity or too large"
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
        return r"E118 .*NA\.npy: "
    if what == "page":
        path.write_text("<html>")
        return r"E118 .*NA\.npy: it holds Python objects or is no \.npy file"
    if what == "zip":
        with path.open("wb") as file:
            np.savez(file, x=np.ones(3))
        return r"E118 .*NA\.npy: it holds no numbers"
    if what == "text":
        np.save(path, np.array(["x", "y", "z"]))
        return r"E118 .*NA\.npy: it holds no numbers"
    for stem in vectors():
        (leaf / f"{stem}.npy").rename(leaf / f"x{stem}.npy")
    return r"E251 .*fc: none of its files is named after an item, e\.g\. x"


@pytest.mark.parametrize(
    "what", ["objects", "length", "map", "nan", "truncated", "page", "zip", "text", "names"]
)
def test_broken_feature_files_are_refused(tmp_path, folder, what):
    message = spoil(folder, what)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "x").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", "A1\tB1\tfive\nA1\tB2\t3\n", r"E211 .*train\.tsv:1: rating 'five'"),
        ("train.tsv", "A1\tB1\t5\nA1\tB2\n", r"E112 .*train\.tsv:2: 2 fields, expected 3"),
        ("train.tsv", "A1,B1,5\n", r"E112 .*train\.tsv:1: 1 fields"),
        ("train.tsv", "A\tB\t5\t1\tx\n", r"E112 .*train\.tsv:1: 5 fields, expected 4"),
        ("val.tsv", b"A1\tB\xe9\t5\n", r"E111 .*val\.tsv:1: byte 0xe9"),
        ("test.tsv", "<!DOCTYPE html>\n<html>", r"E106 .*test\.tsv"),
        ("test.tsv", "", r"E113 .*test\.tsv is empty"),
        ("val.tsv", "A1\tB00.1\t5.0\n", r"E231 1 user-item pairs are in more than one split"),
        ("meta.tsv", "id\tdescription\nB1\tx\n", r"E113 .*meta\.tsv: column 'asin' missing"),
        ("meta.tsv", "asin\titem\nB1\tx\n", r"E113 .*meta\.tsv: column 'item' beside 'asin'"),
        ("meta.tsv", "asin\tdescription\nNA\tx\nNA\ty\n", r"E261 .*'NA' listed 2 times"),
    ],
)
def test_broken_tables_are_refused(tmp_path, folder, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, format="elliot", data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "x").exists()


def test_a_table_with_a_header_is_another_layout(folder):
    assert ElliotFolder.recognises(folder)
    (folder / "test.tsv").write_text("user\titem\trating\nA1\tB1\t5\n")
    assert not ElliotFolder.recognises(folder)
    (folder / "test.tsv").write_bytes(b"\xff\xfe\x00")
    assert not ElliotFolder.recognises(folder)


def test_two_columns_are_enough_where_indices_are_announced(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}_indexed.tsv").write_text("0\t1\n")
    assert ElliotFolder.recognises(tmp_path)
    assert ElliotFolder().read(tmp_path, tmp_path).interactions["rating"].dtype == pl.Float64
