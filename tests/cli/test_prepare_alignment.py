from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmbench.data.features import write_features
from mmbench.data.prepared import load_dataset


def test_describe_shows_how_sets_of_equal_width_agree(
    mmbench: Callable, tiny_data: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    found = load_dataset("tiny", root)
    rows = np.random.default_rng(0).standard_normal((found.n_items, 6)).astype(np.float32)
    for modality in ("visual", "textual"):
        mask = np.ones(found.n_items, dtype=np.bool_)
        write_features(found.root, found.fingerprint, modality, "clip", rows, mask, {})
    source = found.manifest["provenance"]["source"]
    command = ["prepare", "tiny", "--data-dir", root, "--source", source, "--format", "mmrec"]
    shown = mmbench(*command, "--describe")
    assert shown.status == 0, shown.err
    assert "Alignment" in shown.out
    assert "visual__clip" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    told = json.loads(mmbench(*command, "--describe", "--output-format", "json").out)
    (one,) = told["alignment"]
    assert (one["first"], one["second"]) == ("visual__clip", "textual__clip")
    assert one["recall_first"] == {"1": 1.0, "5": 1.0, "10": 1.0}
