"""Mean average precision: the precision at every hit, averaged.

    AP@K = (sum over r = 1..K of h_r * Precision@r) / min(K, |T_u|)

h_r is 1 where the item at rank r is relevant. Dividing by min(K, |T_u|) lets a user with more
than K relevant items reach 1. The mean over users is taken by the tables.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("map", label="MAP")
def average_precision(lists: RankedLists, k: int) -> FloatArray:
    """AP@k of each user [U], in [0, 1]; NaN for a user without relevant items."""
    hits = lists.hits_at(k)
    users, ranks = np.nonzero(hits)  # row by row, ranks ascending
    per_user = hits.sum(axis=1)
    before = np.repeat(np.cumsum(per_user) - per_user, per_user)
    hits_so_far = np.arange(len(users)) - before + 1
    total = np.bincount(users, weights=hits_so_far / (ranks + 1), minlength=lists.n_users)
    return lists.where_relevant(total / lists.n_relevant.clip(1, k))
