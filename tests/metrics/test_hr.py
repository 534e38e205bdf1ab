from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from mmbench.metrics.hr import hit_rate
from mmbench.metrics.lists import RankedLists


def test_golden(five_items: RankedLists) -> None:
    assert_allclose(hit_rate(five_items, 1), [0, 1, 0, np.nan])
    assert_allclose(hit_rate(five_items, 2), [1, 1, 0, np.nan])
    # Two hits are still one: user 0 has hits at ranks 2 and 4.
    assert_allclose(hit_rate(five_items, 4), [1, 1, 0, np.nan])
