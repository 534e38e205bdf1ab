import json

import numpy as np
import pytest

from mmbench.data.cold import read_cold
from mmbench.data.prepare import prepare
from mmbench.errors import DataError

SPLITS = ["random-per-user", "cold-items", "cold-sequences:below=9", "cold-sequences:below=8"]


@pytest.fixture
def dataset(write_table, full_rows, tmp_path):
    raw = write_table(full_rows, "user_id,item_id,rating,timestamp")
    return prepare("x", source=raw, data_dir=tmp_path / "data", splits=SPLITS).dataset


def place(dataset, name):
    folder = dataset.root / "splits" / name
    return folder, json.loads((folder / "split.json").read_text("utf-8"))


def test_what_a_cold_split_stores_is_read_again(dataset):
    # Seven items: one is cold, and of one the half for test is none.
    cold = read_cold(*place(dataset, "cold-items"))
    assert list(cold) == ["cold_items"]
    (item,) = cold["cold_items"].tolist()
    label = dataset.split("cold-items").label
    assert (label[dataset.item == item] == 1).all()
    assert (label[dataset.item != item] == 0).all()

    # Eight users hold out their last two items of seven: i5 and i6 never train, others 8 times.
    cold = read_cold(*place(dataset, "cold-sequences.below-8"))
    assert cold["cold_items"].tolist() == [5, 6]
    assert cold["cold_cases"].tolist() == [[u, p] for u in range(8) for p in (5, 6)]
    cold = read_cold(*place(dataset, "cold-sequences.below-9"))
    assert cold["cold_items"].tolist() == list(range(7))


def test_other_splits_store_labels_alone(dataset):
    folder, facts = place(dataset, "random-per-user")
    assert read_cold(folder, facts) == {}
    assert sorted(path.name for path in folder.iterdir()) == ["label.npy", "split.json"]
    assert facts["candidates"] == ["all"]


def test_splits_of_equal_labels_and_other_cold_items_are_told_apart(dataset):
    first, second = (dataset.split(f"cold-sequences.below-{n}") for n in (8, 9))
    assert (first.label == second.label).all()
    assert first.fingerprint != second.fingerprint


def test_the_contract_of_evaluation_is_in_the_manifest_too(dataset):
    facts = dataset.manifest["splits"]["cold-sequences.below-8"]
    assert facts["candidates"] == ["all", "cold"]
    assert facts["cold_items"] == 2
    assert facts["cold_cases"] == {"train": 0, "valid": 8, "test": 8}
    assert facts == place(dataset, "cold-sequences.below-8")[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "E302 .*cold_cases.npy cannot be read"),
        (lambda path: path.write_bytes(b"nothing"), "E302 .*cold_cases.npy cannot be read"),
        (
            lambda path: np.save(path, np.zeros((3, 2), dtype=np.int64)),
            r"E302 .*cold_cases.npy holds int64 \[3, 2\]; prepare the dataset again",
        ),
        (
            lambda path: np.save(path, np.zeros(6, dtype=np.int32)),
            r"E302 .*cold_cases.npy holds int32 \[6\]",
        ),
        (
            lambda path: np.save(path, np.zeros((3, 2), dtype=np.int32)),
            "E302 .*cold_cases.npy does not match its recorded hash",
        ),
        (
            lambda path: np.save(path, np.array([[None, 1]], dtype=object)),
            "E302 .*cold_cases.npy cannot be read",
        ),
    ],
)
def test_damaged_arrays_are_refused(dataset, damage, message):
    folder, facts = place(dataset, "cold-sequences.below-8")
    damage(folder / "cold_cases.npy")
    with pytest.raises(DataError, match=message):
        read_cold(folder, facts)
