"""Run folders that are damaged: one message each, which says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmbench.errors import DataError
from mmbench.metrics.lists import RankedLists
from mmbench.runs import SCHEMA, Run, open_run, read_array, write_array, write_lists


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 4), dtype=np.int32),
        np.array([[True, False], [False, False]]),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(3, dtype=">i8"),
    ],
    ids=["matrix", "empty", "bool", "transposed", "big-endian"],
)
def test_an_array_is_read_as_it_was_written(tmp_path: Path, array: np.ndarray) -> None:
    write_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


def test_objects_are_never_unpickled_and_nothing_says_how(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    for name in ("objects.npy", "text.npy"):
        with pytest.raises(DataError, match=r"never unpickled.*delete its folder") as caught:
            read_array(tmp_path / name)
        assert "allow_pickle" not in str(caught.value)


def test_a_seed_that_is_no_number_is_damage(tmp_path: Path) -> None:
    manifest = {"schema": SCHEMA, "status": "complete", "label": "a", "seed": "x"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"the seed is 'x'.*train it again"):
        open_run(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two users, lists of two of four items."""
    lists = RankedLists(
        users=np.array([0, 1]),
        items=np.array([[3, 1], [2, -1]]),
        hits=np.array([[True, False], [False, False]]),
        relevant_offsets=np.array([0, 2, 3]),
        relevant_items=np.array([0, 3, 1]),
        popularity=np.ones(4, dtype=np.int64),
        activity=np.ones(2, dtype=np.int64),
    )
    write_lists(tmp_path / "lists" / "test", lists)
    write_array(tmp_path / "popularity.npy", lists.popularity)
    return Run(tmp_path, {})


def test_lists_that_belong_together_are_read(run: Run) -> None:
    assert run.lists("test").items.tolist() == [[3, 1], [2, -1]]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("relevant_offsets", np.array([0, 2]), "does not fit 2 users"),
        ("relevant_offsets", np.array([0, 3, 2]), "does not cut the relevant items"),
        ("relevant_offsets", np.array([0, 2, 9]), "does not cut the relevant items"),
        ("hits", np.array([[True], [False]]), "does not fit the items"),
        ("hits", np.array([[1, 0], [0, 0]]), "are not marks"),
        ("items", np.array([[3.0, 1.0], [2.0, 1.0]]), "are not whole numbers"),
        ("items", np.array([3, 1]), "another number of dimensions"),
        ("items", np.array([[3, 1], [2, 4]]), "other items than the 4"),
        ("relevant_items", np.array([0, -1, 1]), "other items than the 4"),
        ("users", np.array([0, 1, 2]), "does not fit 3 users"),
        ("activity", np.array([[1], [1]]), "another number of dimensions"),
    ],
)
def test_lists_that_do_not_belong_together_are_damage(
    run: Run, name: str, array: np.ndarray, message: str
) -> None:
    write_array(run.path / "lists" / "test" / f"{name}.npy", array)
    with pytest.raises(DataError, match=f"{message}.*train it again"):
        run.lists("test")
