"""The two-way interval against its sums written out, and its coverage where items are shared."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mmbench.stats.clustered import two_way_interval


def literal(users, items, parts, weights):
    mean = sum(parts)
    error = [p - mean * w for p, w in zip(parts, weights, strict=True)]

    def squares(keys):
        total = {}
        for key, e in zip(keys, error, strict=True):
            total[key] = total.get(key, 0.0) + e
        return sum(value**2 for value in total.values()), len(total)

    (by_user, n_users), (by_item, n_items) = squares(users), squares(items)
    by_user *= n_users / (n_users - 1)
    by_item *= n_items / (n_items - 1)
    both, n_pairs = squares(list(zip(users, items, strict=True)))
    both *= n_pairs / (n_pairs - 1)
    variance = max(by_user, by_item, by_user + by_item - both)
    half = stats.t.ppf(0.975, min(n_users, n_items) - 1) * variance**0.5
    return mean - half, mean + half


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula(seed):
    rng = np.random.default_rng(seed)
    n = 40
    users, items = rng.integers(0, 12, n), rng.integers(0, 7, n)
    weights = rng.random(n)
    weights /= weights.sum()
    parts = weights * rng.integers(0, 2, n)
    expected = literal(users.tolist(), items.tolist(), parts.tolist(), weights.tolist())
    assert two_way_interval(users, items, parts, weights) == pytest.approx(expected)


def test_each_user_with_an_item_of_his_own_is_the_interval_of_a_mean():
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    index = np.arange(7)
    low, high = two_way_interval(index, index, values / 7, np.full(7, 1 / 7))
    half = stats.t.ppf(0.975, 6) * values.std(ddof=1) / 7**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_without_a_hit_the_upper_bound_is_what_could_be_hidden():
    index = np.arange(50)
    low, high = two_way_interval(index, index, np.zeros(50), np.full(50, 0.02))
    assert low == 0.0
    # With a share p of hits, 50 misses in a row have probability (1 - p) ** 50 = 0.025.
    assert (1 - high) ** 50 == pytest.approx(0.025)


def test_one_item_says_nothing():
    one = np.zeros(3, dtype=np.int64)
    assert np.isnan(two_way_interval(np.arange(3), one, np.ones(3) / 3, np.ones(3) / 3)).all()


def test_a_common_order_of_items_is_covered_where_users_alone_are_not():
    """A model that lists the same 15 of 60 items for everybody: its mean is chance over models."""
    rng = np.random.default_rng(3)
    users, demand = np.arange(400), 1 / np.arange(5, 65)
    demand /= demand.sum()  # some items are asked for twelve times as often as others
    covered = naive = 0
    for _ in range(300):
        items = rng.choice(60, 400, p=demand)
        hits = np.isin(items, rng.permutation(60)[:15]).astype(float)
        low, high = two_way_interval(users, items, hits / 400, np.full(400, 1 / 400))
        covered += low <= 0.25 <= high
        half = 1.96 * hits.std(ddof=1) / 20
        naive += abs(hits.mean() - 0.25) <= half
    assert 0.92 <= covered / 300 <= 1.0
    assert naive / 300 < 0.7
