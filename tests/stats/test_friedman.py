"""Ranks over datasets against SciPy 1.17, and against the published tables of the tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mmbench.errors import DataError
from mmbench.stats.friedman import (
    critical_difference,
    friedman,
    holm_against,
    holm_pairs,
)


def test_golden() -> None:
    # Three datasets, three systems; ranks 1 2 3 | 1 3 2 | 1.5 1.5 3, averages 7/6, 13/6, 16/6.
    values = np.array([[0.9, 0.8, 0.7], [0.5, 0.3, 0.4], [0.6, 0.6, 0.2]])
    result = friedman(values)
    np.testing.assert_allclose(result.average_ranks, [7 / 6, 13 / 6, 16 / 6])
    # About the mean 2, in sixths: (-5)^2 + 1^2 + 4^2 = 42, so 12 * 3 / (3 * 4) * 42 / 36 = 3.5.
    # One tied pair: C = 1 - (2^3 - 2) / (3 * (27 - 3)) = 11 / 12, so chi2 = 3.5 * 12 / 11.
    assert result.statistic == pytest.approx(3.5 * 12 / 11)
    # With 2 degrees of freedom, P(chi2 > x) = exp(-x / 2).
    assert result.p == pytest.approx(math.exp(-3.5 * 6 / 11))
    assert (result.df, result.n_datasets, result.n_dropped) == (2, 3, 0)


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((rng.integers(2, 12), rng.integers(3, 8)))
    if seed % 2:
        values = np.round(values, 1)  # ties
    # scipy.stats.friedmanchisquare(*values.T), scipy 1.17.1
    theirs = stats.friedmanchisquare(*values.T)
    for mine in [friedman(values), friedman(-values, higher_is_better=False)]:
        np.testing.assert_allclose(
            [mine.statistic, mine.p], [theirs.statistic, theirs.pvalue], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("seed", range(2))
def test_post_hoc_tests_agree_with_the_normal(seed: int) -> None:
    values = np.random.default_rng(seed).random((9, 4))
    result = friedman(values)
    gaps = np.abs(np.subtract.outer(result.average_ranks, result.average_ranks))
    z = gaps / math.sqrt(4 * 5 / (6 * 9))
    # scipy.stats.norm.sf and statsmodels multipletests(method="holm")
    expected = multipletests(2 * stats.norm.sf(z[2, [0, 1, 3]]), method="holm")[1]
    mine = holm_against(result, control=2)
    assert math.isnan(mine[2])
    np.testing.assert_allclose(mine[[0, 1, 3]], expected, rtol=1e-12, atol=1e-12)
    above = np.triu_indices(4, 1)
    pairs = holm_pairs(result)
    expected = multipletests(2 * stats.norm.sf(z[above]), method="holm")[1]
    np.testing.assert_allclose(pairs[above], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(pairs, pairs.T)
    np.testing.assert_array_equal(pairs.diagonal(), 1)


@pytest.mark.parametrize(
    ("n_systems", "q"),
    # Demsar, JMLR 2006, table 5 (a): q at 0.05, already divided by sqrt(2). The table's entries
    # are off by up to 0.001.
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)],
)
def test_critical_difference_is_the_published_one(n_systems: int, q: float) -> None:
    values = np.random.default_rng(0).random((14, n_systems))
    expected = q * math.sqrt(n_systems * (n_systems + 1) / (6 * 14))
    assert critical_difference(friedman(values)) == pytest.approx(expected, rel=1e-3)


def test_all_ties_are_no_evidence() -> None:
    result = friedman(np.ones((4, 3)))
    assert (result.statistic, result.p) == (0, 1)
    np.testing.assert_array_equal(result.average_ranks, [2, 2, 2])


def test_a_dataset_with_a_gap_is_left_out_and_counted() -> None:
    result = friedman(np.array([[1.0, 2.0], [np.nan, 1.0], [3.0, 1.0]]))
    assert (result.n_datasets, result.n_dropped) == (2, 1)
    np.testing.assert_array_equal(result.average_ranks, [1.5, 1.5])


def test_one_dataset_gives_ranks_but_no_p() -> None:
    result = friedman(np.array([[0.1, 0.3, 0.2]]))
    np.testing.assert_array_equal(result.average_ranks, [3, 1, 2])
    assert math.isnan(result.p)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(DataError, match=r"two or more systems, but got shape \(2, 1\)"):
        friedman(np.ones((2, 1)))
    with pytest.raises(DataError, match="no dataset has a value for every system"):
        friedman(np.array([[np.nan, 1.0], [1.0, np.nan]]))


def test_level_and_power() -> None:
    rng = np.random.default_rng(7)
    null = [friedman(rng.random((12, 4))).p <= 0.05 for _ in range(1_500)]
    # Binomial error 0.0056; the chi-square approximation is a little conservative at N = 12.
    assert 0.03 < np.mean(null) < 0.05 + 3 * 0.0056
    better = np.array([0, 0, 0, 0.6])
    shifted = [friedman(rng.random((12, 4)) + better).p <= 0.05 for _ in range(100)]
    assert np.mean(shifted) > 0.9
