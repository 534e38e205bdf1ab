from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmbench.data import aligned
from mmbench.data.features import write_features
from mmbench.data.prepared import PreparedDataset, load_dataset
from mmbench.metrics.alignment import measure


@pytest.fixture
def dataset(tiny_data: Path, tmp_path: Path) -> PreparedDataset:
    """Sets of 6 columns: of one encoder, and of another; item 0 lacks a picture, item 1 a text."""
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    found = load_dataset("tiny", root)
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((found.n_items, 6)).astype(np.float32)
    read = (seen + rng.standard_normal(seen.shape)).astype(np.float32)
    for modality, name, rows, lacking in (
        ("visual", "clip", seen, 0),
        ("textual", "clip", read, 1),
        ("textual", "words", rng.standard_normal(seen.shape).astype(np.float32), 1),
        ("textual", "wide", np.ones((found.n_items, 7), dtype=np.float32), 1),
    ):
        mask = np.arange(found.n_items) != lacking
        write_features(found.root, found.fingerprint, modality, name, rows, mask, {})
    return load_dataset("tiny", root)


def test_sets_of_equal_width_and_other_modality_are_compared(
    dataset: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = aligned.alignments(dataset)
    assert [(one["first"], one["second"], one["one_encoder"]) for one in found] == [
        ("visual__clip", "textual__clip", True),
        ("visual__clip", "textual__words", False),
    ]
    seen = dataset.features("visual", "clip").matrix[2:]
    wanted = measure(seen, dataset.features("textual", "clip").matrix[2:])
    assert found[0]["n_items"] == dataset.n_items - 2
    assert found[0]["recall_first"]["1"] == wanted.recall_first[1]
    assert found[0]["gap"] == pytest.approx(wanted.gap)
    assert aligned.alignments(dataset, ["visual__clip", "textual__wide"]) == []
    monkeypatch.setattr(aligned, "MOST", 10)
    assert aligned.alignments(dataset)[0]["n_items"] == 10
