from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.lists import RankedLists
from mmbench.metrics.mrr import reciprocal_rank


def test_golden(five_items: RankedLists) -> None:
    assert_allclose(reciprocal_rank(five_items, 1), [0, 1 / 1, 0, np.nan])
    assert_allclose(reciprocal_rank(five_items, 4), [1 / 2, 1 / 1, 0, np.nan])


def test_a_hit_below_the_cut_off_is_no_hit(five_items: RankedLists) -> None:
    # User 0 has its first hit at rank 2.
    assert reciprocal_rank(five_items, 1)[0] == 0
