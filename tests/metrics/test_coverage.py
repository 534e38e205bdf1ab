from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.coverage import item_coverage
from mmbench.metrics.lists import RankedLists


def test_golden(five_items: RankedLists) -> None:
    # First places: 3, 2, 1, 0 -> 4 of 5 items.  First two: 3 0 | 2 4 | 1 2 | 0 1 -> all 5.
    assert_allclose(item_coverage(five_items, 1), [4 / 5])
    assert_allclose(item_coverage(five_items, 2), [5 / 5])


def test_padding_is_no_item(five_items: RankedLists) -> None:
    only_padded = five_items.restrict(np.array([False, True, False, False]))
    assert_allclose(item_coverage(only_padded, 4), [2 / 5])  # items 2 and 4


def test_nobody_and_nothing_to_cover_are_undefined(five_items: RankedLists) -> None:
    nobody = five_items.restrict(np.zeros(4, dtype=bool))
    assert np.isnan(item_coverage(nobody, 4)).tolist() == [True]
