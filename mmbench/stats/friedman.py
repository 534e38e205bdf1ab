"""Systems over several datasets: average ranks, the Friedman test and its post-hoc tests.

Metrics of different datasets are not measured on one scale, so they are never pooled; only the
order of the systems within each dataset counts. With N datasets, M systems and average ranks
R_j (1 is best, ties share their mean rank; Demsar, JMLR 2006):

    chi2 = 12 N / (M (M + 1)) * sum over j of (R_j - (M + 1) / 2)^2 / C,   M - 1 df
    C    = 1 - sum over tied groups of (t^3 - t) / (N (M^3 - M))
    post-hoc of systems i, j:   z = (R_i - R_j) / sqrt(M (M + 1) / (6 N))
    Nemenyi   all pairs: apart where sqrt(2) |z| exceeds the quantile of the studentised range
              of M means with infinite df
    Holm      two-sided normal p of z, corrected by Holm: against a control, or all pairs

The chi-square approximation is conservative for a handful of datasets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from mmbench.errors import DataError
from mmbench.stats.correction import adjust
from mmbench.stats.effects import FloatArray


@dataclass(frozen=True)
class FriedmanResult:
    """Average ranks and the test that they differ at all.

    Attributes:
        average_ranks: mean rank of each system over the datasets [M]; 1 is best.
        statistic: chi-square, corrected for ties; 0 where every system ties everywhere.
        df: M - 1.
        p: of the hypothesis that all systems are alike; NaN with a single dataset.
        n_datasets: datasets used, N.
        n_dropped: datasets left out because a value is NaN.
    """

    average_ranks: FloatArray
    statistic: float
    df: int
    p: float
    n_datasets: int
    n_dropped: int

    @property
    def rank_error(self) -> float:
        """Standard error of the difference of two average ranks under the null."""
        m = len(self.average_ranks)
        return float(np.sqrt(m * (m + 1) / (6 * self.n_datasets)))


def friedman(values: FloatArray, *, higher_is_better: bool = True) -> FriedmanResult:
    """Friedman test of systems measured on several datasets.

    Args:
        values: one value per dataset and system [N, M]; a dataset with a NaN is left out.
        higher_is_better: whether the largest value of a dataset has rank 1.

    Raises:
        DataError: there are fewer than two systems, or no dataset without NaN.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise DataError(
            f"ranking over datasets needs values [datasets, systems] of two or more systems, but "
            f"got shape {table.shape}"
        )
    whole = ~np.isnan(table).any(axis=1)
    if not whole.any():
        raise DataError(
            "no dataset has a value for every system; run all systems on at least one dataset"
        )
    ranks = stats.rankdata(-table[whole] if higher_is_better else table[whole], axis=1)
    n, m = ranks.shape
    average = ranks.mean(axis=0)
    # Equals 1 - sum(t^3 - t) / (N (M^3 - M)): ties shrink the variance of the ranks.
    untied = ((ranks - (m + 1) / 2) ** 2).sum() / (n * (m**3 - m) / 12)
    statistic, p = 0.0, 1.0
    if untied > 0:
        squares = ((average - (m + 1) / 2) ** 2).sum()
        statistic = float(12 * n / (m * (m + 1)) * squares / untied)
        p = float(special.chdtrc(m - 1, statistic))
    return FriedmanResult(
        average_ranks=average,
        statistic=statistic,
        df=m - 1,
        p=p if n > 1 else float("nan"),
        n_datasets=n,
        n_dropped=int((~whole).sum()),
    )


def critical_difference(result: FriedmanResult, alpha: float = 0.05) -> float:
    """How far two average ranks must lie apart for Nemenyi's test to separate them."""
    m = len(result.average_ranks)
    q = float(stats.studentized_range.isf(alpha, m, np.inf))
    return q / float(np.sqrt(2)) * result.rank_error


def holm_against(result: FriedmanResult, control: int) -> FloatArray:
    """Holm-corrected p-value of each system against one of them [M]; NaN for that one."""
    p = _normal_p(_z(result)[control])
    p[control] = np.nan  # not a comparison, so not in the family either
    return adjust(p, "holm")


def holm_pairs(result: FriedmanResult) -> FloatArray:
    """Holm-corrected p-value of every pair of systems [M, M]; 1 on the diagonal."""
    m = len(result.average_ranks)
    above = np.triu_indices(m, k=1)
    p = np.ones((m, m))
    p[above] = adjust(_normal_p(_z(result)[above]), "holm")
    p.T[above] = p[above]
    return p


def _z(result: FriedmanResult) -> FloatArray:
    ranks = result.average_ranks
    return (ranks[:, None] - ranks[None, :]) / result.rank_error


def _normal_p(z: FloatArray) -> FloatArray:
    return np.asarray(2 * special.ndtr(-np.abs(z)), dtype=np.float64)
