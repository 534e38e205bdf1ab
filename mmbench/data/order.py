"""Whether a split keeps the order of time that a sequential model takes for granted."""

from __future__ import annotations

import numpy as np

from mmbench.data.prepared import TEST, TRAIN, VALID, PreparedDataset


def shown_the_future(dataset: PreparedDataset, split: str | None = None) -> float:
    """Share of the tested users whose history holds something from after an item to be found.

    Rows of a user stand in the order of time, so what is shown of a user at test may only stand
    before the first test row. It is 0 for leave-one-out and splits by time, and near 1 for
    random ones.

    Raises:
        UnknownNameError, DataError: as `PreparedDataset.split`.
    """
    label, users = np.asarray(dataset.split(split).label), np.asarray(dataset.user)
    rows = np.arange(len(label))
    first_test = np.full(dataset.n_users, len(label))
    np.minimum.at(first_test, users[label == TEST], rows[label == TEST])
    last_shown = np.full(dataset.n_users, -1)
    shown = (label == TRAIN) | (label == VALID)
    np.maximum.at(last_shown, users[shown], rows[shown])
    tested = (first_test < len(label)) & (last_shown >= 0)
    return float((last_shown > first_test)[tested].mean()) if tested.any() else 0.0
