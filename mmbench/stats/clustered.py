"""The interval of a mean whose parts share both users and items.

Two users who are asked for the same cold item are no two independent looks at it: a model that
happens to put that item first is right for both. So users and items are both random (Cameron,
Gelbach and Miller, "Robust Inference With Multiway Clustering", JBES 2011). With e_ui the part
of user u and item i, its share of the mean taken off,

    V = sum_u (sum_i e_ui)^2 + sum_i (sum_u e_ui)^2 - sum_ui e_ui^2

each sum over n clusters times n / (n - 1); V is taken to be no smaller than either of the first
two. The interval is Student's with
the smaller number of clusters less one degree of freedom.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmbench.stats.effects import CONFIDENCE, FloatArray, t_quantile


def two_way_interval(
    users: NDArray[np.int64], items: NDArray[np.int64], parts: FloatArray, weights: FloatArray
) -> tuple[float, float]:
    """95 % interval of sum(parts), where users and items are both random.

    With all parts zero there is no spread to go by: the upper bound is then the share of which
    n clusters would show nothing with probability (1 - 0.95) / 2.

    Args:
        users: user of each pair [P].
        items: item of each pair [P].
        parts: what each pair adds to the mean [P].
        weights: share of each pair in the mean, 1 in all [P].

    Returns:
        the bounds; NaN with fewer than two users or items.
    """
    mean = float(parts.sum())
    _, by_user = np.unique(users, return_inverse=True)
    _, by_item = np.unique(items, return_inverse=True)
    n_clusters = [int(found.max(initial=-1)) + 1 for found in (by_user, by_item)]
    fewest = min(n_clusters)
    if fewest < 2:
        return float("nan"), float("nan")
    if not parts.any():
        return 0.0, float(1 - ((1 - CONFIDENCE) / 2) ** (1 / fewest))
    error = parts - mean * weights
    sums = [
        float((np.bincount(found.reshape(-1), weights=error) ** 2).sum() * n / (n - 1))
        for found, n in zip((by_user, by_item), n_clusters, strict=True)
    ]
    pairs = by_user.reshape(-1).astype(np.int64) * n_clusters[1] + by_item.reshape(-1)
    distinct, by_pair = np.unique(pairs, return_inverse=True)
    both = float((np.bincount(by_pair.reshape(-1), weights=error) ** 2).sum())
    both *= len(distinct) / (len(distinct) - 1)
    variance = max(*sums, sum(sums) - both)
    half = t_quantile(fewest - 1) * float(np.sqrt(variance))
    return mean - half, mean + half
