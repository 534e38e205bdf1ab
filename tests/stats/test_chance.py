"""Chance by formula against all orders of a few candidates, metric by metric."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mmbench.metrics.base import Metric
from mmbench.metrics.lists import RankedLists
from mmbench.stats.chance import chance


def over_all_orders(name: str, k: int, candidates: int, relevant: int) -> float:
    """The mean over every order of the candidates, of which the first are relevant."""
    orders = np.array(list(permutations(range(candidates))))
    depth = max(k, candidates)
    items = np.full((len(orders), depth), -1)
    items[:, :candidates] = orders
    lists = RankedLists(
        users=np.arange(len(orders)),
        items=items,
        hits=(items >= 0) & (items < relevant),
        relevant_offsets=np.arange(len(orders) + 1) * relevant,
        relevant_items=np.tile(np.arange(relevant), len(orders)),
        popularity=np.ones(candidates, dtype=np.int64),
        activity=np.ones(len(orders), dtype=np.int64),
    )
    return float(Metric(name, k).values(lists).mean())


@pytest.mark.parametrize("name", ["recall", "precision", "hr", "ndcg", "mrr", "map"])
@pytest.mark.parametrize(
    ("k", "candidates", "relevant"),
    [(1, 6, 1), (3, 6, 1), (3, 6, 2), (3, 6, 4), (6, 6, 3), (5, 3, 2), (2, 5, 5), (1, 1, 1)],
)
def test_chance_is_the_mean_over_all_orders(
    name: str, k: int, candidates: int, relevant: int
) -> None:
    found = chance(name, k, np.array([candidates]), np.array([relevant]))
    assert found.tolist() == pytest.approx([over_all_orders(name, k, candidates, relevant)])


def test_ten_of_a_thousand() -> None:
    found = chance("hr", 10, np.array([1000, 500, 1000]), np.array([1, 1, 1]))
    assert found.tolist() == pytest.approx([0.01, 0.02, 0.01])
    assert chance("recall", 10, np.array([1000.0]), np.array([7.0]))[0] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "candidates", "relevant"), [("recall", 10, 0), ("hr", 0, 1), ("coverage", 10, 1)]
)
def test_what_has_no_chance_level_is_undefined(name: str, candidates: int, relevant: int) -> None:
    assert np.isnan(chance(name, 5, np.array([candidates]), np.array([relevant]))).all()
