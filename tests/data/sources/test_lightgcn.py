"""LightGCN's layout, and MCLN's features beside it."""

import numpy as np
import pytest

from mmbench.data.prepare import prepare
from mmbench.data.sources.lightgcn import LightGCNFolder
from mmbench.errors import DataError

TRAIN = "0 3 1 0\n1 2 0 4\n2 1\n3\n"
TEST = "0 2\n1 1\n2\n3 \n"
VAL = "0 4\n1 3\n2 2\n"


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "gowalla"
    raw.mkdir()
    (raw / "train.txt").write_text(TRAIN)
    (raw / "test.txt").write_text(TEST)
    return raw


def triples(interactions):
    return interactions.select("user", "item", "split").rows()


def test_lines_of_indices_are_read_and_users_may_have_no_items(tmp_path, folder):
    raw = LightGCNFolder().read(folder, tmp_path)
    assert triples(raw.interactions) == [
        *[("0", "3", 0), ("0", "1", 0), ("0", "0", 0), ("1", "2", 0), ("1", "0", 0)],
        *[("1", "4", 0), ("2", "1", 0), ("0", "2", 2), ("1", "1", 2)],
    ]
    assert raw.positional
    assert raw.facts == {"source_layout": "LightGCN: train.txt, test.txt"}


def test_without_validation_prepare_asks_for_a_split(tmp_path, folder):
    with pytest.raises(DataError, match=r"E222 imported split has no valid rows; choose another"):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    dataset = prepare(
        "x", source=folder, splits=["random-per-user"], data_dir=tmp_path / "data"
    ).dataset
    assert dataset.split_names == ["random-per-user"]
    assert len(dataset.user) == 9


def test_with_validation_the_labels_are_kept(tmp_path, folder):
    (folder / "val.txt").write_text(VAL)
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert result.notes == (f"recognised layout lightgcn in {folder}",)
    dataset = result.dataset
    assert dataset.split_names == ["imported"]
    label = dataset.split().label
    chosen = label == 1
    assert list(zip(dataset.user[chosen].tolist(), dataset.item[chosen].tolist(), strict=True)) == [
        (0, 4),
        (1, 3),
        (2, 2),
    ]
    # User 3 is named but has nothing.
    assert dataset.user_ids == ["0", "1", "2"]


def test_vectors_become_matrices_and_missing_ones_are_told(tmp_path, folder):
    (folder / "val.txt").write_text(VAL)
    (folder / "item2imgfeat.txt").write_text("1 0.5 -1e-3\n0 1 2\n4 3.25 4 \n2 7 8\n9 1 1\n")
    lines = [f"{k} {k}.5 1 {-k}" for k in range(5)]
    (folder / "itemtitle2vec.txt").write_text("\n".join(lines))
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    visual, textual = (result.dataset.features(name) for name in ("visual", "textual"))
    np.testing.assert_array_equal(
        visual.matrix, np.array([[1, 2], [0.5, -1e-3], [7, 8], [0, 0], [3.25, 4]], dtype="f4")
    )
    assert visual.mask.tolist() == [True, True, True, False, True]
    np.testing.assert_array_equal(textual.matrix, [[k + 0.5, 1, -k] for k in range(5)])
    assert "W213 item2imgfeat.txt: 1 items are in no other file and left out, e.g. 9" in (
        result.warnings
    )
    assert "W262 item2imgfeat.txt: 1 of 5 items have no line in it" in result.warnings


@pytest.mark.parametrize(
    "lists",
    [
        ("B{0} {0}", "org_id remap_id\n"),  # LightGCN
        ("B{0} {0} m.0{0}", "org_id remap_id freebase_id\n"),  # KGAT
        ("B{0}\t{0}", ""),  # LATTICE
    ],
)
def test_id_lists_of_every_form_name_the_items(tmp_path, folder, lists):
    line, header = lists
    (folder / "item_list.txt").write_text(header + "\n".join(line.format(k) for k in range(6)))
    raw = LightGCNFolder().read(folder, tmp_path)
    assert raw.item_ids == ("B0", "B1", "B2", "B3", "B4", "B5")
    (folder / "item_list.txt").write_text(header + "\n".join(line.format(k) for k in range(4)))
    with pytest.raises(DataError, match=r"E213 .*item index 4 is used but has no line here"):
        LightGCNFolder().read(folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", "0 1\n1 -2\n", r"E212 .*train\.txt:2: '1 -2'; a line is `user item"),
        ("train.txt", "0 1\n1 2.0\n", r"E212 .*train\.txt:2: '1 2\.0'"),
        ("train.txt", "0 1\n1 12345678901\n", r"E212 .*train\.txt:2"),
        ("train.txt", "0 1\nu1 i2\n", r"E212 .*train\.txt:2: 'u1 i2'"),
        ("train.txt", "", r"E113 .*train\.txt is empty"),
        ("train.txt", "<html><body>log in", r"E106 .*train\.txt"),
        ("test.txt", b"0 1\n\xff\n", r"E212 .*test\.txt:2"),
        ("test.txt", "0 3\n", r"E231 1 user-item pairs are in more than one split"),
        ("item2imgfeat.txt", "0 1 2\n1 1\n", r"E112 .*imgfeat\.txt:2: 1 values, expected 2"),
        ("item2imgfeat.txt", "0 1 2\n0 1 2\n", r"E261 .*imgfeat\.txt:2: item 0 has a line already"),
        ("item2imgfeat.txt", "0 1 2\n1 1 x\n", r"E118 .*imgfeat\.txt:2: could not convert"),
        ("item2imgfeat.txt", "0 1 2\n1 1 nan\n", r"E118 .*imgfeat\.txt:2: NaN"),
        ("item2imgfeat.txt", "0 1 2\n1 1 1e39\n", r"E118 .*imgfeat\.txt:2: .*too large"),
        ("item2imgfeat.txt", "0 1 2\n-1 1 2\n", r"E212 .*imgfeat\.txt:2: itemID '-1'"),
        ("item2imgfeat.txt", "0\n1\n", r"E112 .*imgfeat\.txt:1: no values"),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare(
            "x",
            source=folder,
            format="lightgcn",
            splits=["random-per-user"],
            data_dir=tmp_path / "data",
        )
    assert not (tmp_path / "data" / "x").exists()


def test_a_folder_of_users_alone_holds_no_interactions(tmp_path, folder):
    for name in ("train.txt", "test.txt"):
        (folder / name).write_text("0\n1\n")
    with pytest.raises(DataError, match=r"E241 the split files in .* hold no interactions"):
        LightGCNFolder().read(folder, tmp_path)


def test_a_long_first_line_is_recognised_by_its_beginning(tmp_path, folder):
    (folder / "train.txt").write_text("0 " + " ".join(map(str, range(5000))) + "\n")
    assert LightGCNFolder.recognises(folder)
    (folder / "train.txt").write_text("It was the best of times\n")
    assert not LightGCNFolder.recognises(folder)
