"""Every folder people have is recognised by exactly one source."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

from mmbench.data.finding import sources

LISTS = ({"0": [0, 2], "1": [1]}, {"0": [1], "1": []}, {"0": [], "1": [0]})


def json_parts(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lists in zip(("train", "val", "test"), LISTS, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(lists))


def positional_features(folder):
    for name in ("image", "text"):
        np.save(folder / f"{name}_feat.npy", np.ones((3, 2)))


def lattice(folder):
    json_parts(folder / "5-core")
    (folder / "5-core" / "item_list.txt").write_text("B0\t0\nB1\t1\nB2\t2\n")
    (folder / "5-core" / "user-item-dict.json").write_text(json.dumps(LISTS[0]))
    positional_features(folder)


def lattice_with_both_splits(folder):
    lattice(folder)
    json_parts(folder / "0-core")


def lattice_in_one_folder(folder):
    json_parts(folder)
    (folder / "item_list.txt").write_text("B0\t0\nB1\t1\nB2\t2\n")
    positional_features(folder)


def lattice_0core(folder):
    json_parts(folder / "0-core")
    positional_features(folder)


def mmssl(folder):
    json_parts(folder)
    (folder / "train_mat").write_bytes(pickle.dumps(sp.csr_matrix(np.eye(3)), 4))
    positional_features(folder)


def mmssl_with_lists(folder):
    mmssl(folder)
    (folder / "item_list.txt").write_text("B0\t0\nB1\t1\nB2\t2\n")


def mmssl_bare(folder):
    json_parts(folder)


def diffmm(folder):
    for name in ("trn", "val", "tst"):
        (folder / f"{name}Mat.pkl").write_bytes(pickle.dumps(sp.coo_matrix(np.eye(3)), 3))
    positional_features(folder)
    with zipfile.ZipFile(folder / "audio_feat.npy.zip", "w") as archive:
        archive.write(folder / "image_feat.npy", "audio_feat.npy")


def elliot(folder):
    for name in ("train", "val", "test"):
        (folder / f"{name}.tsv").write_text("A1\t097293751X\t5.0\n")
    (folder / "reviews.tsv").write_text("A1\t097293751X\t5.0\n")
    (folder / "meta.tsv").write_text("asin\tdescription\timUrl\n097293751X\tx\t\n")
    (folder / "images").mkdir()
    leaf = folder / "visual_embeddings_32" / "torch" / "ResNet50" / "avgpool"
    leaf.mkdir(parents=True)
    np.save(leaf / "097293751X.npy", np.ones((1, 4)))


def elliot_reviews(folder):
    (folder / "reviews.tsv").write_text("A1\t097293751X\t5.0\t1369699200\n")


def elliot_indexed(folder):
    for name in ("train", "val", "test"):
        (folder / f"{name}_indexed.tsv").write_text("0\t1\t5.0\n")


def lightgcn(folder):
    (folder / "train.txt").write_text("0 3 1\n1 2\n")
    (folder / "test.txt").write_text("0 2\n1\n")
    (folder / "item_list.txt").write_text("org_id remap_id\nB0 0\nB1 1\nB2 2\nB3 3\n")
    (folder / "user_list.txt").write_text("org_id remap_id\nA0 0\nA1 1\n")


def mcln(folder):
    lightgcn(folder)
    (folder / "val.txt").write_text("0 0\n")
    (folder / "item2imgfeat.txt").write_text("0 1.5 2\n1 2 3\n")
    (folder / "itemtitle2vec.txt").write_text("0 1.5 2\n1 2 3\n")


def cornac(folder):
    (folder / "rating.txt").write_text("1\t0007\t5.0\n")
    (folder / "text.txt").write_text("0007::a ring\n")
    (folder / "item_ids.txt").write_text("0007\n")
    (folder / "context.txt").write_text("0007\t12\n")
    np.save(folder / "image_features.npy", np.ones((1, 4)))


def cornac_packed(folder):
    for name in ("rating", "text", "image", "item_ids"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}.txt", "x")


def mmrec(folder):
    (folder / "baby.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n")
    positional_features(folder)


def recbole(folder):
    name = folder.name
    (folder / f"{name}.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t4\n"
    )
    (folder / f"{name}.item").write_text("item_id:token\ttitle:token\n2\tx\n")


def plain(folder):
    (folder / "interactions.tsv").write_text("user_id\titem_id\n1\t2\n")
    (folder / "items.tsv").write_text("item_id\ttitle\n2\tx\n")


def microlens(folder):
    (folder / "MicroLens-100k_pairs.csv").write_text("user,item,timestamp\n1,2,1583378629552\n")
    (folder / "MicroLens-100k_pairs.tsv").write_text("1\t2 3 4\n")
    (folder / "MicroLens-100k_title_en.csv").write_text("2,a title\n")
    (folder / "MicroLens-100k_covers").mkdir()


def movielens(folder):
    (folder / "u.data").write_text("196\t242\t3\t881250949\n")
    (folder / "u.item").write_text("242|Kolya (1996)|24-Jan-1997||" + "|0" * 20 + "\n")


def amazon(folder):
    line = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1369699200}
    (folder / "reviews_Baby_5.json").write_text(json.dumps(line) + "\n")
    (folder / "meta_Baby.json").write_text("{'asin': 'B1', 'title': 'x'}\n")


OURS = {
    lattice: "lattice",
    lattice_with_both_splits: "lattice",
    lattice_in_one_folder: "lattice",
    lattice_0core: "lattice-0core",
    mmssl: "hkuds",
    mmssl_with_lists: "hkuds",
    mmssl_bare: "hkuds",
    diffmm: "hkuds",
    elliot: "elliot",
    elliot_reviews: "elliot",
    elliot_indexed: "elliot",
    lightgcn: "lightgcn",
    mcln: "lightgcn",
    cornac: "cornac-amazon-clothing",
    cornac_packed: "cornac-amazon-clothing",
}
OTHERS = [mmrec, recbole, plain, microlens, movielens, amazon]
MINE = set(OURS.values())


def recognising(folder):
    readers = {name: source for name, source in sources().items() if source.needs_source}
    assert readers.keys() >= MINE
    return [name for name, source in readers.items() if source.recognises(folder)]


@pytest.mark.parametrize("build", OURS, ids=lambda build: build.__name__)
def test_exactly_one_source_recognises_a_folder(tmp_path, build):
    folder = tmp_path / "folder"
    folder.mkdir()
    build(folder)
    assert recognising(folder) == [OURS[build]]


@pytest.mark.parametrize("build", OTHERS, ids=lambda build: build.__name__)
def test_folders_of_other_layouts_are_left_to_them(tmp_path, build):
    folder = tmp_path / "folder"
    folder.mkdir()
    build(folder)
    found = recognising(folder)
    assert len(found) == 1
    assert not MINE & set(found)


NAMES = [
    *("train.json", "val.json", "test.json", "trnMat.pkl", "valMat.pkl", "tstMat.pkl"),
    *("train.tsv", "val.tsv", "test.tsv", "reviews.tsv", "train.txt", "test.txt", "rating.txt"),
    *("text.txt", "5-core", "0-core", "train_mat", "x.inter", "image_feat.npy"),
]


@pytest.mark.parametrize(
    "content", [None, b"", b"\x00\xff\xfe" * 50, b"<!DOCTYPE html><html>", b"{", b"\n\n", "folder"]
)
def test_odd_folders_are_recognised_by_none_and_raise_nothing(tmp_path, content):
    for name in NAMES:
        if content == "folder":
            (tmp_path / name).mkdir()
        elif content is not None:
            (tmp_path / name).write_bytes(content)
    mine = {name: source for name, source in sources().items() if name in MINE}
    assert len(mine) == len(MINE)
    assert [name for name, source in mine.items() if source.recognises(tmp_path)] == []


def test_a_named_pipe_does_not_hang_the_looking(tmp_path):
    for name in NAMES:
        if not name.endswith("-core"):
            os.mkfifo(tmp_path / name)
    mine = {name: source for name, source in sources().items() if name in MINE}
    assert [name for name, source in mine.items() if source.recognises(tmp_path)] == []
