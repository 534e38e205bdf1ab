"""Precision: the share of the list that is relevant.

    Precision@K = |L_u intersect T_u| / K

The division is by K even where a list is shorter, so padding counts as a miss.
"""

from __future__ import annotations

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("precision", label="Precision")
def precision(lists: RankedLists, k: int) -> FloatArray:
    """Precision@k of each user [U], in [0, 1]; NaN for a user without relevant items."""
    return lists.where_relevant(lists.hits_at(k).sum(axis=1) / k)
