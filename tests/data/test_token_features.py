"""Token features: what is stored is what is read, and misfits are refused."""

import json

import numpy as np
import pytest

from mmbench.data import token_features as module
from mmbench.data.features import load_features, write_features
from mmbench.data.token_features import JoinedRows
from mmbench.errors import DataError

MASK = np.array([True, False, True])
TOKEN_MASK = np.array([[True, True], [True, False], [True, False]])


def tokens():
    return np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2)


def write(root, values=None, token_mask=TOKEN_MASK, mask=MASK):
    given = (tokens() if values is None else values, token_mask)
    pooled = np.ones((3, 4), dtype=np.float32)
    return write_features(root, "fp", "textual", "tiny", pooled, mask, {}, tokens=given)


def load(root):
    return load_features(root, "textual__tiny", "fp", 3)


def test_written_and_loaded_alike(tmp_path):
    write(tmp_path)
    found = load(tmp_path)
    assert found.tokens.dtype == np.float16
    np.testing.assert_array_equal(
        found.tokens, [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[9, 10], [0, 0]]]
    )
    np.testing.assert_array_equal(found.token_mask, [[True, True], [False, False], [True, False]])
    assert isinstance(found.tokens, np.memmap)
    assert found.manifest["tokens"]["shape"] == [3, 2, 2]


def test_a_set_without_tokens_says_none(tmp_path):
    found = write_features(tmp_path, "fp", "visual", "x", np.ones((3, 1)), np.ones(3, bool), {})
    assert found.tokens is None
    assert found.token_mask is None
    assert "tokens" not in found.manifest


def test_blocks_do_not_change_the_bytes(tmp_path, monkeypatch):
    whole = write(tmp_path / "a").manifest
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert write(tmp_path / "b").manifest == whole
    load(tmp_path / "b")


@pytest.mark.parametrize(
    ("values", "token_mask", "message"),
    [
        (np.full((3, 2, 2), np.nan), TOKEN_MASK, "E118 .*tokens of row 0 hold NaN"),
        (np.full((3, 2, 2), 1e5), TOKEN_MASK, "E118 .*beyond 65,504"),
        (np.ones((3, 2)), TOKEN_MASK, r"E118 .*tokens \[3, 2\] and their mask"),
        (np.ones((3, 3, 2)), TOKEN_MASK, "E118 .*do not fit"),
        (np.ones((3, 2, 2)), TOKEN_MASK.astype(int), "E118 .*tokens of 3 items"),
        (np.ones((3, 2, 2)), np.zeros((3, 2), bool), "E118 .*row 0 has a vector and no tokens"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, values, token_mask, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, values, token_mask)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_not_finite_behind_the_mask_does_not_matter(tmp_path):
    values = tokens()
    values[1], values[2, 1] = np.inf, np.nan
    np.testing.assert_array_equal(write(tmp_path, values).tokens, write(tmp_path).tokens)


def test_damage_is_noticed(tmp_path, monkeypatch):
    write(tmp_path)
    folder = tmp_path / "features" / "textual__tiny"
    path = folder / "tokens.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"E302 .*tokens\.npy does not match its recorded hash"):
        load(tmp_path)
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"E302 .*tokens\.npy is damaged"):
        load(tmp_path)
    np.save(path, np.zeros((3, 2, 3), dtype=np.float16))
    with pytest.raises(DataError, match=r"E302 .*holds float16 \[3, 2, 3\], expected"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"E302 .*tokens\.npy is damaged"):
        load(tmp_path)
    path.write_bytes(whole)
    np.save(folder / "token_mask.npy", ~TOKEN_MASK)
    with pytest.raises(DataError, match=r"E302 .*token_mask\.npy does not match"):
        load(tmp_path)


def test_tokens_of_other_items_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "features" / "textual__tiny" / "feature.json"
    manifest = json.loads(path.read_text())
    manifest["tokens"]["shape"] = [4, 2, 2]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"E251 .*tokens \[4, 2, 2\] of 3 items"):
        load(tmp_path)


def test_joined_rows_are_the_concatenation():
    first = np.arange(8.0).reshape(2, 2, 2)
    last = np.arange(9.0).reshape(1, 3, 3)[:, :, :2]
    joined = JoinedRows([1, first, 2, last])
    whole = np.zeros((6, 3, 2))
    whole[1:3, :2], whole[5] = first, last[0]
    assert joined.shape == whole.shape
    assert len(joined) == 6
    for start in range(6):
        np.testing.assert_array_equal(joined[start], whole[start])
        for stop in range(start, 8):
            np.testing.assert_array_equal(joined[start:stop], whole[start:stop])
    with pytest.raises(ValueError, match="no part has any rows"):
        JoinedRows([3, 2])
