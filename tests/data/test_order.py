from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmbench.data.order import shown_the_future
from mmbench.data.prepared import EXCLUDED, TEST, TRAIN, VALID, PreparedDataset, Split


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        ([TRAIN, VALID, TEST, TRAIN, TRAIN, TEST], 0.0),
        ([TRAIN, TEST, VALID, TRAIN, VALID, TEST], 0.5),
        ([TEST, TRAIN, VALID, TEST, TRAIN, TRAIN], 1.0),
        ([TRAIN, TEST, TEST, TEST, TRAIN, TEST], 0.5),
        ([TEST, EXCLUDED, EXCLUDED, TRAIN, VALID, TEST], 0.0),  # nothing is shown of the first
        ([TRAIN, TEST, EXCLUDED, TRAIN, TRAIN, TRAIN], 0.0),  # the second is not tested
        ([TRAIN] * 6, 0.0),
    ],
)
def test_users_who_are_shown_what_came_after(
    labels: list[int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split("any", np.array(labels, dtype=np.int8), "0", {})
    manifest = {"counts": {"users": 3, "items": 6}, "split_names": ["any"], "splits": {"any": {}}}
    user, nothing = np.array([0, 0, 0, 2, 2, 2], dtype=np.int32), np.empty(0)
    dataset = PreparedDataset(Path("nowhere"), manifest, user, nothing, nothing, nothing)
    monkeypatch.setattr(PreparedDataset, "split", lambda self, name=None: replace(split))
    assert shown_the_future(dataset) == share
