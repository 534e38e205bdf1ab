from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.lists import RankedLists
from mmbench.metrics.ndcg import ndcg

LOG2_3, LOG2_5 = 1.5849625007211562, 2.321928094887362


def test_golden(five_items: RankedLists) -> None:
    # user 0, ranks 2 and 4 of two relevant: (1/log2(3) + 1/log2(5)) / (1/log2(2) + 1/log2(3))
    #   = (0.63092975 + 0.43067656) / 1.63092975 = 0.65092093
    # user 1, rank 1 of three relevant: 1 / (1 + 0.63092975 + 1/log2(4)) = 1 / 2.13092975
    #   = 0.46927873
    user_0 = (1 / LOG2_3 + 1 / LOG2_5) / (1 + 1 / LOG2_3)
    user_1 = 1 / (1 + 1 / LOG2_3 + 0.5)
    assert_allclose([user_0, user_1], [0.65092093, 0.46927873], rtol=0, atol=1e-8)
    assert_allclose(ndcg(five_items, 4), [user_0, user_1, 0, np.nan], rtol=0, atol=1e-15)


def test_golden_with_the_ideal_cut_at_k(five_items: RankedLists) -> None:
    # At k = 1 the ideal of every user is one hit at rank 1, whatever the number of relevant items.
    assert_allclose(ndcg(five_items, 1), [0, 1, 0, np.nan], rtol=0, atol=1e-15)
    # At k = 2: user 0 0.63092975 / 1.63092975; user 1 1 / 1.63092975.
    expected = [0.38685281, 0.61314719, 0, np.nan]
    assert_allclose(ndcg(five_items, 2), expected, rtol=0, atol=1e-8)


def test_the_ideal_counts_relevant_items_that_no_list_holds(five_items: RankedLists) -> None:
    # Built from the retrieved hits alone, user 1 (one hit, at rank 1) would score 1.
    assert ndcg(five_items, 4)[1] < 0.5
