import json
import shutil

import numpy as np
import pytest

from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset
from mmbench.errors import DataError, UnknownNameError


@pytest.fixture
def stored(tmp_path, write_inter, labelled_rows):
    """A data folder with the prepared dataset "x", which a test may damage."""
    prepare("x", source=write_inter(labelled_rows), data_dir=tmp_path / "data")
    return tmp_path / "data"


def test_what_was_written_is_what_is_opened(stored, labelled_rows):
    dataset = load_dataset("x", stored)
    assert (dataset.name, dataset.n_users, dataset.n_items) == ("x", 6, 4)
    assert (dataset.user.dtype, dataset.item.dtype) == (np.int32, np.int32)
    assert (dataset.timestamp == -1).all()
    assert np.isnan(dataset.rating).all()
    assert dataset.user_ids == ["0", "1", "2", "3", "4", "5"]
    assert dataset.texts == [""] * 4
    assert dataset.image_paths == [None] * 4
    assert dataset.split().name == "imported"
    assert dataset.split("imported").facts["rows"] == [12, 6, 6, 0]
    source_row = np.load(dataset.root / "interactions/source_row.npy")
    assert [labelled_rows[k][:2] for k in source_row] == list(
        zip(dataset.user.tolist(), dataset.item.tolist(), strict=True)
    )


def test_the_folder_can_be_moved(stored):
    shutil.move(stored / "x", stored / "y")
    assert load_dataset("y", stored).user_ids[0] == "0"


def test_a_dataset_that_is_not_there_says_what_to_do(stored):
    with pytest.raises(
        DataError, match=r"'demo' is not prepared under .*Run: mmbench prepare demo"
    ):
        load_dataset("demo", stored)
    with pytest.raises(
        UnknownNameError, match=r"unknown dataset 'xx'.* mmbench prepare xx --source"
    ):
        load_dataset("xx", stored)


def test_an_unknown_split_offers_the_nearest(stored):
    with pytest.raises(UnknownNameError, match=r'Did you mean "imported".*--split importd'):
        load_dataset("x", stored).split("importd")


def test_absent_features_are_told(stored):
    with pytest.raises(DataError, match="x has no visual features; stored are: none"):
        load_dataset("x", stored).features("visual")


def test_several_features_of_a_modality_must_be_told_apart(tmp_path, write_inter, labelled_rows):
    from mmbench.data.features import write_features

    folder = write_inter(labelled_rows)
    np.save(folder / "image_feat.npy", np.ones((4, 2)))
    dataset = prepare("x", source=folder, data_dir=tmp_path / "data").dataset
    write_features(
        dataset.root, dataset.fingerprint, "visual", "clip", np.ones((4, 3)), np.ones(4, bool), {}
    )
    with pytest.raises(DataError, match=r"several visual feature sets: clip, imported\. Name one"):
        dataset.features("visual")
    assert dataset.features("visual", "clip").matrix.shape == (4, 3)


def damage_manifest(root, **changes):
    path = root / "x/manifest.json"
    manifest = json.loads(path.read_text())
    manifest.update(changes)
    path.write_text(json.dumps(manifest))


def test_a_dataset_of_another_version_is_refused(stored):
    damage_manifest(stored, schema=99)
    with pytest.raises(DataError, match=r"E302 .* another version of mmbench \(schema 99"):
        load_dataset("x", stored)


def test_an_unfinished_or_broken_manifest_is_refused(stored):
    path = stored / "x/manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"E302 .*manifest\.json cannot be read"):
        load_dataset("x", stored)
    path.unlink()
    with pytest.raises(DataError, match="is no prepared dataset"):
        load_dataset("x", stored)


def test_changed_arrays_are_noticed(stored):
    path = stored / "x/interactions/item.npy"
    good = np.load(path)
    bad = good.copy()
    bad[0] += 1
    for content, message in (
        (bad, "does not match its recorded hash"),
        (good[:-1], r"holds int32 \[23\], expected int32 \[24\]"),
        (good.astype(np.int64), "holds int64"),
        (good.astype(object), "cannot be read"),  # pickled: refused, not opened
    ):
        np.save(path, content, allow_pickle=True)
        with pytest.raises(DataError, match=rf"E302 .*item\.npy .*{message}"):
            load_dataset("x", stored)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"E302 .*item\.npy cannot be read"):
        load_dataset("x", stored)


def test_changed_labels_and_lines_are_noticed(stored):
    labels = stored / "x/splits/imported/label.npy"
    np.save(labels, np.zeros(24, dtype=np.int8))
    with pytest.raises(DataError, match=r"E302 .*label\.npy does not match"):
        load_dataset("x", stored).split()
    users = stored / "x/users.jsonl"
    users.write_text("\n".join(users.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match=r"E302 .*users\.jsonl has 5 lines, expected 6"):
        _ = load_dataset("x", stored).user_ids
