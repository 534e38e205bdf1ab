from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmbench.metrics.base import parse_metric
from mmbench.metrics.lists import RankedLists
from mmbench.runs import SCHEMA, Run, open_run, write_json, write_lists

METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")


class Laboratory:
    """Writes real run folders over one small, fixed dataset with planted quality."""

    def __init__(self, root: Path, n_users: int = 300, n_items: int = 120, depth: int = 30) -> None:
        self.root, self.n_users, self.n_items, self.depth = root, n_users, n_items, depth
        rng = np.random.default_rng(11)
        self.popularity = np.sort(rng.geometric(0.03, n_items))[::-1].astype(np.int64)
        self.activity = rng.geometric(0.2, n_users).astype(np.int64) + 2
        self.counts = rng.integers(1, 4, n_users)
        self.relevant = [rng.choice(n_items, count, replace=False) for count in self.counts]
        self.wanted = np.zeros((n_users, n_items), dtype=bool)
        for user, items in enumerate(self.relevant):
            self.wanted[user, items] = True
        self.taste = rng.normal(size=n_users)  # some users are easy for every system

    def lists(self, quality: float, seed: int) -> RankedLists:
        """Random lists in which relevant items stand the higher, the better the quality."""
        rng = np.random.default_rng([seed, 5])
        scores = rng.normal(size=(self.n_users, self.n_items))
        scores += self.wanted * (quality + 0.5 * self.taste[:, None])
        items = np.argsort(-scores, axis=1)[:, : self.depth]
        hits = np.take_along_axis(self.wanted, items, axis=1)
        return RankedLists(
            users=np.arange(self.n_users),
            items=items,
            hits=hits,
            relevant_offsets=np.concatenate([[0], np.cumsum(self.counts)]),
            relevant_items=np.concatenate(self.relevant),
            popularity=self.popularity,
            activity=self.activity,
        )

    def run(
        self,
        label: str = "vbpr",
        seed: int = 0,
        *,
        quality: float = 1.0,
        system: str | None = None,
        recipe: Mapping[str, Any] | None = None,
        lists: RankedLists | None = None,
        metrics: Sequence[str] = METRICS,
        folder: str | None = None,
        **changes: Any,
    ) -> Run:
        """Write a complete run folder and open it; `changes` replace fields of its manifest."""
        path = self.root / (folder or f"{label}-{system or ''}-s{seed}".replace(" ", "-"))
        path.mkdir(parents=True)
        if lists is None:
            lists = self.lists(quality, 1000 + seed + 17 * sum(map(ord, label + (system or ""))))
        for part in ("valid", "test"):
            write_lists(path / "lists" / part, lists)
        np.save(path / "popularity.npy", lists.popularity.astype(np.int32))
        settings = {
            "dataset": "toy",
            "label": label,
            "features": {},
            "model": {"name": label, "dim": 64},
            "evaluation": {"metrics": list(metrics), "depth": lists.depth},
            "seeds": [seed],
            **(recipe or {}),
        }
        (path / "recipe.yaml").write_text(
            yaml.safe_dump(settings, sort_keys=False), encoding="utf-8"
        )
        means = {name: float(np.nanmean(parse_metric(name).values(lists))) for name in metrics}
        manifest = {
            "schema": SCHEMA,
            "status": "complete",
            "label": label,
            "system": system or f"hash-of-{label}",
            "seed": seed,
            "dataset": {
                "name": "toy",
                "fingerprint": "d" * 64,
                "users": self.n_users,
                "items": self.n_items,
            },
            "split": {"name": "random", "fingerprint": "5" * 64},
            "protocol": {"name": "standard", "mask_validation_at_test": True, "negatives": "seen"},
            "features": [],
            "model": {"name": label, "integration": "none", "modalities": [], "parameters": 1},
            "metrics": {"valid": means, "test": means},
            **changes,
        }
        write_json(path / "manifest.json", manifest)
        return open_run(path)


@pytest.fixture
def lab(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path / "runs")


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[..., Laboratory]:
    return lambda name="runs", **sizes: Laboratory(tmp_path / name, **sizes)


@pytest.fixture(scope="session")
def laboratory() -> type[Laboratory]:
    """For fixtures of a wider scope than one test."""
    return Laboratory
