from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.lists import RankedLists
from mmbench.metrics.precision import precision


def test_golden(five_items: RankedLists) -> None:
    assert_allclose(precision(five_items, 1), [0 / 1, 1 / 1, 0 / 1, np.nan])
    assert_allclose(precision(five_items, 2), [1 / 2, 1 / 2, 0 / 2, np.nan])
    # User 1's list holds two items only; the division is by 4 all the same.
    assert_allclose(precision(five_items, 4), [2 / 4, 1 / 4, 0 / 4, np.nan])
