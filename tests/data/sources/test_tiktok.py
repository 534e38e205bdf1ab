"""TikTok as DiffMM distributes it, in samples written in the form of its files."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_matrix

from mmbench.data.prepare import prepare
from mmbench.data.prepared import open_dataset
from mmbench.data.sources.tiktok import TikTok
from mmbench.errors import DataError

PARTS = {
    "trnMat.pkl": [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)],
    "valMat.pkl": [(0, 2)],
    "tstMat.pkl": [(1, 3), (2, 3)],
}
PLACE = "Datasets/tiktok/"


def matrix(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def files():
    """Three users and four videos; the names, types and widths are those of the real files."""
    held = {}
    for name, pairs in PARTS.items():
        users, videos = np.array(pairs, dtype=np.int32).T
        held[name] = pickle.dumps(coo_matrix((np.ones(len(pairs)), (users, videos)), shape=(3, 4)))
    rng = np.random.default_rng(0)
    for name, width in (("image", 128), ("audio", 128), ("text", 768)):
        held[f"{name}_feat.npy"] = matrix(rng.random((4, width)).astype(np.float16))
    return held


@pytest.fixture
def folder(tmp_path, files):
    raw = tmp_path / "tiktok"
    raw.mkdir()
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


def test_split_and_features_are_taken_as_they_are(tmp_path, folder):
    dataset = prepare("tiktok", source=folder, data_dir=tmp_path / "data").dataset
    assert dataset.split_names == ["imported"]
    pairs = sorted(
        zip(dataset.user.tolist(), dataset.item.tolist(), dataset.split().label, strict=True)
    )
    expected = [(u, i, k) for k, name in enumerate(PARTS) for u, i in PARTS[name]]
    assert pairs == sorted(expected)
    for name, modality in (("image", "visual"), ("audio", "acoustic"), ("text", "textual")):
        given = np.load(folder / f"{name}_feat.npy")
        assert np.array_equal(dataset.features(modality).matrix, given)


def test_text_features_may_be_missing(tmp_path, folder):
    (folder / "text_feat.npy").unlink()
    raw = TikTok().read(folder, tmp_path)
    assert sorted(feature.modality for feature in raw.features) == ["acoustic", "visual"]


def test_a_copy_in_another_layout_is_read_by_that_layout(tmp_path, folder):
    for path in folder.glob("*.pkl"):
        path.unlink()
    rows = [f"{u}\t{i}\t{k}" for k, name in enumerate(PARTS) for u, i in PARTS[name]]
    (folder / "tiktok.inter").write_text("\n".join(["userID\titemID\tx_label", *rows]) + "\n")
    assert not TikTok.recognises(folder)
    result = prepare("tiktok", source=folder, data_dir=tmp_path / "data")
    assert any("mmrec" in note for note in result.notes)
    assert result.dataset.manifest["counts"]["interactions"] == 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tstMat.pkl", None, r"E101 .*tstMat\.pkl"),
        ("trnMat.pkl", b"<!DOCTYPE html><html></html>", r"E1\d\d .*trnMat\.pkl"),
        ("trnMat.pkl", pickle.dumps(Path("x")), r"E116 .*trnMat\.pkl"),
        ("image_feat.npy", matrix(np.ones((3, 128))), r"E251 .*image_feat\.npy: 3 rows"),
        ("image_feat.npy", b"<html>", r"E118 .*image_feat\.npy"),
    ],
)
def test_broken_files_are_refused(tmp_path, folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("tiktok", source=folder, data_dir=tmp_path / "data", format="tiktok")
    assert not (tmp_path / "data/tiktok").exists()


def test_it_is_fetched_from_the_repository_and_prepared(mmbench, serve, monkeypatch, files):
    commit = "fae20e642aeeaad4284be6f7fb3432ebb551da8e"
    first, second = f"raw/HKUDS/DiffMM/{commit}/{PLACE}", f"HKUDS/DiffMM/raw/{commit}/{PLACE}"
    # The first address has lost a file, and its mirror has it.
    held = {first + name: content for name, content in files.items() if name != "trnMat.pkl"}
    server = serve(held | {second + "trnMat.pkl": files["trnMat.pkl"]})
    monkeypatch.setenv(
        "MMBENCH_MIRRORS",
        f"https://raw.githubusercontent.com/={server.url}raw/;https://github.com/={server.url}",
    )
    # The recorded hashes are those of the real files, and these are a sample.
    said = mmbench("prepare", "tiktok", "--download", "--no-features")
    assert said.status == 2
    assert "E105" in said.err
    assert not Path("data/tiktok").exists()
    said = mmbench("prepare", "tiktok", "--download", "--accept-changed", "--no-features")
    assert said.status == 0, said.err
    dataset = open_dataset(Path("data/tiktok"))
    assert dataset.manifest["counts"]["interactions"] == 8
    assert len(server.gets(second + "trnMat.pkl")) >= 1
