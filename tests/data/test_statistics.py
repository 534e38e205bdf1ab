import numpy as np
import pytest

from mmbench.data.statistics import count_rows, distribution, index_leak, tied_users


def test_counts_of_a_worked_example():
    # Users 0 and 1 have 3 and 1 rows; items 0, 1, 2 have 2, 1, 1; item 3 has none.
    counts = count_rows(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0]), 2, 4)
    assert counts["density"] == 4 / 8
    assert counts["items_unseen"] == 1
    assert counts["per_user"] == {
        "min": 1,
        "q25": 1.5,
        "median": 2,
        "mean": 2,
        "q75": 2.5,
        "max": 3,
    }
    assert counts["per_item"]["mean"] == pytest.approx(4 / 3)
    assert distribution(np.array([], dtype=np.int64)) == {}


def test_ties_are_counted_within_users():
    user = np.array([0, 0, 0, 1, 1, 2])
    time = np.array(
        [5, 7, 7, 7, 9, 9]
    )  # user 0 ends in a tie; equal times across users do not count
    assert tied_users(user, time) == (1, 2)
    assert tied_users(user[:1], time[:1]) == (0, 0)


def test_the_index_leak_is_a_share_of_users():
    user = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    item = np.array([1, 2, 3, 5, 6, 4, 0, 9])  # user 0 leaks, user 1 does not, user 2 has one row
    held = np.array([0, 0, 1, 0, 0, 1, 0, 1], dtype=bool)
    assert index_leak(user, item, held) == 0.5
