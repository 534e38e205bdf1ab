"""Run folders that are damaged: one message each, which says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmbench.errors import DataError
from mmbench.runs import SCHEMA, open_run, read_array, write_array


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
