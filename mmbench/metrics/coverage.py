"""Item coverage: the share of the catalogue that reaches anybody.

    Coverage@K = |union over users u of L_u| / number of items

A system that shows everybody the same K items covers K / number of items.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("coverage", label="Coverage", per_user=False)
def item_coverage(lists: RankedLists, k: int) -> FloatArray:
    """Coverage@k of the whole system [1], in [0, 1]; NaN for an empty catalogue or no users.

    Every list counts, that of a user without relevant items too.
    """
    n_items = len(lists.popularity)
    if n_items == 0 or lists.n_users == 0:
        return np.array([np.nan])
    shown = np.zeros(n_items + 1, dtype=np.bool_)
    shown[lists.items_at(k)] = True  # padding is -1, and marks the extra last place
    return np.array([shown[:-1].sum() / n_items])
