"""Feature sets: what is refused, what is kept, and that nothing half-written stays."""

import json
import pickle
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmbench.data import features as module
from mmbench.data.features import (
    feature_key,
    import_matrix,
    load_features,
    rows_with_content,
    stored_keys,
    write_features,
)
from mmbench.errors import ConfigError, DataError, UnknownNameError

MASK = np.array([True, False, True, True])


def matrix(dtype="f4"):
    return np.array([[1, 2], [9, 9], [3, 4], [0, 5]], dtype=dtype)


def write(root, values=None, mask=MASK, **changes):
    named = {"modality": "visual", "encoder": "colour-edge", "settings": {"size": 64}, **changes}
    return write_features(
        root, "fp", matrix=matrix() if values is None else values, mask=mask, **named
    )


def left_behind(root):
    return sorted(path.name for path in root.rglob("*"))


def test_written_and_loaded_alike(tmp_path):
    stored = write(tmp_path)
    again = load_features(tmp_path, "visual__colour-edge", "fp", 4)
    np.testing.assert_array_equal(again.matrix, [[1, 2], [0, 0], [3, 4], [0, 5]])
    np.testing.assert_array_equal(again.mask, MASK)
    assert again.manifest == stored.manifest
    assert again.manifest["settings"] == {"size": 64}
    assert (again.modality, again.encoder) == ("visual", "colour-edge")
    assert again.manifest["present"] == 3
    assert stored_keys(tmp_path) == ["visual__colour-edge"]
    assert left_behind(tmp_path / "features" / again.key) == [
        "feature.json",
        "mask.npy",
        "matrix.npy",
    ]
    assert left_behind(tmp_path)[0] != ".visual__colour-edge"
    assert len(list((tmp_path / "features").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "kept"), [("f2", "float16"), ("f4", "float32"), ("f8", "float32"), ("i8", "float32")]
)
def test_precision_is_kept_or_narrowed_to_float32(tmp_path, given, kept):
    stored = write(tmp_path, matrix(given))
    assert stored.matrix.dtype == kept
    assert stored.manifest["dtype"] == kept


def test_blocks_do_not_change_the_result(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(57, 3)).astype(np.float32)
    mask = np.ones(57, dtype=bool)
    whole = write(tmp_path / "a", values, mask)
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * 4 * 10)  # ten rows, and seven in the last block
    parts = write(tmp_path / "b", values, mask)
    assert whole.manifest == parts.manifest
    np.testing.assert_array_equal(parts.matrix, values)


def test_repeated_rows_are_counted(tmp_path):
    values = np.array([[1, 2], [1, 2], [1, 2], [0, 5]], dtype=np.float32)
    assert write(tmp_path, values, np.ones(4, bool)).manifest["repeated_rows"] == 2
    # The masked row repeats nothing: one of the three is missing.
    assert write(tmp_path, values).manifest["repeated_rows"] == 1


def test_replacing_leaves_the_new_one_only(tmp_path):
    write(tmp_path)
    stored = write(tmp_path, matrix() + 1)
    assert stored.matrix[0, 0] == 2
    assert [path.name for path in (tmp_path / "features").iterdir()] == [stored.key]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[1, 2], [0, 0], [np.nan, 4], [0, 5]]), "E118 .*NaN or infinity in row 2"),
        (np.array([[1, 2], [0, 0], [3, 4], [0, -np.inf]]), "E118 .*NaN or infinity in row 3"),
        (np.array([[1, 2], [0, 0], [3, 4], [0, 1e300]]), "E118 .*too large for float32 in row 3"),
        (np.array([[1, 2], [0, 0], [0, 0], [0, 5]]), "E118 .*row 2 is all zeros but counted"),
        (np.array([[1, 2], [0, 0], [1e-300, 0], [0, 5]]), "E118 .*row 2 is all zeros but counted"),
        (np.ones((3, 2)), "E251 .*3 rows, dataset has 4 items"),
        (np.ones(4), re.escape("E118 features visual__colour-edge: its shape is [4]")),
        (np.ones((4, 0)), "E118 .*its shape is"),
        (np.ones((4, 2, 2)), "E118 .*its shape is"),
        (np.full((4, 2), "a"), "E118 .*not numbers"),
        (np.full((4, 2), None), "E118 .*object, not numbers"),
        (np.ones((4, 2), dtype=bool), "E118 .*bool, not numbers"),
        (np.ones((4, 2), dtype=complex), "E118 .*not numbers"),
    ],
)
def test_bad_matrix_is_refused_and_leaves_nothing(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, values)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or "partial" in path.name]


def test_a_failed_write_keeps_the_older_set(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match="NaN"):
        write(tmp_path, np.full((4, 2), np.nan))
    assert load_features(tmp_path, "visual__colour-edge", "fp", 4).matrix[0, 0] == 1


def test_nan_where_the_modality_is_missing_is_no_harm(tmp_path):
    values = matrix()
    values[1] = np.nan
    np.testing.assert_array_equal(write(tmp_path, values).matrix[1], [0, 0])


def test_mask_is_checked(tmp_path):
    with pytest.raises(DataError, match="the mask is int64"):
        write(tmp_path, mask=MASK.astype(np.int64))
    with pytest.raises(DataError, match="no item has this modality"):
        write(tmp_path, mask=np.zeros(4, bool))


def test_names_are_checked(tmp_path):
    with pytest.raises(UnknownNameError, match=re.escape('Did you mean "visual"?')):
        feature_key("visul", "x")
    for name in ("", "../evil", "a/b", "a__b", ".hidden"):
        with pytest.raises(ConfigError, match="cannot name a feature set"):
            feature_key("visual", name)


def test_unwritable_folder_is_one_message(tmp_path):
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"E108 .*cannot be written"):
        write(tmp_path)


def test_a_full_disk_is_one_message_and_keeps_the_older_set(tmp_path):
    write(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DataError, match=r"E108 .*cannot be written .*free some disk space"):
            write(tmp_path, np.ones((4, 1000), dtype=np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_features(tmp_path, "visual__colour-edge", "fp", 4).matrix.shape == (4, 2)
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_other_dataset_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match=r"E251 .*belongs to another dataset"):
        load_features(tmp_path, "visual__colour-edge", "another", 4)
    with pytest.raises(DataError, match=r"E251 .*4 rows, dataset has 5 items"):
        load_features(tmp_path, "visual__colour-edge", "fp", 5)


def test_missing_set_names_what_is_stored_and_the_command(tmp_path):
    write(tmp_path)
    with pytest.raises(
        DataError, match=r"stored are: visual__colour-edge. Make it with: mmbench extr"
    ):
        load_features(tmp_path, "textual__tfidf-svd", "fp", 4)


def test_damage_is_found(tmp_path):
    folder = tmp_path / "features" / write(tmp_path).key

    def damaged(change, message):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy / "features" / folder.name)
        change(copy / "features" / folder.name)
        with pytest.raises(DataError, match=message):
            load_features(copy, folder.name, "fp", 4)

    def flip(path: Path):
        data = bytearray((path / "matrix.npy").read_bytes())
        data[-1] ^= 1
        (path / "matrix.npy").write_bytes(data)

    def older(path: Path):
        manifest = json.loads((path / "feature.json").read_text())
        (path / "feature.json").write_text(json.dumps({**manifest, "schema": 0}))

    damaged(flip, "do not match their recorded hashes")
    damaged(older, "another version")
    damaged(lambda path: (path / "feature.json").write_text("{"), "cannot be read")
    damaged(lambda path: (path / "mask.npy").unlink(), "is damaged")
    damaged(lambda path: np.save(path / "mask.npy", ~MASK), "do not match")
    damaged(lambda path: np.save(path / "mask.npy", np.array(True)), "wrong rank")
    damaged(lambda path: (path / "matrix.npy").write_bytes(b"\x93NUMPY"), "is damaged")


def test_rows_with_content():
    np.testing.assert_array_equal(
        rows_with_content(np.array([[0, 1], [0, 0], [-1, 0]], np.float16)), [True, False, True]
    )
    assert rows_with_content(np.zeros((0, 3))).shape == (0,)


def test_import_keeps_half_and_narrows_double(tmp_path):
    for dtype, kept in (("f2", "f2"), ("<f4", "f4"), (">f4", "f4"), ("f8", "f4"), ("i2", "f4")):
        np.save(tmp_path / "m.npy", matrix(dtype))
        read = import_matrix(tmp_path / "m.npy")
        assert read.dtype == np.dtype(kept)
        np.testing.assert_array_equal(read, matrix())
    np.save(tmp_path / "m.npy", np.asfortranarray(matrix()))
    np.testing.assert_array_equal(
        write(tmp_path, import_matrix(tmp_path / "m.npy")).matrix[2], [3, 4]
    )


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_never_opened(tmp_path):
    sprung = tmp_path / "sprung"
    np.save(tmp_path / "objects.npy", np.array([[Trap(sprung)]], dtype=object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("objects.npy", "raw.npy"):
        with pytest.raises(DataError, match=f"E118 .*{name}"):
            import_matrix(tmp_path / name)
        assert not sprung.exists()
    np.load(tmp_path / "objects.npy", allow_pickle=True)
    assert sprung.exists()  # the trap is armed, so not springing it says something


def test_import_names_the_file_and_the_fault(tmp_path):
    path = tmp_path / "m.npy"
    with pytest.raises(DataError, match=r"E101 .*m.npy not found"):
        import_matrix(path)
    cases = [
        (b"", "it is empty"),
        (b"PK\x03\x04 a zip", "does not start like a .npy file"),
        (b"<html>not found</html>", "does not start like a .npy file"),
    ]
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"E118 .*m.npy: .*{message}"):
            import_matrix(path)
    for values, message in [
        (np.array([[1.0, np.nan]]), "NaN or infinity in row 0"),
        (np.array([[1.0, 2.0], [1e39, 0.0]]), "too large for float32 in row 1"),
        (np.ones(3), r"its shape is \[3\]"),
        (np.array(1.0), r"its shape is \[\]"),
        (np.array([["a"]]), "not numbers"),
        (np.zeros((2, 2), dtype=[("a", "f4")]), "not numbers"),
    ]:
        np.save(path, values)
        with pytest.raises(DataError, match=message):
            import_matrix(path)
    np.save(path, np.ones((100, 10)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"E118 .*m.npy"):
        import_matrix(path)
    with pytest.raises(DataError, match="E118"):
        import_matrix(tmp_path)
