from __future__ import annotations

import numpy as np

from mmbench.metrics.lists import RankedLists


def test_shape_and_number_of_relevant_items(five_items: RankedLists) -> None:
    assert (five_items.n_users, five_items.depth) == (4, 4)
    assert five_items.n_relevant.tolist() == [2, 3, 1, 0]


def test_restrict_keeps_each_users_own_relevant_items(five_items: RankedLists) -> None:
    some = five_items.restrict(np.array([False, True, True, False]))
    assert some.users.tolist() == [1, 2]
    assert some.items.tolist() == [[2, 4, -1, -1], [1, 2, 3, 4]]
    assert some.relevant_offsets.tolist() == [0, 3, 4]
    assert some.relevant_items.tolist() == [0, 1, 2, 0]
    assert some.n_relevant.tolist() == [3, 1]


def test_users_without_relevant_items_are_undefined(five_items: RankedLists) -> None:
    values = five_items.where_relevant(np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_equal(values, [0.1, 0.2, 0.3, np.nan])
