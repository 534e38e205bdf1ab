"""Extraction: items without content are masked, nothing is done twice, misfits are refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset
from mmbench.engine.extract import (
    extract,
    extract_builtin,
    extract_builtin_once,
    extract_once,
    import_features,
)
from mmbench.errors import ConfigError, DataError, UnknownNameError

N_ITEMS = 12
LINE = "sail harbour tide anchor oven dough flour whisk guitar piano drum chorus"
WORDS = LINE.split()


def write_source(folder: Path, *, content: bool = True) -> Path:
    """Plain tables: every user took all but one item; item 3 has no text, item 5 no picture."""
    folder.mkdir(parents=True)
    rows = [f"u{u},i{i:02d}" for u in range(8) for i in range(N_ITEMS) if i != u]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    if content:
        texts = ["" if i == 3 else f"{WORDS[i]} and {WORDS[i - 1]}" for i in range(N_ITEMS)]
        lines = [f"i{i:02d},{text}" for i, text in enumerate(texts)]
        (folder / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n")
        (folder / "images").mkdir()
        for i in range(N_ITEMS):
            if i != 5:
                Image.new("RGB", (20, 20), (20 * i, 250 - 20 * i, 60)).save(
                    folder / "images" / f"i{i:02d}.png"
                )
    return folder


@pytest.fixture
def data(tmp_path):
    """A data folder that holds the dataset "mine"."""
    prepare("mine", source=write_source(tmp_path / "raw"), data_dir=tmp_path / "data")
    return tmp_path / "data"


def test_texts_and_pictures_are_encoded_in_item_order(data):
    sets = {found.modality: found for found in extract_builtin("mine", data)}
    assert set(sets) == {"visual", "textual"}
    assert load_dataset("mine", data).item_ids[5] == "i05"
    np.testing.assert_array_equal(np.flatnonzero(~sets["visual"].mask), [5])
    np.testing.assert_array_equal(np.flatnonzero(~sets["textual"].mask), [3])
    for found in sets.values():
        assert found.matrix.shape[0] == N_ITEMS
        assert np.isfinite(found.matrix).all()
        np.testing.assert_array_equal(found.matrix.any(axis=1), found.mask)
    # Neighbours share a word ("whisk and flour", "flour and dough"), others only "and".
    alike = np.asarray(sets["textual"].matrix @ sets["textual"].matrix.T)
    assert alike[7, 6] > alike[7, 2] + 0.1


def test_the_dataset_gives_them_to_whoever_asks(data):
    made = extract("mine", "colour_edge", data)
    given = load_dataset("mine", data).features("visual")
    assert given.manifest["sha256"] == made.manifest["sha256"]
    assert given.encoder == "colour-edge"


def test_a_second_extraction_does_nothing(data):
    assert all(found.is_new for found in extract_builtin_once("mine", data))
    files = {p: p.stat().st_mtime_ns for p in (data / "mine" / "features").rglob("*.*")}
    assert not any(found.is_new for found in extract_builtin_once("mine", data))
    assert files == {p: p.stat().st_mtime_ns for p in (data / "mine" / "features").rglob("*.*")}
    again = extract_once("mine", "tfidf-svd", data, force=True)
    assert again.is_new


def test_forced_extraction_gives_the_same_bits(data):
    first = extract("mine", "tfidf-svd", data).manifest["sha256"]
    assert extract("mine", "tfidf-svd", data, force=True).manifest["sha256"] == first


def test_new_texts_are_encoded_again(data, tmp_path):
    first = extract("mine", "tfidf-svd", data)
    table = tmp_path / "raw" / "items.csv"
    table.write_text(table.read_text().replace("i00,", "i00,sail sail sail drum "))
    prepare("mine", source=tmp_path / "raw", data_dir=data, force=True)
    again = extract_once("mine", "tfidf-svd", data)
    assert again.is_new
    assert again.features.manifest["sha256"] != first.manifest["sha256"]


def test_text_of_no_word_is_masked_not_nan(tmp_path):
    source = write_source(tmp_path / "raw")
    table = source / "items.csv"
    table.write_text(table.read_text().replace("i07,whisk and flour", "i07,!!! ??"))
    prepare("mine", source=source, data_dir=tmp_path / "data")
    found = extract("mine", "tfidf-svd", tmp_path / "data")
    np.testing.assert_array_equal(np.flatnonzero(~found.mask), [3, 7])
    assert np.isfinite(found.matrix).all()


def test_picture_changed_after_preparation_is_refused(data, tmp_path):
    Image.new("RGB", (20, 20), "black").save(tmp_path / "raw" / "images" / "i02.png")
    with pytest.raises(DataError, match=r"E105 1 pictures changed since mine .*i02\.png"):
        extract("mine", "colour-edge", data)
    (tmp_path / "raw" / "images" / "i02.png").unlink()
    with pytest.raises(DataError, match=r"i02\.png cannot be read"):
        extract("mine", "colour-edge", data)
    assert load_dataset("mine", data).feature_keys == []


def test_dataset_without_content(tmp_path):
    source = write_source(tmp_path / "raw", content=False)
    prepare("bare", source=source, data_dir=tmp_path / "data")
    with pytest.raises(DataError, match="bare has neither texts nor pictures"):
        extract_builtin("bare", tmp_path / "data")
    with pytest.raises(DataError, match="no item of bare has a picture"):
        extract("bare", "colour-edge", tmp_path / "data")


def test_unknown_names(data):
    with pytest.raises(UnknownNameError, match='Did you mean "tfidf-svd"'):
        extract("mine", "tfidf", data)
    with pytest.raises(UnknownNameError, match="unknown dataset 'mein'"):
        extract("mein", "tfidf-svd", data)


def test_import_by_position(data, tmp_path):
    matrix = np.random.default_rng(0).normal(size=(N_ITEMS, 4)).astype(np.float16)
    matrix[9] = 0
    np.save(tmp_path / "My clip_v2.npy", matrix)
    found = import_features("mine", tmp_path / "My clip_v2.npy", "visual", None, data)
    assert found.key == "visual__My-clip-v2"
    np.testing.assert_array_equal(found.matrix, matrix)
    np.testing.assert_array_equal(np.flatnonzero(~found.mask), [9])
    assert load_dataset("mine", data).features("visual").encoder == "My-clip-v2"


def test_import_by_id(data, tmp_path):
    matrix = np.arange(1, 23, dtype=np.float32).reshape(11, 2)
    np.save(tmp_path / "m.npy", matrix)
    order = ["i11", "unknown", *(f"i{i:02d}" for i in range(9))]
    (tmp_path / "ids.txt").write_text("\n".join(order) + "\n")
    found = import_features(
        "mine", tmp_path / "m.npy", "joint", "clip", data, ids=tmp_path / "ids.txt"
    )
    np.testing.assert_array_equal(found.matrix[11], matrix[0])
    np.testing.assert_array_equal(found.matrix[0], matrix[2])
    np.testing.assert_array_equal(np.flatnonzero(~found.mask), [9, 10])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("i00\ni01\n", "E251 .*12 rows, but 2 item ids"),
        ("i00\n" * 12, "E261 .*'i00' is listed more than once"),
        ("\n".join("abcdefghijkl"), "E251 .*none of its item ids is in the dataset"),
    ],
)
def test_bad_ids(data, tmp_path, lines, message):
    np.save(tmp_path / "m.npy", np.ones((12, 2)))
    (tmp_path / "ids.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        import_features("mine", tmp_path / "m.npy", "joint", "x", data, ids=tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((11, 2)), "E251 .*m.npy .*--ids.*: 11 rows, dataset has 12 items"),
        (np.full((12, 2), np.inf), "E118 .*m.npy: NaN or infinity in row 0"),
        (np.ones(12), "E118 .*m.npy: its shape is"),
        (np.zeros((12, 2)), "no item has this modality"),
    ],
)
def test_bad_matrix_leaves_nothing(data, tmp_path, matrix, message):
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(DataError, match=message):
        import_features("mine", tmp_path / "m.npy", "visual", "x", data)
    assert not [p for p in (data / "mine" / "features").glob("**/*") if p.is_file()]


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_matrix_is_never_opened(data, tmp_path):
    sprung = tmp_path / "sprung"
    (tmp_path / "m.npy").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="E118"):
        import_features("mine", tmp_path / "m.npy", "visual", "x", data)
    np.save(tmp_path / "m.npy", np.array([[Trap(sprung)]] * 12, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="never unpickled"):
        import_features("mine", tmp_path / "m.npy", "visual", "x", data)
    assert not sprung.exists()


def test_a_set_of_another_origin_is_not_overwritten(data, tmp_path):
    extract("mine", "colour-edge", data)
    np.save(tmp_path / "m.npy", np.ones((12, 2)))
    with pytest.raises(ConfigError, match="already has a feature set visual__colour-edge"):
        import_features("mine", tmp_path / "m.npy", "visual", "colour-edge", data)
    found = import_features("mine", tmp_path / "m.npy", "visual", "colour-edge", data, force=True)
    assert found.matrix.shape == (12, 2)
    # The same file again is no conflict; the encoder's own set is made again when asked for.
    import_features("mine", tmp_path / "m.npy", "visual", "colour-edge", data)
    with pytest.raises(UnknownNameError, match='Did you mean "visual"'):
        import_features("mine", tmp_path / "m.npy", "vision", "x", data)


def test_features_of_another_dataset_are_refused(data, tmp_path):
    extract("mine", "tfidf-svd", data)
    other = write_source(tmp_path / "raw2")
    rows = (other / "interactions.csv").read_text().replace("u1,i07\n", "")
    (other / "interactions.csv").write_text(rows)
    prepare("third", source=other, data_dir=data)
    (data / "mine" / "features").rename(data / "third" / "features")
    with pytest.raises(DataError, match=r"E251 .*belongs to another dataset"):
        load_dataset("third", data).features("textual")
