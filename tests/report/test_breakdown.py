from __future__ import annotations

import numpy as np
import pytest

from mmbench.errors import ConfigError
from mmbench.metrics.base import parse_metric
from mmbench.metrics.lists import RankedLists
from mmbench.report.breakdown import (
    activity_groups,
    columns_of,
    popularity_groups,
    restrict_items,
)


@pytest.fixture
def lists() -> RankedLists:
    """Three users over six items; the third list is padded."""
    return RankedLists(
        users=np.array([0, 1, 2]),
        items=np.array([[3, 1, 0], [2, 3, 4], [5, 0, -1]]),
        hits=np.array([[True, False, True], [False, True, False], [True, False, False]]),
        relevant_offsets=np.array([0, 2, 3, 5]),
        relevant_items=np.array([0, 3, 3, 5, 1]),
        popularity=np.array([50, 30, 10, 5, 5, 0]),
        activity=np.array([4, 8, 8]),
    )


def test_activity_groups_are_quantiles_that_keep_equal_users_together():
    # Quartiles of 1 1 1 1 2 3 4 5 (the 2nd, 4th and 6th value) are 1, 1 and 3.
    groups = activity_groups(np.array([5, 1, 1, 2, 1, 3, 1, 4]))
    assert [group.name for group in groups] == ["users 1", "users 2-3", "users 4-5"]
    assert [group.users.sum() for group in groups] == [4, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_every_user_is_in_one_activity_group(seed):
    activity = np.random.default_rng(seed).geometric(0.1, 200)
    groups = activity_groups(activity)
    assert (np.sum([group.users for group in groups], axis=0) == 1).all()
    assert len(groups) == 4


def test_head_mid_and_tail_collect_thirds_of_the_interactions():
    # Of 100 interactions the first item has 50: it begins in the first third; the second begins
    # at 50, in the second third; all others begin at 80 or later.
    groups = popularity_groups(np.array([30, 50, 10, 5, 5, 0]))
    assert [group.name for group in groups] == ["head 50", "mid 30", "tail 0-10"]
    assert [np.flatnonzero(group.items).tolist() for group in groups] == [[1], [0], [2, 3, 4, 5]]


def test_items_of_equal_popularity_share_a_group_even_if_that_leaves_one():
    groups = popularity_groups(np.full(7, 3))
    assert [(group.name, group.items.sum()) for group in groups] == [("head 3", 7)]


def test_items_without_interactions_are_tail():
    assert [group.name for group in popularity_groups(np.zeros(4, dtype=int))] == ["tail 0"]


def test_restricting_items_recounts_hits_and_relevant_items(lists):
    only = restrict_items(lists, np.array([True, True, False, False, False, False]))
    # User 0 keeps item 0, found at rank 3; user 1 keeps none; user 2 keeps item 1, not found.
    assert only.n_relevant.tolist() == [1, 0, 1]
    assert only.relevant_items.tolist() == [0, 1]
    assert parse_metric("recall@3").values(only).tolist() == pytest.approx(
        [1, np.nan, 0], nan_ok=True
    )
    assert parse_metric("recall@1").values(only).tolist() == pytest.approx(
        [0, np.nan, 0], nan_ok=True
    )


def test_restricting_to_the_last_item_does_not_count_padding(lists):
    # Padding is -1, which in Python also means the last item.
    only = restrict_items(lists, np.array([False] * 5 + [True]))
    assert only.hits.tolist() == [[False] * 3, [False] * 3, [True, False, False]]


def test_hits_and_relevant_items_of_all_groups_add_up(lab):
    whole = lab.lists(1.0, 3)
    parts = [restrict_items(whole, group.items) for group in popularity_groups(whole.popularity)]
    assert len(parts) == 3
    assert (np.sum([part.hits for part in parts], axis=0) == whole.hits).all()
    assert (np.sum([part.n_relevant for part in parts], axis=0) == whole.n_relevant).all()


def test_columns_by_k_share_one_family_per_metric(lists):
    columns = columns_of(
        [parse_metric("recall@1"), parse_metric("recall@2")], "k", lists, (1, 3, 50)
    )
    assert [(column.head, column.family) for column in columns] == [
        ("Recall@1", "recall"),
        ("Recall@3", "recall"),
    ]


def test_no_cutoff_within_the_stored_depth_is_refused(lists):
    with pytest.raises(ConfigError, match="no cut-off is within the 3 items"):
        columns_of([parse_metric("recall@1")], "k", lists, (50,))


def test_a_metric_of_the_whole_system_has_no_item_groups(lists):
    with pytest.raises(ConfigError, match="coverage@2 cannot be broken down by item-popularity"):
        columns_of([parse_metric("coverage@2")], "item-popularity", lists)
