"""Recall: the share of a user's relevant items that the list found.

    Recall@K = |L_u intersect T_u| / |T_u|

L_u is the list of user u, cut at K, and T_u are the user's relevant items. The division is by
|T_u| and not by min(K, |T_u|), so a user with more than K relevant items cannot reach 1.
"""

from __future__ import annotations

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("recall", label="Recall")
def recall(lists: RankedLists, k: int) -> FloatArray:
    """Recall@k of each user [U], in [0, 1]; NaN for a user without relevant items."""
    found = lists.hits_at(k).sum(axis=1)
    return lists.where_relevant(found / lists.n_relevant.clip(min=1))
