"""Tests of paired differences: do two systems differ for such users?

The unit is the user. Each user's metric under A and under B, averaged over seeds beforehand,
makes one pair, and d is the difference A - B.

    t-test       t = mean(d) / (sd(d) / sqrt(n)), two-sided, n - 1 degrees of freedom
    wilcoxon     signed ranks of |d|, two-sided; zero differences are dropped before ranking
                 (SciPy's zero_method="wilcox"), exact up to 50 pairs without ties or zeros
                 and up to 13 pairs with them, else the normal approximation with its
                 correction for ties
    permutation  all sign patterns of d are equally likely under the null; exact where at most
                 `n_resamples` patterns exist, else p = (b + 1) / (n_resamples + 1)
    bootstrap    BCa interval of mean(d) and the p that belongs to it (see effects.py)

A permutation of zeros changes nothing, so only non-zero differences count as signs. The
bootstrap is liberal for a few dozen users (6 to 8 % instead of 5 % at n = 20); the default is
the t-test.

Undefined and degenerate cases, the same for all four:

    a pair with NaN on either side   is dropped, and counted in `n_dropped`
    fewer than two pairs             p, statistic, interval and effect are NaN
    all differences zero             p = 1, statistic = 0, effect = 0, interval [0, 0]
    all differences equal, not zero  effect infinite, interval of no width; the t-test has
                                     p = 0 and an infinite statistic, as SciPy gives
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy import special, stats

from mmbench.errors import DataError, UnknownNameError
from mmbench.stats.effects import (
    FloatArray,
    bca_interval,
    bca_p,
    bootstrap_means,
    cohen_dz,
    mean_of,
    paired_differences,
    ratio,
    refuse_infinite,
    relative_difference,
    row_blocks,
    spread,
    t_interval,
)

N_RESAMPLES = 9_999


@dataclass(frozen=True)
class PairedResult:
    """What a paired test found.

    Attributes:
        method: name of the test, a key of `TESTS`.
        statistic: t, the smaller signed-rank sum, or the mean difference when resampling.
        p: two-sided, not corrected for other comparisons.
        difference: mean of A - B.
        relative_difference: `difference` as a share of B's mean; NaN where that is 0.
        ci_low: lower bound of the 95 % interval of the mean difference: BCa for "bootstrap",
            Student's t for the others.
        ci_high: upper bound of it.
        effect: Cohen's d_z, mean over standard deviation of the differences.
        wins: pairs in which A is larger.
        ties: pairs in which both are equal, up to rounding.
        losses: pairs in which A is smaller.
        n: pairs used.
        n_dropped: pairs left out because a side is NaN.
    """

    method: str
    statistic: float
    p: float
    difference: float
    relative_difference: float
    ci_low: float
    ci_high: float
    effect: float
    wins: int
    ties: int
    losses: int
    n: int
    n_dropped: int


@dataclass(frozen=True)
class _Pairs:
    differences: FloatArray  # [n]
    baseline: float  # mean of B over the same pairs
    n_dropped: int

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return mean_of(self.differences)

    @property
    def settled(self) -> tuple[float, float] | None:
        """Statistic and p where there is nothing to test, else None."""
        if self.n < 2:
            return float("nan"), float("nan")
        return None if self.differences.any() else (0.0, 1.0)

    def result(
        self,
        method: str,
        statistic_and_p: tuple[float, float],
        interval: tuple[float, float] | None = None,
    ) -> PairedResult:
        low, high = interval or t_interval(self.differences)
        return PairedResult(
            method=method,
            statistic=float(statistic_and_p[0]),
            p=float(statistic_and_p[1]),
            difference=self.mean,
            relative_difference=relative_difference(self.mean, self.baseline),
            ci_low=low,
            ci_high=high,
            effect=cohen_dz(self.differences),
            wins=int((self.differences > 0).sum()),
            ties=int((self.differences == 0).sum()),
            losses=int((self.differences < 0).sum()),
            n=self.n,
            n_dropped=self.n_dropped,
        )


def _pair(values_a: FloatArray, values_b: FloatArray) -> _Pairs:
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(
            f"a paired test needs one value per user on both sides, but got shapes {a.shape} and "
            f"{b.shape}; compare runs over the same test users"
        )
    refuse_infinite(a, b)
    keep = ~(np.isnan(a) | np.isnan(b))
    differences = paired_differences(a[keep], b[keep])
    return _Pairs(differences, mean_of(b[keep]), int((~keep).sum()))


def paired_t(
    values_a: FloatArray, values_b: FloatArray, rng: np.random.Generator | None = None
) -> PairedResult:
    """Two-sided paired t-test of the users' values [U] under A and under B.

    Args:
        values_a: one value per user [U].
        values_b: one value per user [U], the baseline.
        rng: not used; here so that every test can be called alike.

    Raises:
        DataError: the sides differ in shape, or a value is infinite.
    """
    pairs = _pair(values_a, values_b)
    found = pairs.settled
    if found is None:
        t = ratio(pairs.mean, spread(pairs.differences) / np.sqrt(pairs.n))
        found = t, 2 * float(special.stdtr(pairs.n - 1, -abs(t)))
    return pairs.result("t-test", found)


def _rounded(differences: FloatArray) -> FloatArray:
    """Differences to 12 digits of the largest: 1/3 and 2/3 - 1/3 are equal ranks, not two."""
    unit = float(np.abs(differences).max()) * 1e-12
    return np.round(differences / unit) * unit if unit > 0 else differences


def wilcoxon(
    values_a: FloatArray, values_b: FloatArray, rng: np.random.Generator | None = None
) -> PairedResult:
    """Two-sided Wilcoxon signed-rank test of the users' values [U] under A and under B.

    Args:
        values_a: one value per user [U].
        values_b: one value per user [U], the baseline.
        rng: not used; here so that every test can be called alike.

    Raises:
        DataError: the sides differ in shape, or a value is infinite.
    """
    pairs = _pair(values_a, values_b)
    found = pairs.settled
    if found is None:
        with warnings.catch_warnings():
            # Some SciPy versions warn that the normal approximation is rough for few pairs.
            warnings.simplefilter("ignore", UserWarning)
            tested = stats.wilcoxon(_rounded(pairs.differences), zero_method="wilcox")
        found = float(tested.statistic), float(tested.pvalue)
    return pairs.result("wilcoxon", found)


def permutation(
    values_a: FloatArray,
    values_b: FloatArray,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> PairedResult:
    """Two-sided sign-flip test of the mean difference of the users' values [U].

    Args:
        values_a: one value per user [U].
        values_b: one value per user [U], the baseline.
        rng: draws the signs, where not all patterns are counted.
        n_resamples: number of patterns drawn; with no more patterns than that, all are counted.

    Raises:
        DataError: the sides differ in shape, or a value is infinite.
    """
    pairs = _pair(values_a, values_b)
    found = pairs.settled
    if found is None:
        p = _sign_flip_p(pairs.differences[pairs.differences != 0], rng, n_resamples)
        found = pairs.mean, p
    return pairs.result("permutation", found)


def _sign_flip_p(d: FloatArray, rng: np.random.Generator, n_resamples: int) -> float:
    total = d.sum()
    # Equal sums added in another order must still count as equal.
    reached = abs(total) - 1e-12 * np.abs(d).sum()
    if len(d) < 63 and 2 ** len(d) <= n_resamples:
        every = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
        return float(np.mean(np.abs(total - 2 * (every @ d)) >= reached))
    extreme = 0
    for rows in row_blocks(n_resamples, len(d)):
        drawn = rng.integers(0, 256, size=(rows, -(-len(d) // 8)), dtype=np.uint8)
        flipped = np.unpackbits(drawn, axis=1, count=len(d))
        extreme += int((np.abs(total - 2 * (flipped @ d)) >= reached).sum())
    return (extreme + 1) / (n_resamples + 1)


def bootstrap(
    values_a: FloatArray,
    values_b: FloatArray,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> PairedResult:
    """BCa bootstrap over users of the mean difference of their values [U].

    Args:
        values_a: one value per user [U].
        values_b: one value per user [U], the baseline.
        rng: draws the resamples.
        n_resamples: number of resamples; p is never below 1 / (n_resamples + 1).

    Raises:
        DataError: the sides differ in shape, or a value is infinite.
    """
    pairs = _pair(values_a, values_b)
    if pairs.settled is not None:
        return pairs.result("bootstrap", pairs.settled)
    if spread(pairs.differences) == 0:  # every resample is the sample
        return pairs.result("bootstrap", (pairs.mean, 1 / (n_resamples + 1)))
    means = bootstrap_means(pairs.differences, rng, n_resamples)
    found = pairs.mean, bca_p(pairs.differences, means)
    return pairs.result("bootstrap", found, bca_interval(pairs.differences, means))


PairedTest = Callable[[FloatArray, FloatArray, np.random.Generator], PairedResult]
TESTS: Mapping[str, PairedTest] = MappingProxyType(
    {
        "t-test": paired_t,
        "wilcoxon": wilcoxon,
        "permutation": permutation,
        "bootstrap": bootstrap,
    }
)


def paired_test(name: str) -> PairedTest:
    """The paired test of that name, called with (values_a, values_b, rng).

    Raises:
        UnknownNameError: there is none.
    """
    if name not in TESTS:
        raise UnknownNameError("significance test", name, TESTS)
    return TESTS[name]
