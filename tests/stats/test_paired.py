"""Paired tests against SciPy 1.17, on random inputs with ties and zeros, and at the edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from mmbench.errors import DataError, UnknownNameError
from mmbench.stats.correction import adjust
from mmbench.stats.paired import (
    TESTS,
    PairedResult,
    bootstrap,
    paired_t,
    paired_test,
    permutation,
    wilcoxon,
)

Array = NDArray[np.float64]
NAMES = sorted(TESTS)


def run(name: str, a: object, b: object, seed: int = 0) -> PairedResult:
    return paired_test(name)(
        np.asarray(a, float), np.asarray(b, float), np.random.default_rng(seed)
    )


def sample(seed: int) -> tuple[Array, Array]:
    """Values as metrics have them: many zeros, many ties, or, for even seeds, neither."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 200))
    a, b = rng.random((2, n))
    if seed % 2:
        a, b = np.round(a * 4) / 4 * (rng.random(n) < 0.6), np.round(b * 4) / 4
    return a, b


@pytest.mark.parametrize("seed", range(20))
def test_t_agrees_with_scipy_and_statsmodels(seed: int) -> None:
    a, b = sample(seed)
    mine = paired_t(a, b)
    # scipy.stats.ttest_rel(a, b), scipy 1.17.1
    theirs = stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(
        [mine.statistic, mine.p, mine.ci_low, mine.ci_high],
        [theirs.statistic, theirs.pvalue, low, high],
        rtol=1e-12,
        atol=1e-12,
    )
    # statsmodels DescrStatsW(a - b).ttest_mean() and .tconfint_mean(), statsmodels 0.15.0
    described = DescrStatsW(a - b)
    t, p, _ = described.ttest_mean()
    np.testing.assert_allclose(
        [mine.statistic, mine.p, mine.ci_low, mine.ci_high],
        [t, p, *described.tconfint_mean(0.05)],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("seed", range(20))
def test_wilcoxon_agrees_with_scipy(seed: int) -> None:
    a, b = sample(seed)
    mine = wilcoxon(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        # scipy.stats.wilcoxon(a, b, zero_method="wilcox"), scipy 1.17.1
        theirs = stats.wilcoxon(a, b, zero_method="wilcox")
    np.testing.assert_allclose(
        [mine.statistic, mine.p], [theirs.statistic, theirs.pvalue], rtol=1e-12, atol=1e-12
    )


def test_wilcoxon_golden() -> None:
    # d = 1, -2, 3, 4: ranks 1 to 4, the negative ones sum to 2. Of the 16 sign patterns those
    # with a sum of at most 2 are {}, {1}, {2}, hence p = 2 * 3 / 16.
    few = wilcoxon(np.array([1.0, 0, 3, 4]), np.array([0.0, 2, 0, 0]))
    assert few.statistic == 2
    assert few.p == pytest.approx(6 / 16, abs=1e-12)
    # d = 0, 1, -2, 3, ..., 14: the zero is dropped before ranking, the negative ranks sum to 2,
    # against a mean of 14 * 15 / 4 = 52.5 and a variance of 14 * 15 * 29 / 24 = 253.75.
    d = np.arange(15.0)
    d[2] = -2
    many = wilcoxon(d, np.zeros(15))
    assert many.statistic == 2
    # Two tails of the normal: 2 * Phi(-z) = erfc(z / sqrt(2)).
    z = (52.5 - 2) / math.sqrt(253.75)
    assert many.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_few_pairs_are_permuted_exactly_as_scipy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 11))
    a, b = np.round(rng.random((2, n)) * 4) / 4  # ties among the sums, and zeros
    mine = permutation(a, b, rng)
    # scipy.stats.permutation_test((a, b), ..., permutation_type="samples"), scipy 1.17.1
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert mine.p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert mine.statistic == pytest.approx(theirs.statistic, abs=1e-12)


def test_permutation_golden() -> None:
    # d = 1, 2, 3, sum 6: of 8 sign patterns only +++ and --- reach |6|.
    assert permutation(np.array([1.0, 2, 3]), np.zeros(3), np.random.default_rng(0)).p == 2 / 8
    # d = 1, 1, -1, sum 1: six patterns give |1|, two give |3|; all eight reach 1.
    assert permutation(np.array([1.0, 1, -1]), np.zeros(3), np.random.default_rng(0)).p == 1
    # Zeros do not count as signs: 100 of them leave the first answer as it is.
    padded = np.concatenate([[1.0, 2, 3], np.zeros(100)])
    assert permutation(padded, np.zeros(103), np.random.default_rng(0)).p == 2 / 8


def test_drawn_permutations_estimate_the_exact_p() -> None:
    a, b = np.random.default_rng(2).random((2, 12))
    exact = permutation(a, b, np.random.default_rng(0), n_resamples=2**12).p
    drawn = permutation(a, b, np.random.default_rng(0), n_resamples=2**12 - 1).p
    assert drawn != exact  # drawn, not counted
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 2**12))


def test_a_drawn_p_is_never_zero() -> None:
    a = np.random.default_rng(0).random(200) + 5
    assert permutation(a, np.zeros(200), np.random.default_rng(0), n_resamples=99).p == 1 / 100
    assert bootstrap(a, np.zeros(200), np.random.default_rng(0), n_resamples=99).p >= 1 / 100


@pytest.mark.parametrize("seed", range(4))
def test_bootstrap_interval_agrees_with_scipy(seed: int) -> None:
    a, b = sample(seed)
    mine = bootstrap(a, b, np.random.default_rng(seed), n_resamples=2_000)
    # scipy.stats.bootstrap((a - b,), np.mean, method="BCa", rng=...), scipy 1.17.1; both draw
    # rng.integers(0, n, (n_resamples, n)), so the resamples are the same.
    theirs = stats.bootstrap(
        (a - b,), np.mean, method="BCa", n_resamples=2_000, rng=np.random.default_rng(seed)
    ).confidence_interval
    np.testing.assert_allclose([mine.ci_low, mine.ci_high], theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_bootstrap_p_is_below_5_percent_just_when_the_interval_leaves_zero_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.gamma(2, size=60) + rng.normal(-2.35, 0.1)  # skewed, near the edge
    result = bootstrap(d, np.zeros(60), rng, n_resamples=4_000)
    if abs(result.p - 0.05) > 0.002:  # the quantile is interpolated, the count is not
        assert (result.p < 0.05) == (not result.ci_low <= 0 <= result.ci_high)


def test_the_record_is_worked_by_hand() -> None:
    # A 3 1 4 2, B 1 1 2 4: d = 2 0 2 -2, mean 0.5, squares about it 2.25 0.25 2.25 6.25 = 11,
    # sd = sqrt(11 / 3), d_z = 0.5 / sd, t = 2 d_z, B's mean 2. The fifth pair is dropped.
    result = run("t-test", [3, 1, 4, 2, np.nan], [1, 1, 2, 4, 7])
    sd = math.sqrt(11 / 3)
    assert (result.method, result.n, result.n_dropped) == ("t-test", 4, 1)
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.difference == 0.5
    assert result.relative_difference == 0.25
    assert result.effect == pytest.approx(0.5 / sd, abs=1e-15)
    assert result.statistic == pytest.approx(1 / sd, abs=1e-15)
    # The 97.5 % quantile of t with 3 degrees of freedom is 3.182446.
    assert result.ci_high == pytest.approx(0.5 + 3.182446 * sd / 2, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_test_fills_the_whole_record(name: str) -> None:
    a, b = sample(3)
    result, reference = run(name, a, b), paired_t(a, b)
    assert result.method == name
    assert 0 < result.p <= 1
    assert result.ci_low < result.difference < result.ci_high
    for field in ["difference", "relative_difference", "effect", "wins", "ties", "losses", "n"]:
        assert getattr(result, field) == getattr(reference, field)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_swapped_sides_give_the_same_p_and_the_opposite_sign(name: str, seed: int) -> None:
    a, b = sample(seed)
    one, other = run(name, a, b), run(name, b, a)
    assert other.p == pytest.approx(one.p, abs=1e-12)
    assert other.difference == pytest.approx(-one.difference, abs=1e-15)
    assert other.effect == pytest.approx(-one.effect, abs=1e-12)
    assert [other.ci_low, other.ci_high] == pytest.approx([-one.ci_high, -one.ci_low], abs=1e-12)
    assert (other.wins, other.ties, other.losses) == (one.losses, one.ties, one.wins)


@pytest.mark.parametrize("name", NAMES)
def test_equal_systems_have_p_1(name: str) -> None:
    result = run(name, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (result.statistic, result.p, result.effect, result.difference) == (0, 1, 0, 0)
    assert (result.ci_low, result.ci_high, result.ties) == (0, 0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_one_user_cannot_be_tested(name: str) -> None:
    result = run(name, [0.5, np.nan], [0.25, 0.1])
    assert (result.n, result.n_dropped, result.difference, result.wins) == (1, 1, 0.25, 1)
    for field in ["statistic", "p", "ci_low", "ci_high", "effect"]:
        assert math.isnan(getattr(result, field)), field
    # scipy.stats.ttest_rel([0.5], [0.25]) is NaN too, scipy 1.17.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert math.isnan(stats.ttest_rel([0.5], [0.25]).pvalue)


@pytest.mark.parametrize("name", NAMES)
def test_no_user_at_all_is_undefined_everywhere(name: str) -> None:
    result = run(name, [np.nan], [1.0])
    assert (result.n, result.n_dropped) == (0, 1)
    assert math.isnan(result.difference)
    assert math.isnan(result.relative_difference)
    assert math.isnan(result.p)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_difference_has_no_variance(name: str) -> None:
    # 0.1 three times: their mean is 0.10000000000000002, which must not become a variance.
    result = run(name, [0.1, 0.1, 0.1], [0.0, 0.0, 0.0])
    assert result.effect == math.inf
    assert result.ci_low == result.ci_high == pytest.approx(0.1)
    if name == "t-test":
        # As scipy.stats.ttest_rel([1, 1, 1], [0, 0, 0]): statistic inf, p 0, scipy 1.17.1
        assert (result.statistic, result.p) == (math.inf, 0)
    else:
        # The other three know no fewer than 2 of 8 sign patterns, or 1 in 10,000 resamples.
        expected = {"wilcoxon": 0.25, "permutation": 0.25, "bootstrap": 1e-4}[name]
        assert result.p == pytest.approx(expected, abs=1e-12)
    assert run(name, [0.0] * 3, [0.1] * 3).effect == -math.inf


def test_a_baseline_of_zero_has_no_relative_difference() -> None:
    assert math.isnan(run("t-test", [0.5, 0.2], [0, 0]).relative_difference)


def test_rounding_alone_is_a_tie() -> None:
    # The mean over three seeds of the same numbers, added in two orders.
    a, b = (0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3
    assert a != b
    result = run("wilcoxon", [a, 0.5, 0.25], [b, 0.25, 0.5])
    assert (result.wins, result.ties, result.losses) == (1, 1, 1)


def test_the_same_seed_gives_the_same_p() -> None:
    a, b = sample(8)
    for name in ["permutation", "bootstrap"]:
        assert run(name, a, b, seed=4) == run(name, a, b, seed=4)
        assert run(name, a, b, seed=4).p != run(name, a, b, seed=5).p


def test_unequal_sides_and_infinite_values_are_refused() -> None:
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(3,\); compare runs over the same"):
        run("t-test", [1, 2], [1, 2, 3])
    for name in NAMES:
        with pytest.raises(DataError, match="a metric value is infinite"):
            run(name, [1, math.inf], [1, math.inf])


def test_an_unknown_test_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown significance test 'ttest'.*\"t-test\""):
        paired_test("ttest")


def test_the_four_tests_keep_their_level() -> None:
    # Independent users, skewed differences of mean zero, 60 users; 600 repetitions.
    rng = np.random.default_rng(11)
    repetitions, n = 600, 60
    rejected = dict.fromkeys(NAMES, 0)
    for _ in range(repetitions):
        a, b = rng.random((2, n)) ** 2
        rejected["t-test"] += paired_t(a, b).p <= 0.05
        rejected["wilcoxon"] += wilcoxon(a, b).p <= 0.05
        rejected["permutation"] += permutation(a, b, rng, n_resamples=999).p <= 0.05
        rejected["bootstrap"] += bootstrap(a, b, rng, n_resamples=999).p <= 0.05
    error = math.sqrt(0.05 * 0.95 / repetitions)
    for name, count in rejected.items():
        # The bootstrap's own excess at this n is a point (module docstring).
        level = 0.06 if name == "bootstrap" else 0.05
        assert abs(count / repetitions - level) < 3.3 * error, (name, count / repetitions)


def test_planted_differences_are_found() -> None:
    # d has mean 0.05 and standard deviation 0.2, n = 300: t has non-centrality 4.3, power 0.99.
    rng = np.random.default_rng(5)
    for name in NAMES:
        found = 0
        for _ in range(20):
            b = rng.random(300)
            a = b + rng.normal(0.05, 0.2, 300)
            found += paired_test(name)(a, b, rng).p <= 0.05
        assert found >= 17, name


@pytest.mark.parametrize("shared_baseline", [False, True])
def test_family_wise_error_of_t_tests_with_holm_is_5_percent(shared_baseline: bool) -> None:
    rng = np.random.default_rng(17)
    repetitions, systems, n = 2_500, 5, 80
    false_alarms = 0
    for _ in range(repetitions):
        users = rng.standard_normal(n)  # good and bad users, alike for every system
        values = users + rng.standard_normal((systems, n))
        baselines = users + rng.standard_normal((1 if shared_baseline else systems, n))
        family = zip(values, np.broadcast_to(baselines, (systems, n)), strict=True)
        false_alarms += adjust([paired_t(a, b).p for a, b in family], "holm").min() <= 0.05
    rate, error = false_alarms / repetitions, math.sqrt(0.05 * 0.95 / repetitions)
    assert rate < 0.05 + 3 * error
    # Independent comparisons use the level up: 1 - (1 - 0.05 / 5)^5 = 0.049. With one baseline
    # for all they are correlated by 1/2, and Holm is a little conservative.
    assert rate > (0.03 if shared_baseline else 0.049 - 3 * error)
