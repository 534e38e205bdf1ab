"""Two tiny shops of other users and items, whose pictures show styles of the same kinds.

A user keeps to one style. A column of the pictures' vectors means the same in both, as the
manifests say: one encoder of fixed weights made both. Other sets are there to be refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmbench.data.features import write_features
from mmbench.data.prepare import prepare
from mmbench.data.prepared import load_dataset

STYLES = np.array(
    [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]], dtype=float
)
EYE = {"encoder": {"weights_sha256": "ab12", "pooling": "mean"}, "inputs_sha256": "of these items"}
SHOPS = {"shop-a": (60, 32, 1), "shop-b": (36, 28, 2)}
"""By name: users, items, seed."""


def write_shops(root: Path) -> Path:
    """Prepare both below `root`, leave-one-out; returns the data folder."""
    for name, (n_users, n_items, seed) in SHOPS.items():
        rng = np.random.default_rng(seed)
        style = np.arange(n_items) % len(STYLES)
        rows = ["user_id,item_id,timestamp"]
        for user in range(n_users):
            liked = rng.permutation(np.flatnonzero(style == user % len(STYLES)))[:6]
            rows += [
                f"{name}-u{user:02d},{name}-i{item:02d},{1_600_000_000 + 100 * user + when}"
                for when, item in enumerate(liked)
            ]
        raw = root / "raw" / name
        raw.mkdir(parents=True)
        (raw / "interactions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        splits = ("leave-one-out", "random-per-user")
        dataset = prepare(name, source=raw, data_dir=root / "data", splits=splits).dataset
        seen = STYLES[[int(item[-2:]) % len(STYLES) for item in dataset.item_ids]]
        seen = seen + 0.05 * rng.standard_normal(seen.shape)
        add(root / "data", name, "visual", "eye", seen, EYE)
    return root / "data"


def add(
    data: Path, name: str, modality: str, encoder: str, matrix: Any, settings: dict[str, Any]
) -> None:
    """Store a feature set of a shop."""
    dataset = load_dataset(name, data)
    present = np.ones(dataset.n_items, dtype=bool)
    matrix = np.asarray(matrix, dtype=np.float32)
    write_features(dataset.root, dataset.fingerprint, modality, encoder, matrix, present, settings)


def recipe(model: str = "mmsr", **changes: Any) -> dict[str, Any]:
    """A recipe of shop-b that trains in a moment."""
    sequential = model in ("mmsr", "morec", "sasrec", "unisrec", "vqrec")
    settings: dict[str, Any] = {"name": model, "embedding_size": 8}
    if sequential:
        settings |= {"max_length": 5, "n_layers": 1, "n_heads": 1, "dropout": 0.0}
    raw: dict[str, Any] = {
        "dataset": "shop-b",
        "protocol": "mmsr" if sequential else "standard",
        "features": {} if model in ("sasrec", "bpr-mf") else {"visual": "eye"},
        "model": settings,
        "training": {
            "epochs": 6, "batch_size": 16, "learning_rate": 0.02, "patience": None,
            "select_by": "ndcg@5",
        },
        "evaluation": {"metrics": ["hr@5", "ndcg@5"], "depth": 10},
    }  # fmt: skip
    return {**raw, **changes}
