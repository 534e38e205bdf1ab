"""Nearest items in a feature set, against cosines written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmbench.data.cleaning import PrepareConfig
from mmbench.data.features import write_features
from mmbench.data.prepare import prepare
from mmbench.engine.nearest import nearest
from mmbench.errors import DataError, UnknownNameError

TITLES = ["Toy Story", "Toy Story 2", "A Bug's Life", "Alien", "Café"]
VECTORS = np.array([[1, 0], [0.9, 0.1], [0.6, 0.8], [-1, 0], [0, 0]], dtype=np.float32)


@pytest.fixture
def dataset(tmp_path: Path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [f"u{u},i{i}" for u in range(2) for i in range(5)]
    (raw / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    lines = [f"i{i},{title}" for i, title in enumerate(TITLES)]
    (raw / "items.csv").write_text("\n".join(["item_id,title", *lines]) + "\n", "utf-8")
    config = PrepareConfig(user_min=0, item_min=0)
    made = prepare("films", source=raw, config=config, data_dir=tmp_path / "data").dataset
    mask = np.array([True] * 4 + [False])
    write_features(made.root, made.fingerprint, "textual", "made", VECTORS, mask, {})
    return made


def test_the_nearest_come_first_and_the_item_itself_does_not(dataset):
    (one,) = nearest(dataset, "textual__made", ["Toy Story"], k=2)
    assert [title for _, title, _ in one.near] == ["Toy Story 2", "A Bug's Life"]
    expected = [0.9 / np.hypot(0.9, 0.1), 0.6]
    assert [cosine for *_, cosine in one.near] == pytest.approx(expected, abs=1e-6)


def test_items_without_the_content_are_nobodys_neighbours(dataset):
    (one,) = nearest(dataset, "textual__made", ["i3"], k=10)
    assert {item for item, *_ in one.near} == {"i0", "i1", "i2"}
    with pytest.raises(DataError, match=r"i4 \(Café\) has no vector in textual__made"):
        nearest(dataset, "textual__made", ["café"], k=2)


def test_items_are_found_by_id_or_by_part_of_the_title(dataset):
    found = nearest(dataset, "textual__made", ["i2", "bug", "toy story 2", "alien"], k=1)
    assert [one.item for one in found] == ["i2", "i2", "i1", "i3"]
    with pytest.raises(UnknownNameError, match=r"unknown item of films 'Toystory'.*Toy Story"):
        nearest(dataset, "textual__made", ["Toystory"], k=1)


def test_the_command_prints_them(dataset, capsys, monkeypatch):
    from mmbench.cli.main import main

    def run(*arguments: str) -> str:
        words = ["mmbench", "extract", "films", "--data-dir", str(dataset.root.parent), *arguments]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    shown = run("--nearest", "textual__made", "--item", "Toy Story")
    assert shown.splitlines()[:2] == ["Toy Story  (textual__made)", "   0.994  Toy Story 2"]
    told = json.loads(run("--nearest", "textual__made", "--item", "alien", "--format", "json"))
    assert told[0]["near"][0][1] == "A Bug's Life"
