"""Every metric against an independent brute force, and the laws that all of them obey."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.errors import ConfigError
from mmbench.metrics.base import METRICS, Metric
from mmbench.metrics.lists import RankedLists

ListsBuilder = Callable[[list[list[int]], list[set[int]], list[int]], RankedLists]
Case = tuple[list[list[int]], list[set[int]], list[int]]

RELEVANCE = ["hr", "map", "mrr", "ndcg", "precision", "recall"]
DEPTH = 8


def brute_force(name: str, shown: list[int], relevant: set[int], k: int) -> float:
    """One user's value by sets and loops, from the definitions alone."""
    if not relevant:
        return math.nan
    top = [item for item in shown[:k] if item != -1]
    found = set(top) & relevant
    if name == "recall":
        return len(found) / len(relevant)
    if name == "precision":
        return len(found) / k
    if name == "hr":
        return 1.0 if found else 0.0
    if name == "mrr":
        return max([1 / (rank + 1) for rank, item in enumerate(top) if item in relevant] or [0.0])
    if name == "ndcg":
        gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(top) if item in relevant)
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
        return gain / ideal
    if name == "map":
        total = 0.0
        for rank, item in enumerate(top):
            if item in relevant:
                total += len(set(top[: rank + 1]) & relevant) / (rank + 1)
        return total / min(k, len(relevant))
    raise AssertionError(name)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Users with lists of distinct items, some padded, and relevant sets, some empty."""
    n_items = draw(st.integers(DEPTH, 14))
    ranked, relevant = [], []
    for _ in range(draw(st.integers(1, 6))):
        shown = draw(st.permutations(range(n_items)))[: draw(st.integers(0, DEPTH))]
        ranked.append([*shown, *[-1] * (DEPTH - len(shown))])
        relevant.append(draw(st.sets(st.integers(0, n_items - 1), max_size=n_items)))
    popularity = draw(st.lists(st.integers(0, 99), min_size=n_items, max_size=n_items))
    return ranked, relevant, popularity


def test_the_tests_below_know_every_metric() -> None:
    assert METRICS.names() == sorted([*RELEVANCE, "coverage", "popularity"]), (
        "a new metric needs its literal definition in brute_force, and its name in RELEVANCE"
    )


@given(case=cases(), k=st.integers(1, DEPTH))
def test_agrees_with_brute_force(build_lists: ListsBuilder, case: Case, k: int) -> None:
    ranked, relevant, _ = case
    for name in RELEVANCE:
        values = Metric(name, k).values(build_lists(*case))
        expected = [
            brute_force(name, shown, wanted, k)
            for shown, wanted in zip(ranked, relevant, strict=True)
        ]
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14, err_msg=name)


@given(case=cases(), k=st.integers(1, DEPTH))
def test_coverage_and_popularity_agree_with_brute_force(
    build_lists: ListsBuilder, case: Case, k: int
) -> None:
    ranked, relevant, popularity = case
    tops = [[item for item in shown[:k] if item != -1] for shown in ranked]
    union = {item for top in tops for item in top}
    lists = build_lists(*case)
    assert Metric("coverage", k).values(lists).tolist() == [len(union) / len(popularity)]
    means = [
        sum(popularity[item] for item in top) / len(top) if top and wanted else math.nan
        for top, wanted in zip(tops, relevant, strict=True)
    ]
    np.testing.assert_allclose(Metric("popularity", k).values(lists), means, rtol=1e-14)


@given(case=cases(), k=st.integers(1, DEPTH))
def test_values_lie_between_0_and_1(build_lists: ListsBuilder, case: Case, k: int) -> None:
    lists = build_lists(*case)
    for name in [*RELEVANCE, "coverage"]:
        values = Metric(name, k).values(lists)
        defined = values[~np.isnan(values)]
        assert ((defined >= 0) & (defined <= 1)).all(), name


@given(n_relevant=st.integers(1, 12), k=st.integers(1, DEPTH))
def test_a_perfect_ranking_scores_1(build_lists: ListsBuilder, n_relevant: int, k: int) -> None:
    # As many relevant items as fit stand on top; the rest of the catalogue follows.
    lists = build_lists([list(range(DEPTH))], [set(range(n_relevant))], [1] * 12)
    for name in ["hr", "map", "mrr", "ndcg"]:
        assert Metric(name, k).values(lists)[0] == 1.0, name  # exactly, no rounding
    # These two have a smaller ceiling where k and |T| differ.
    assert Metric("recall", k).values(lists)[0] == min(k, n_relevant) / n_relevant
    assert Metric("precision", k).values(lists)[0] == min(k, n_relevant) / k


@given(case=cases(), k=st.integers(1, DEPTH), data=st.data())
def test_moving_a_hit_up_never_hurts(
    build_lists: ListsBuilder, case: Case, k: int, data: st.DataObject
) -> None:
    ranked, relevant, popularity = case
    moves = [
        (user, rank)
        for user, shown in enumerate(ranked)
        for rank in range(1, DEPTH)
        if shown[rank] in relevant[user] and shown[rank - 1] not in relevant[user]
    ]
    if not moves:
        return
    user, rank = data.draw(st.sampled_from(moves))
    better = [list(shown) for shown in ranked]
    better[user][rank - 1], better[user][rank] = better[user][rank], better[user][rank - 1]
    for name in RELEVANCE:
        before = Metric(name, k).values(build_lists(*case))
        after = Metric(name, k).values(build_lists(better, relevant, popularity))
        assert after[user] >= before[user], name
        others = np.arange(len(ranked)) != user
        np.testing.assert_array_equal(after[others], before[others])


@given(case=cases(), k=st.integers(1, DEPTH), seed=st.integers(0, 99))
def test_renaming_items_changes_nothing(
    build_lists: ListsBuilder, case: Case, k: int, seed: int
) -> None:
    ranked, relevant, popularity = case
    names = np.random.default_rng(seed).permutation(len(popularity)).tolist()
    renamed_popularity = [0] * len(popularity)
    for item, count in enumerate(popularity):
        renamed_popularity[names[item]] = count
    renamed = build_lists(
        [[-1 if item == -1 else names[item] for item in shown] for shown in ranked],
        [{names[item] for item in wanted} for wanted in relevant],
        renamed_popularity,
    )
    for name in METRICS.names():
        metric = Metric(name, k)
        np.testing.assert_array_equal(metric.values(renamed), metric.values(build_lists(*case)))


@given(case=cases(), k=st.integers(1, DEPTH), data=st.data())
@settings(max_examples=50)
def test_a_user_scores_the_same_in_any_company(
    build_lists: ListsBuilder, case: Case, k: int, data: st.DataObject
) -> None:
    lists = build_lists(*case)
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(case[0]), max_size=len(case[0])))
    )
    for name in [*RELEVANCE, "popularity"]:
        metric = Metric(name, k)
        np.testing.assert_array_equal(
            metric.values(lists.restrict(keep)), metric.values(lists)[keep]
        )


@pytest.mark.parametrize("name", RELEVANCE)
def test_padding_never_counts_even_if_marked_as_a_hit(build_lists: ListsBuilder, name: str) -> None:
    lists = build_lists([[4, -1, -1]], [{0, 1}], [1] * 5)
    lists.hits[0, 1:] = True  # what a broken writer might have stored
    assert Metric(name, 3).values(lists).tolist() == [0.0]


@pytest.mark.parametrize("name", [*RELEVANCE, "coverage", "popularity"])
def test_a_cut_off_beyond_the_depth_is_refused(build_lists: ListsBuilder, name: str) -> None:
    lists = build_lists([[0, 1, 2]], [{0}], [1] * 5)
    message = r"needs lists of 4 items, but only 3 were stored; choose k <= 3, or train again"
    with pytest.raises(ConfigError, match=message):
        Metric(name, 4).values(lists)
    # The plain function, which other code may call directly, does not slice silently either.
    with pytest.raises(ConfigError, match=message):
        METRICS.get(name).obj(lists, 4)
    with pytest.raises(ConfigError, match="cut-off of 1 or more"):
        METRICS.get(name).obj(lists, 0)


def test_no_users_give_no_values(build_lists: ListsBuilder) -> None:
    nobody = build_lists([[0, 1, 2]], [{0}], [1] * 5).restrict(np.array([False]))
    for name in [*RELEVANCE, "popularity"]:
        assert Metric(name, 2).values(nobody).shape == (0,), name


def test_a_random_ranking_scores_as_chance() -> None:
    # E[recall@k] = E[precision@k * k / |T|] = k / I for a list drawn at random.
    rng = np.random.default_rng(5)
    n_users, n_items, k = 20_000, 50, 10
    items = rng.permuted(np.tile(np.arange(n_items), (n_users, 1)), axis=1)[:, :k]
    lists = RankedLists(
        users=np.arange(n_users),
        items=items,
        hits=items < 2,
        relevant_offsets=np.arange(n_users + 1) * 2,
        relevant_items=np.tile([0, 1], n_users),
        popularity=np.arange(n_items),
        activity=np.ones(n_users, dtype=np.int64),
    )
    recall = Metric("recall", k).values(lists)
    # The standard error is below 0.3 / sqrt(20000) = 0.0021; four of them are allowed.
    assert abs(recall.mean() - k / n_items) < 0.0085
    assert abs(Metric("popularity", k).values(lists).mean() - 24.5) < 0.2


def test_twenty_thousand_users_take_milliseconds() -> None:
    rng = np.random.default_rng(3)
    n_users, depth, n_items = 20_000, 100, 7_000
    lists = RankedLists(
        users=np.arange(n_users),
        items=rng.integers(0, n_items, (n_users, depth)),
        hits=rng.random((n_users, depth)) < 0.02,
        relevant_offsets=np.arange(n_users + 1) * 2,
        relevant_items=rng.integers(0, n_items, n_users * 2),
        popularity=rng.integers(0, 500, n_items),
        activity=np.ones(n_users, dtype=np.int64),
    )
    start = time.perf_counter()
    for name in METRICS.names():
        Metric(name, 100).values(lists)
    # Some 0.1 s in all; a loop over users would need several seconds.
    assert time.perf_counter() - start < 2.0
