"""MMSSL and DiffMM, in folders written in the form of theirs."""

import json
import pickle
import zipfile

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from mmbench.data.prepare import prepare
from mmbench.data.sources.hkuds import HKUDSFolder
from mmbench.errors import DataError

N_USERS, N_ITEMS = 9, 6
NAMES = ("trnMat.pkl", "valMat.pkl", "tstMat.pkl")


@pytest.fixture
def rows():
    """(user, item, label): four items per user; users 7 and 8 have nothing held out."""
    rng = np.random.default_rng(5)
    found = []
    for user in range(N_USERS):
        items = rng.permutation(N_ITEMS)[:4].tolist()
        labels = (0, 0, 1, 2) if user < 7 else (0, 0, 0, 0)
        found += [(user, item, label) for item, label in zip(items, labels, strict=True)]
    return found


def matrix(rows, label, shape=(N_USERS, N_ITEMS), form=sp.coo_matrix):
    """As DiffMM stores a part: float64 ones."""
    chosen = [(user, item) for user, item, of in rows if of == label]
    user, item = (np.array(side, dtype=np.int32) for side in zip(*chosen, strict=True))
    return form((np.ones(user.size), (user, item)), shape=shape)


def write_pickles(folder, rows, protocol=3, **settings):
    folder.mkdir(exist_ok=True)
    for label, name in enumerate(NAMES):
        content = pickle.dumps(matrix(rows, label, **settings), protocol=protocol)
        (folder / name).write_bytes(content)
    return folder


def write_json(folder, rows):
    """As MMSSL stores a part: every user is there, also without items."""
    folder.mkdir(exist_ok=True)
    for label, part in enumerate(("train", "val", "test")):
        lists = {str(user): [] for user in range(N_USERS)}
        for user, item, of in rows:
            if of == label:
                lists[str(user)].append(item)
        (folder / f"{part}.json").write_text(json.dumps(lists))
    return folder


def stored(dataset):
    label = dataset.split("imported").label
    return sorted(zip(dataset.user.tolist(), dataset.item.tolist(), label.tolist(), strict=True))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_parts_come_back_with_their_labels(tmp_path, rows, protocol):
    folder = write_pickles(tmp_path / "raw", rows, protocol)
    image = np.random.default_rng(0).random((N_ITEMS, 3)).astype(np.float16)
    np.save(folder / "image_feat.npy", image)
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert result.notes == (f"recognised layout hkuds in {folder}",)
    assert stored(result.dataset) == sorted(rows)
    assert result.dataset.split_names == ["imported"]
    np.testing.assert_array_equal(result.dataset.features("visual").matrix, image)
    assert result.dataset.features("visual").matrix.dtype == np.float16
    facts = result.dataset.manifest["facts"]
    assert facts == {"source_layout": "DiffMM: trnMat.pkl, valMat.pkl, tstMat.pkl"}
    files = [file["path"] for file in result.dataset.manifest["source"]["files"]]
    assert files == [*NAMES, "image_feat.npy"]


@pytest.mark.parametrize("form", [sp.coo_array, sp.csr_matrix, sp.csc_array])
def test_every_sparse_form_gives_the_same_labels(tmp_path, rows, form):
    folder = write_pickles(tmp_path / "raw", rows, form=form)
    assert stored(prepare("x", source=folder, data_dir=tmp_path / "data").dataset) == sorted(rows)


def test_json_gives_the_same_labels_as_the_pickles(tmp_path, rows):
    folder = write_json(tmp_path / "raw", rows)
    (folder / "train_mat").write_bytes(pickle.dumps(matrix(rows, 0, form=sp.csr_matrix), 4))
    (folder / "5-core-notes").mkdir()  # what is no core folder does not matter
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert stored(result.dataset) == sorted(rows)
    assert result.dataset.manifest["facts"]["source_layout"].startswith("MMSSL: train.json")
    assert "train_mat" in [file["path"] for file in result.dataset.manifest["source"]["files"]]


def test_json_is_preferred_to_pickles(tmp_path, rows):
    folder = write_json(tmp_path / "raw", rows)
    other = [(user, (item + 1) % N_ITEMS, label) for user, item, label in rows]
    write_pickles(folder, other)
    raw = HKUDSFolder().read(folder, tmp_path)
    assert sorted(raw.interactions.select(pl.col("user", "item").cast(int), "split").rows()) == (
        sorted(rows)
    )
    assert [path.name for path in raw.files] == ["train.json", "val.json", "test.json"]


def test_a_part_of_the_json_does_not_hide_the_pickles(tmp_path, rows):
    folder = write_pickles(tmp_path / "raw", rows)
    (folder / "train.json").write_text("{}")
    assert HKUDSFolder().read(folder, tmp_path).facts["source_layout"].startswith("DiffMM")
    (folder / "train.json").write_text('{"0": [1]}')
    (folder / "val.json").write_text('{"0": [2]}')
    (folder / "tstMat.pkl").unlink()
    (folder / "valMat.pkl").unlink()
    with pytest.raises(DataError, match=r"E101 test\.json not found"):
        prepare("x", source=folder, format="hkuds", data_dir=tmp_path / "data")


def test_the_shape_counts_items_that_nobody_used(tmp_path, rows):
    rows = [row for row in rows if row[1] < N_ITEMS - 1]  # the last item is never used
    folder = write_pickles(tmp_path / "raw", rows)
    np.save(folder / "text_feat.npy", np.eye(N_ITEMS, 2) + 1)
    result = prepare("x", source=folder, data_dir=tmp_path / "data")
    assert result.dataset.item_ids == ["0", "1", "2", "3", "4", "5"]
    assert any(
        warning.startswith("W213 item indices 0..5 have 1 gaps") for warning in result.warnings
    )
    # MMSSL's matrix of the training part tells the same.
    folder = write_json(tmp_path / "json", rows)
    np.save(folder / "text_feat.npy", np.eye(N_ITEMS, 2) + 1)
    with pytest.raises(DataError, match=r"E251 .*text_feat\.npy: 6 rows, dataset has 5 items"):
        prepare("y", source=folder, data_dir=tmp_path / "data")
    (folder / "train_mat").write_bytes(pickle.dumps(matrix(rows, 0, form=sp.csr_matrix), 4))
    assert len(prepare("y", source=folder, data_dir=tmp_path / "data").dataset.item_ids) == 6


def test_packed_features_are_unpacked_as_diffmm_packs_baby(tmp_path, rows):
    folder = write_pickles(tmp_path / "raw", rows)
    image = np.arange(N_ITEMS * 2, dtype=np.float64).reshape(N_ITEMS, 2) + 1
    np.save(tmp_path / "image_feat.npy", image)
    with zipfile.ZipFile(folder / "image_feat.npy.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "image_feat.npy", "image_feat.npy")
        archive.writestr("__MACOSX/._image_feat.npy", b"\x00\x05\x16\x07")
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    np.testing.assert_array_equal(dataset.features("visual").matrix, image)
    assert sorted(path.name for path in folder.iterdir()) == ["image_feat.npy.zip", *sorted(NAMES)]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("other.npy", r"E106 .*image_feat\.npy\.zip should hold one image_feat\.npy, it holds 0"),
        ("../image_feat.npy", r"E107 .*image_feat\.npy\.zip"),
        ("/image_feat.npy", r"E107 .*image_feat\.npy\.zip"),
    ],
)
def test_odd_archives_of_features_are_refused(tmp_path, rows, member, message):
    folder = write_pickles(tmp_path / "raw", rows)
    with zipfile.ZipFile(folder / "image_feat.npy.zip", "w") as archive:
        archive.writestr(member, b"x")
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not list(tmp_path.rglob("*_feat.npy"))


def test_the_exchanged_parts_of_baby_are_told(tmp_path):
    """DiffMM's Baby has 21,682 validation and 20,559 test rows, MMRec's the other way round."""
    cells = np.arange(118_551 + 21_682 + 20_559)
    user = cells % 19_445
    item = (user + cells // 19_445) % 7_050
    assert len(set(zip(user.tolist(), item.tolist(), strict=True))) == cells.size
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, part in zip(NAMES, np.split(cells, [118_551, 140_233]), strict=True):
        content = sp.coo_matrix((np.ones(part.size), (user[part], item[part])), (19_445, 7_050))
        (folder / name).write_bytes(pickle.dumps(content, 3))
    facts = HKUDSFolder().read(folder, tmp_path).facts
    assert facts["validation_and_test"] == "exchanged against MMRec's Baby"


def test_a_matrix_that_contradicts_the_json_is_left_out(tmp_path, rows):
    folder = write_json(tmp_path / "raw", rows)
    path = folder / "train_mat"
    path.write_bytes(pickle.dumps(matrix(rows[:-1], 0), 4))
    assert HKUDSFolder().read(folder, tmp_path).warnings == [
        "W231 1 pairs are in one of train_mat and train.json only; the JSON is read"
    ]
    path.write_bytes(pickle.dumps(sp.csr_matrix((N_USERS, 3)), 4))
    (warning,) = HKUDSFolder().read(folder, tmp_path).warnings
    assert warning.startswith("W213 train_mat left out: it has 9 users and 3 items, the JSON")
    path.write_bytes(pickle.dumps({"no": "matrix"}, 4))
    (warning,) = HKUDSFolder().read(folder, tmp_path).warnings
    assert warning.startswith("W116 train_mat left out, train.json is read instead: E116 ")


def test_a_pickle_that_calls_something_is_refused_and_not_called(tmp_path, rows):
    folder = write_pickles(tmp_path / "raw", rows)
    canary = tmp_path / "canary"

    class Call:
        def __reduce__(self):
            return open, (str(canary), "x")

    (folder / "tstMat.pkl").write_bytes(pickle.dumps(Call(), 3))
    with pytest.raises(DataError, match=r"E116 .*tstMat\.pkl: pickle uses .*open, not allowed"):
        prepare("x", source=folder, data_dir=tmp_path / "data")
    assert not canary.exists()
    assert not (tmp_path / "data").exists()


def change(folder, rows, what):
    if what == "torn pair":
        extra = (rows[0][0], rows[0][1], 2)
        write_pickles(folder, [*rows, extra])
        return r"E231 1 user-item pairs are in more than one split"
    if what == "shapes":
        (folder / NAMES[1]).write_bytes(pickle.dumps(matrix(rows, 1, shape=(9, 7)), 3))
        return r"E213 .*trnMat\.pkl and valMat\.pkl differ in shape \(9 x 6, 9 x 7\)"
    if what == "missing":
        (folder / NAMES[2]).unlink()
        return r"E101 tstMat\.pkl not found"
    if what == "truncated":
        content = (folder / NAMES[0]).read_bytes()
        (folder / NAMES[0]).write_bytes(content[: len(content) // 2])
        return r"E106 .*trnMat\.pkl is not a complete pickle"
    if what == "page":
        (folder / NAMES[0]).write_text("<!DOCTYPE html><html><body>log in</body></html>")
        return r"E106 .*trnMat\.pkl is not a pickle \(it is a web page\)"
    if what == "no validation":
        (folder / NAMES[1]).write_bytes(pickle.dumps(sp.coo_matrix((9, 6)), 3))
        return "E222 imported split has no valid rows"
    if what == "rows":
        np.save(folder / "image_feat.npy", np.ones((5, 2)))
        return r"E251 .*image_feat\.npy: 5 rows, dataset has 6 items"
    if what == "nan":
        np.save(folder / "image_feat.npy", np.full((6, 2), np.nan))
        return r"E118 .*image_feat\.npy: NaN or infinity in row 0"
    if what == "objects":
        np.save(folder / "image_feat.npy", np.array([[None], ["x"]]), allow_pickle=True)
        return r"E118 .*image_feat\.npy: it holds Python objects, which are never unpickled"
    if what == "modality":
        np.save(folder / "smell_feat.npy", np.ones((6, 2)))
        return r"E118 .*smell_feat\.npy: no modality is called 'smell'"
    if what == "two of one":
        np.save(folder / "image_feat.npy", np.ones((6, 2)))
        np.save(folder / "v_feat.npy", np.ones((6, 2)))
        return r"E118 .*v_feat\.npy: image_feat\.npy has visual features already"
    if what == "empty":
        for name in NAMES:
            (folder / name).write_bytes(pickle.dumps(sp.coo_matrix((9, 6)), 3))
        return "E241 the split files in .* hold no interactions"
    assert what == "gaps"
    np.save(folder / "image_feat.npy", np.ones((500, 2)))
    for name in NAMES:
        (folder / name).write_bytes(pickle.dumps(sp.coo_matrix(([1.0], ([0], [3])), (9, 600)), 3))
    return r"E251 .*image_feat\.npy: 500 rows, dataset has 600 items"


@pytest.mark.parametrize(
    "what",
    [
        *("torn pair", "shapes", "missing", "truncated", "page", "no validation", "rows", "nan"),
        *("objects", "modality", "two of one", "empty", "gaps"),
    ],
)
def test_broken_folders_are_refused(tmp_path, rows, what):
    folder = write_pickles(tmp_path / "raw", rows)
    message = change(folder, rows, what)
    with pytest.raises(DataError, match=message):
        prepare("x", source=folder, format="hkuds", data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "x").exists()


def test_an_announced_size_takes_no_memory(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for k, name in enumerate(NAMES):
        content = sp.coo_matrix(([1.0], ([k], [k])), shape=(5, 2**31 - 1))
        (folder / name).write_bytes(pickle.dumps(content, 4))
    with pytest.raises(DataError, match="E213 2147483647 items are announced, 3 have interactions"):
        prepare("x", source=folder, data_dir=tmp_path / "data")


def test_recognition_looks_at_beginnings(tmp_path, rows):
    folder = write_pickles(tmp_path / "raw", rows)
    assert HKUDSFolder.recognises(folder)
    (folder / NAMES[0]).write_text("no pickle")
    assert not HKUDSFolder.recognises(folder)
    (folder / NAMES[0]).unlink()
    (folder / NAMES[0]).mkdir()
    assert not HKUDSFolder.recognises(folder)
    assert not HKUDSFolder.recognises(tmp_path / "missing")
