"""Mean reciprocal rank: how early the first relevant item stands.

    RR@K = 1 / rank of the first hit within the first K, or 0 where there is none

The mean over users, which gives the metric its name, is taken by the tables.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("mrr", label="MRR")
def reciprocal_rank(lists: RankedLists, k: int) -> FloatArray:
    """RR@k of each user [U], in [0, 1]; NaN for a user without relevant items."""
    hits = lists.hits_at(k)
    first = hits.argmax(axis=1)  # 0 also where there is no hit, hence the next line
    return lists.where_relevant(np.where(hits.any(axis=1), 1.0 / (first + 1.0), 0.0))
