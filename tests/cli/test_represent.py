"""`mmbench represent` on real runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

MODELS = ("bpr-mf", "vbpr")


@pytest.fixture
def runs(tiny_data, tmp_path, mmbench):
    for model in (*MODELS, "ease"):
        quick = ["--set", "training.epochs=2"] if model != "ease" else []
        visual = ["--set", "features.visual=imported"] if model == "vbpr" else []
        done = mmbench(
            "train", model, "--dataset", "tiny", "--data-dir", tiny_data, "--runs-dir",
            tmp_path / ("closed" if model == "ease" else "runs"), *quick, *visual,
        )  # fmt: skip
        assert done.status == 0, done.err
    return tmp_path / "runs"


def test_vectors_numbers_and_pictures(runs, tiny_data, tmp_path, mmbench):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    done = mmbench("represent", runs, "--data-dir", tiny_data, "--to", "out", "--tsne")
    assert done.status == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    for word in (*MODELS, "same user", "norm~count", "60 users"):
        assert word in done.out
    assert "ranks 100.0% of the first items as the run did" in done.err
    out = tmp_path / "out"
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    assert len(folders) == 2
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "items.png", "items.svg", "users.png", "users.svg",
    ]  # fmt: skip
    for folder in folders:
        items, users = np.load(folder / "items.npy"), np.load(folder / "users.npy")
        manifest = json.loads((folder / "manifest.json").read_text())
        assert items.dtype == users.dtype == np.float32
        assert manifest["items"]["shape"] == list(items.shape)
        assert manifest["run"] == folder.name
        assert manifest["model"]["name"] in MODELS
        ids = json.loads((folder / "item_ids.json").read_text())
        assert len(ids) == len(items) == 40
        assert ids[:3] == ["0", "1", "2"]
        assert len(json.loads((folder / "user_ids.json").read_text())) == len(users) == 60
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_an_earlier_export_is_kept_unless_forced(runs, tiny_data, tmp_path, mmbench):
    asked = ("represent", runs, "--data-dir", tiny_data, "--to", "out")
    assert mmbench(*asked).status == 0
    again = mmbench(*asked)
    assert again.status == 2
    assert "--force" in again.err
    assert not again.out
    forced = mmbench(*asked, "--force", "--format", "json")
    assert forced.status == 0, forced.err
    assert {row["label"] for row in json.loads(forced.out)} == set(MODELS)
    for folder in (tmp_path / "out").iterdir():
        (folder / "manifest.json").unlink()
        (folder / "mine.txt").write_text("keep")
    refused = mmbench(*asked, "--force")
    assert refused.status == 2
    assert "holds other files" in refused.err
    assert all((folder / "mine.txt").exists() for folder in (tmp_path / "out").iterdir())


def test_a_later_run_that_fails_leaves_no_export(runs, tiny_data, tmp_path, mmbench):
    last = sorted(runs.iterdir())[-1]
    (last / "weights.safetensors").write_bytes(b"noise")
    done = mmbench("represent", runs, "--data-dir", tiny_data, "--to", "out")
    assert done.status == 2
    assert "weights.safetensors cannot be read" in done.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("", encoding="utf-8")
    assert mmbench("represent", runs, "--data-dir", tiny_data, "--to", "out").status == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_bad_input_is_one_message(runs, tiny_data, tmp_path, mmbench):
    def refused(*arguments, data=tiny_data):
        done = mmbench("represent", *arguments, "--data-dir", data)
        assert done.status == 2, done.err
        assert not done.out
        assert "Traceback" not in done.err
        return done.err

    assert "scores without vectors" in refused(tmp_path / "closed", "--to", "out")
    assert "does not exist" in refused(tmp_path / "none", "--to", "out")
    assert "Missing option '--to'" in refused(runs)
    assert "tiny" in refused(runs, "--to", "out", data=tmp_path / "empty")
    (tmp_path / "file").write_text("")
    refused(runs, "--to", tmp_path / "file")
    refused(runs, "--to", "out", "--users", 11)
    refused(runs, "--to", "out", "--perplexity", "nan")
    refused(runs, "--to", "out", "--device", "abacus")
    assert not (tmp_path / "out").exists()


def test_seeds_of_one_system_are_told_apart(tiny_data, tmp_path, mmbench):
    done = mmbench(
        "train", "bpr-mf", "--dataset", "tiny", "--seeds", "0,1", "--data-dir", tiny_data,
        "--runs-dir", "runs", "--set", "training.epochs=1",
    )  # fmt: skip
    assert done.status == 0, done.err
    shown = mmbench("represent", "runs", "--data-dir", tiny_data, "--to", "out")
    assert "bpr-mf, seed 0" in shown.out
    assert "bpr-mf, seed 1" in shown.out
