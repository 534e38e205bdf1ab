from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.lists import RankedLists
from mmbench.metrics.recall import recall


def test_golden(five_items: RankedLists) -> None:
    # user 0: 1 of 2 by rank 2, 2 of 2 by rank 4; user 1: 1 of 3; user 2: 0 of 1.
    assert_allclose(recall(five_items, 1), [0 / 2, 1 / 3, 0 / 1, np.nan], rtol=0, atol=1e-15)
    assert_allclose(recall(five_items, 2), [1 / 2, 1 / 3, 0 / 1, np.nan], rtol=0, atol=1e-15)
    assert_allclose(recall(five_items, 4), [2 / 2, 1 / 3, 0 / 1, np.nan], rtol=0, atol=1e-15)


def test_divides_by_all_relevant_items_even_when_k_is_smaller(five_items: RankedLists) -> None:
    # min(k, |T|) would give user 1 a recall@1 of 1.
    assert recall(five_items, 1)[1] == 1 / 3
