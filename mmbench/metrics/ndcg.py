"""Normalised discounted cumulative gain: hits count less, the lower they stand.

    DCG@K  = sum over r = 1..K of h_r / log2(r + 1)
    IDCG@K = sum over r = 1..min(K, |T_u|) of 1 / log2(r + 1)
    NDCG@K = DCG@K / IDCG@K

h_r is 1 where the item at rank r is relevant. The ideal is built from all relevant items T_u.
Some public code (LATTICE, MICRO, MMSSL) builds it from the hits that the list happens to hold;
that inflates the metric, and such figures must not be compared with these.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("ndcg", label="NDCG")
def ndcg(lists: RankedLists, k: int) -> FloatArray:
    """NDCG@k of each user [U], in [0, 1]; NaN for a user without relevant items."""
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    # Gain and ideal are both added rank by rank, so a perfect list scores 1 exactly, and a
    # user's value does not depend on which users are evaluated with it. A product with BLAS
    # promises neither.
    users, ranks = np.nonzero(lists.hits_at(k))
    gain = np.bincount(users, weights=discount[ranks], minlength=lists.n_users)
    ideal = np.cumsum(discount)[lists.n_relevant.clip(1, k) - 1]
    return lists.where_relevant(gain / ideal)
