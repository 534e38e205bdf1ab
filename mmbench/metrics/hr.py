"""Hit rate: whether the list found anything at all.

HR@K = 1 if |L_u intersect T_u| > 0, else 0
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("hr", label="HR")
def hit_rate(lists: RankedLists, k: int) -> FloatArray:
    """HR@k of each user [U], 0 or 1; NaN for a user without relevant items."""
    return lists.where_relevant(np.where(lists.hits_at(k).any(axis=1), 1.0, 0.0))
