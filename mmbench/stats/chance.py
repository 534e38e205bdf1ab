"""Chance: what a ranking drawn at random scores, exactly.

Of C candidates in an order drawn at random R are relevant. At any rank up to C the item is
relevant with probability R / C, and so is each other one given that it is, with
(R - 1) / (C - 1). With n = min(K, C):

    recall@K     n / C                                    whatever R is
    precision@K  n R / (C K)
    ndcg@K       (R / C) sum_{r <= n} 1 / log2(r + 1)  /  sum_{r <= min(K, R)} 1 / log2(r + 1)
    map@K        (R / C) sum_{r <= n} (1 + (r - 1) (R - 1) / (C - 1)) / r  /  min(K, R)
    hr@K         1 - P_n
    mrr@K        sum_{r <= n} (P_{r-1} - P_r) / r

where P_r, that there is no hit among the first r, is P_{r-1} (C - R - r + 1) / (C - r + 1).
"""

from __future__ import annotations

import numpy as np

from mmbench.stats.effects import FloatArray


def chance(name: str, k: int, n_candidates: FloatArray, n_relevant: FloatArray) -> FloatArray:
    """The expected value of a metric for a random ranking, one per row [N].

    Args:
        name: "recall", "precision", "ndcg", "map", "hr" or "mrr"; others give NaN.
        k: the cut-off.
        n_candidates: C of each row, the relevant items included [N].
        n_relevant: R of each row [N]; rows with none are NaN.
    """
    rows = np.stack([np.asarray(n_candidates), np.asarray(n_relevant)], axis=1).astype(np.int64)
    # Rows differ in few pairs of numbers, and each pair costs k steps.
    pairs, place = np.unique(rows, axis=0, return_inverse=True)
    values = np.array([_chance(name, k, int(c), int(r)) for c, r in pairs], dtype=np.float64)
    return values[place.reshape(-1)]


def _chance(name: str, k: int, candidates: int, relevant: int) -> float:
    n = min(k, candidates)
    if relevant < 1 or n < 1:
        return float("nan")
    ranks = np.arange(1, n + 1)
    share = relevant / candidates
    if name == "recall":
        return n / candidates
    if name == "precision":
        return n * share / k
    if name == "ndcg":
        ideal = (1 / np.log2(np.arange(2, min(k, relevant) + 2))).sum()
        return float(share * (1 / np.log2(ranks + 1)).sum() / ideal)
    if name == "map":
        others = (relevant - 1) / max(1, candidates - 1)
        return float(share * ((1 + (ranks - 1) * others) / ranks).sum() / min(k, relevant))
    if name in ("hr", "mrr"):
        left = np.maximum(candidates - relevant - ranks + 1, 0) / (candidates - ranks + 1)
        missed = np.concatenate([[1.0], np.cumprod(left)])
        return float(1 - missed[-1] if name == "hr" else (-np.diff(missed) / ranks).sum())
    return float("nan")
