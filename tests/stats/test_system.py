"""The system-level test: worked by hand, against SciPy and statsmodels, and simulated."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from mmbench.errors import DataError
from mmbench.stats.paired import paired_t
from mmbench.stats.system import system_test

Array = NDArray[np.float64]


def test_golden() -> None:
    # A: runs (1, 3) and (3, 3); run means 2 and 3, so V_A = 0.5; user means 2 and 3.
    # Residuals x - x_u. - x_.s + x_..: 1 - 2 - 2 + 2.5 = -0.5, and 0.5, 0.5, -0.5 likewise;
    # their squares sum to 1 over (2 - 1)(2 - 1), so M_A = 1.
    # B: twice (0, 4); V_B = 0, M_B = 0. d = (2, -1): D = 0.5, W = 4.5.
    result = system_test(np.array([[1.0, 3], [3, 3]]), np.array([[0.0, 4], [0, 4]]))
    assert result.difference == 0.5
    assert result.user_variance == pytest.approx(4.5 - 1 / 2)
    assert (result.seed_variance_a, result.seed_variance_b) == (pytest.approx(0.5), 0)
    # Var D = 4 / 2 + 0.5 / 2 + 0 = 2.25
    assert result.se == pytest.approx(1.5)
    assert result.statistic == pytest.approx(1 / 3)
    # df = 2.25^2 / ((4.5^2 / 1 + 0.5^2 / 1) / 2^2 + 0.25^2 / 1) = 5.0625 / 5.1875
    assert result.df == pytest.approx(5.0625 / 5.1875)
    assert result.p == pytest.approx(2 * stats.t.sf(1 / 3, 5.0625 / 5.1875), abs=1e-12)
    assert (result.n_users, result.n_seeds_a, result.n_seeds_b, result.n_dropped) == (2, 2, 2, 0)


def draw(
    rng: np.random.Generator, n_seeds: int, users: Array, seed_sd: float, noise_sd: float
) -> Array:
    """Values [S, U]: users, a shared effect of each run, and noise of each user in each run."""
    shift = rng.normal(0, seed_sd, (n_seeds, 1)) if seed_sd else 0.0
    return users + shift + rng.normal(0, noise_sd, (n_seeds, len(users)))


@pytest.mark.parametrize("seed", range(5))
def test_parts_agree_with_an_analysis_of_variance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = rng.normal(size=12)
    a = draw(rng, 3, users + rng.normal(size=12), 0.5, 0.3)
    b = draw(rng, 4, users, 0.2, 0.6)
    result = system_test(a, b)
    noise = 0.0
    for values, found in [(a, result.seed_variance_a), (b, result.seed_variance_b)]:
        run, user = np.indices(values.shape)
        frame = pandas.DataFrame({"x": values.ravel(), "run": run.ravel(), "user": user.ravel()})
        # statsmodels anova_lm(ols("x ~ C(run) + C(user)")), statsmodels 0.15.0
        table = anova_lm(ols("x ~ C(run) + C(user)", frame).fit())
        # The mean square of runs is n users times the variance of the run means.
        assert found == pytest.approx(table.loc["C(run)", "mean_sq"] / 12, abs=1e-12)
        noise += table.loc["Residual", "mean_sq"] / len(values)
    expected = (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) - noise
    assert result.user_variance == pytest.approx(expected, abs=1e-12)
    total = expected / 12 + result.seed_variance_a / 3 + result.seed_variance_b / 4
    assert result.se == pytest.approx(math.sqrt(total), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_user_part_it_is_welchs_test_of_the_run_means(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = rng.random(40)
    a, b = draw(rng, 3, users, 0.1, 0), draw(rng, 5, users, 0.3, 0)
    result = system_test(a, b)
    # scipy.stats.ttest_ind(..., equal_var=False), scipy 1.17.1
    theirs = stats.ttest_ind(a.mean(axis=1), b.mean(axis=1), equal_var=False)
    low, high = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(
        [result.statistic, result.p, result.df, result.ci_low, result.ci_high],
        [theirs.statistic, theirs.pvalue, theirs.df, low, high],
        rtol=1e-10,
    )


@pytest.mark.parametrize("seed", range(5))
def test_without_a_seed_part_it_is_the_paired_t_test(seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, 30))
    result = system_test(np.tile(a, (3, 1)), np.tile(b, (5, 1)))
    # scipy.stats.ttest_rel(a, b), scipy 1.17.1
    theirs = stats.ttest_rel(a, b)
    np.testing.assert_allclose(
        [result.statistic, result.p, result.df],
        [theirs.statistic, theirs.pvalue, 29],
        rtol=1e-12,
        atol=1e-12,
    )


def test_swapped_sides_give_the_same_p_and_the_opposite_sign() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 20)), rng.random((5, 20))
    one, other = system_test(a, b), system_test(b, a)
    assert other.p == pytest.approx(one.p, abs=1e-14)
    assert other.statistic == pytest.approx(-one.statistic, abs=1e-14)
    assert (other.ci_low, other.ci_high) == pytest.approx((-one.ci_high, -one.ci_low))
    assert (other.seed_variance_a, other.n_seeds_a) == (one.seed_variance_b, one.n_seeds_b)


def test_one_deterministic_model_against_itself_is_certainly_equal() -> None:
    # 0.1 three times and 0.1 five times have plain means that differ in the last bit.
    values = np.random.default_rng(0).random(50)
    result = system_test(np.tile(values, (3, 1)), np.tile(values, (5, 1)))
    assert (result.difference, result.se, result.statistic, result.p) == (0, 0, 0, 1)
    assert (result.ci_low, result.ci_high) == (0, 0)
    assert math.isnan(result.df)


def test_a_constant_difference_without_variance_is_certainly_different() -> None:
    result = system_test(np.full((3, 4), 0.5), np.full((3, 4), 0.25))
    assert (result.difference, result.se, result.p) == (0.25, 0, 0)
    assert result.statistic == math.inf


def test_one_seed_or_one_user_cannot_be_tested() -> None:
    rng = np.random.default_rng(0)
    for shape_a, shape_b in [((1, 9), (3, 9)), ((3, 9), (1, 9)), ((3, 1), (3, 1))]:
        a, b = rng.random(shape_a), rng.random(shape_b)
        result = system_test(a, b)
        assert result.difference == pytest.approx(a.mean() - b.mean())
        for field in ["p", "se", "df", "statistic", "ci_low", "ci_high", "user_variance"]:
            assert math.isnan(getattr(result, field)), field
    assert math.isnan(system_test(rng.random((1, 9)), rng.random((3, 9))).seed_variance_a)


def test_a_user_undefined_in_any_run_is_dropped_and_counted() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 6)), rng.random((3, 6))
    whole = system_test(a[:, 2:], b[:, 2:])
    a[1, 0] = b[2, 1] = np.nan
    result = system_test(a, b)
    assert (result.n_users, result.n_dropped) == (4, 2)
    assert (result.p, result.difference) == (whole.p, whole.difference)


def test_bad_shapes_and_values_are_refused() -> None:
    with pytest.raises(DataError, match=r"same users on both sides, but got shapes \(3, 4\) and"):
        system_test(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(DataError, match="same users"):
        system_test(np.ones(4), np.ones(4))
    with pytest.raises(DataError, match="same users"):
        system_test(np.ones((0, 4)), np.ones((3, 4)))
    with pytest.raises(DataError, match="infinite"):
        system_test(np.full((3, 4), np.inf), np.ones((3, 4)))


REPETITIONS = 1_000


def rejections(
    seeds_a: int, seeds_b: int, seed_sd: float, user_sd: float, *, hits: bool = False
) -> tuple[float, float]:
    """How often the system-level test and the paired t-test reject a true null at 5 %.

    `seed_sd` counts in units of the noise that a run's mean over 120 users has anyway.
    """
    n = 120
    rng = np.random.default_rng([seeds_a, seeds_b, int(10 * seed_sd), int(10 * user_sd), hits])
    by_system = by_user = 0
    for _ in range(REPETITIONS):
        users = rng.normal(size=n)
        other = users + rng.normal(0, user_sd, n) if user_sd else users
        noise_sd = 0.0 if hits else 1.0
        a = draw(rng, seeds_a, users, seed_sd / math.sqrt(n), noise_sd)
        b = draw(rng, seeds_b, other, seed_sd / math.sqrt(n), noise_sd)
        if hits:  # a hit or none, as HR@K has them: 16 % of the users have one
            a = (a + rng.normal(size=a.shape) > 1.4).astype(float)
            b = (b + rng.normal(size=b.shape) > 1.4).astype(float)
        by_system += system_test(a, b).p <= 0.05
        by_user += paired_t(a.mean(axis=0), b.mean(axis=0)).p <= 0.05
    return by_system / REPETITIONS, by_user / REPETITIONS


ERROR = math.sqrt(0.05 * 0.95 / REPETITIONS)  # 0.0069


@pytest.mark.parametrize("hits", [False, True])
@pytest.mark.parametrize("seed_sd", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_one_recipe_against_itself_is_rejected_at_5_percent(
    n_seeds: int, seed_sd: float, hits: bool
) -> None:
    by_system, by_user = rejections(n_seeds, n_seeds, seed_sd, 0.0, hits=hits)
    assert by_system < 0.05 + 3 * ERROR
    # Welch's test with three runs a side is conservative: 0.036 in the limit, 0.044 with five.
    assert by_system > (0.012 if n_seeds == 3 else 0.02)
    if seed_sd > 1:
        # The reason for this test: seeds with luck of their own look like a finding.
        assert by_user > 0.4


@pytest.mark.parametrize("seed_sd", [0.0, 1.0])
@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(3, 3), (3, 5), (5, 5)])
def test_equally_good_systems_are_rejected_at_5_percent(
    seeds_a: int, seeds_b: int, seed_sd: float
) -> None:
    by_system, _ = rejections(seeds_a, seeds_b, seed_sd, 1.5)
    assert abs(by_system - 0.05) < 3.3 * ERROR


@pytest.mark.parametrize(("n_seeds", "expected"), [(3, 0.079), (5, 0.059)])
def test_the_weak_corner_is_as_weak_as_the_docstring_says(n_seeds: int, expected: float) -> None:
    # B has no seed variance; the seeds of A make nine tenths of Var D, the users one tenth.
    rng, n, rejected = np.random.default_rng(n_seeds), 120, 0
    for _ in range(REPETITIONS):
        users = rng.normal(size=n)
        seed_sd = math.sqrt(9 * n_seeds / n)
        a = draw(rng, n_seeds, users + rng.normal(size=n), seed_sd, 0.0)
        rejected += system_test(a, np.tile(users, (3, 1))).p <= 0.05
    error = math.sqrt(expected * (1 - expected) / REPETITIONS)
    assert abs(rejected / REPETITIONS - expected) < 3.3 * error


def test_a_planted_difference_between_systems_is_found() -> None:
    rng, n, found = np.random.default_rng(3), 400, 0
    for _ in range(100):
        users = rng.normal(size=n)
        # A is better by 0.3; the run means have a standard deviation of 0.05 + noise.
        a, b = draw(rng, 3, users + 0.3, 0.05, 1.0), draw(rng, 3, users, 0.05, 1.0)
        found += system_test(a, b).p <= 0.05
    assert found >= 90
