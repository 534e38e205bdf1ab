"""Counts and distributions of a dataset: what the manifest records and `--describe` prints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbench.data.features import read_feature_manifest
from mmbench.data.prepared import PreparedDataset

Index = NDArray[np.int32]


def distribution(counts: NDArray[np.int64]) -> dict[str, float]:
    """Minimum, quartiles, mean and maximum of counts."""
    if not counts.size:
        return {}
    low, first, median, third, high = np.quantile(counts, [0, 0.25, 0.5, 0.75, 1])
    return {
        "min": float(low),
        "q25": float(first),
        "median": float(median),
        "mean": float(counts.mean()),
        "q75": float(third),
        "max": float(high),
    }


def count_rows(user: Index, item: Index, n_users: int, n_items: int) -> dict[str, Any]:
    """The `counts` of a manifest; distributions are over users and items with interactions."""
    per_user = np.bincount(user, minlength=n_users)
    per_item = np.bincount(item, minlength=n_items)
    return {
        "users": n_users,
        "items": n_items,
        "interactions": int(user.size),
        "density": user.size / (n_users * n_items),
        "per_user": distribution(per_user[per_user > 0]),
        "per_item": distribution(per_item[per_item > 0]),
        "items_unseen": int((per_item == 0).sum()),
    }


def tied_users(user: Index, timestamp: NDArray[np.int64]) -> tuple[int, int]:
    """Users whose last two rows share a timestamp, and rows that share one with a neighbour.

    Both arrays are ordered by user, then time.
    """
    same = (user[1:] == user[:-1]) & (timestamp[1:] == timestamp[:-1])
    last = np.append(user[1:] != user[:-1], True)[1:]
    tied = np.zeros(user.size, dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    return int((same & last).sum()), int(tied.sum())


def index_leak(user: Index, item: Index, held_out: NDArray[np.bool_]) -> float:
    """Share of users, with two training rows or more, whose largest item index is held out.

    Where item numbers were given after splitting, the number tells the answer. The arrays are
    ordered by user.
    """
    begins = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    largest_held = np.maximum.reduceat(np.where(held_out, item, -1), begins)
    largest_train = np.maximum.reduceat(np.where(held_out, -1, item), begins)
    n_train = np.add.reduceat(~held_out, begins, dtype=np.int64)
    judged = (n_train >= 2) & (largest_held >= 0)
    if not judged.any():
        return 0.0
    return float((largest_held > largest_train)[judged].mean())


def describe(dataset: PreparedDataset) -> dict[str, Any]:
    """Everything `mmbench prepare NAME --describe` tells, as plain values."""
    manifest = dataset.manifest
    features = []
    for key in dataset.feature_keys:
        stored = read_feature_manifest(dataset.root, key) or {}
        features.append({"key": key, **{k: stored.get(k) for k in ("shape", "dtype", "present")}})
    return {
        "name": dataset.name,
        "root": str(dataset.root),
        "fingerprint": dataset.fingerprint,
        "source": {
            **{key: manifest["source"][key] for key in ("format", "dataset", "licence_note")},
            "root": manifest["provenance"]["source"],
        },
        "config": manifest["config"],
        "counts": {**manifest["counts"], "sparsity": 1 - manifest["counts"]["density"]},
        "time": manifest["time"],
        "text": manifest["text"],
        "images": manifest["images"],
        "facts": manifest["facts"],
        "splits": [{"name": name, **manifest["splits"][name]} for name in dataset.split_names],
        "features": features,
    }
