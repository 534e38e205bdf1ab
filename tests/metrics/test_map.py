from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.lists import RankedLists
from mmbench.metrics.map import average_precision


def test_golden(five_items: RankedLists) -> None:
    # user 0, ranks 2 and 4: (1/2 + 2/4) / min(4, 2) = 1/2;  user 1, rank 1: (1/1) / min(4, 3)
    expected = [1 / 2, 1 / 3, 0, np.nan]
    assert_allclose(average_precision(five_items, 4), expected, rtol=0, atol=1e-15)
    # At k = 2: user 0 (1/2) / 2 = 1/4;  user 1 (1/1) / min(2, 3) = 1/2.
    expected = [1 / 4, 1 / 2, 0, np.nan]
    assert_allclose(average_precision(five_items, 2), expected, rtol=0, atol=1e-15)
