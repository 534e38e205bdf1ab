"""Mean popularity: how well known the recommended items are.

    Popularity@K = mean over the items i of L_u of the number of training interactions of i

Neither direction is better: the metric shows how far a system leans on what everybody likes.
"""

from __future__ import annotations

import numpy as np

from mmbench.metrics.base import register_metric
from mmbench.metrics.lists import FloatArray, RankedLists


@register_metric("popularity", label="Popularity", higher_is_better=None)
def mean_popularity(lists: RankedLists, k: int) -> FloatArray:
    """Popularity@k of each user [U], in interactions; NaN for an empty list.

    Padding is left out of the mean. Relevant items do not enter; a user without any is NaN all
    the same, so that every per-user metric averages over the same users.
    """
    items = lists.items_at(k)
    padded = np.append(lists.popularity, 0)  # padding is -1, and reads the extra last place
    length = (items >= 0).sum(axis=1)
    mean = padded[items].sum(axis=1) / length.clip(min=1)
    return lists.where_relevant(np.where(length > 0, mean, np.nan))
