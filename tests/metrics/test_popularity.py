from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.lists import RankedLists
from mmbench.metrics.popularity import mean_popularity

ListsBuilder = Callable[[list[list[int]], list[set[int]], list[int]], RankedLists]


def test_golden(five_items: RankedLists) -> None:
    # Training interactions of items 0..4: 10, 4, 6, 2, 0.
    # user 0: 3 0 4 1 -> (2 + 10 + 0 + 4) / 4 = 4;  user 1: 2 4 -> (6 + 0) / 2 = 3, padding out
    # user 2: 1 2 3 4 -> (4 + 6 + 2 + 0) / 4 = 3
    assert_allclose(mean_popularity(five_items, 4), [4, 3, 3, np.nan])
    # At k = 2: (2 + 10) / 2, (6 + 0) / 2, (4 + 6) / 2.
    assert_allclose(mean_popularity(five_items, 2), [6, 3, 5, np.nan])


def test_an_empty_list_is_undefined(build_lists: ListsBuilder) -> None:
    lists = build_lists([[-1, -1], [0, -1]], [{0}, {0}], [7])
    assert_allclose(mean_popularity(lists, 2), [np.nan, 7])
