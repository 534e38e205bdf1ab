"""Power of the paired t-test against statsmodels 0.15, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from mmbench.errors import DataError
from mmbench.stats.paired import paired_t
from mmbench.stats.power import minimal_detectable_difference, paired_t_power

CASES = [(2, 3.0, 0.05), (10, 0.5, 0.05), (50, 0.3, 0.01), (400, 0.1, 0.05), (20_000, 0.02, 0.005)]


@pytest.mark.parametrize(("n", "effect", "alpha"), CASES)
def test_power_agrees_with_statsmodels(n: int, effect: float, alpha: float) -> None:
    # statsmodels TTestPower().power(effect, nobs, alpha), statsmodels 0.15.0
    expected = TTestPower().power(effect, n, alpha)
    assert paired_t_power(2 * effect, 2.0, n, alpha) == pytest.approx(expected, abs=1e-12)
    assert paired_t_power(-2 * effect, 2.0, n, alpha) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 10, 50, 400, 20_000])
def test_detectable_difference_has_just_the_wanted_power(n: int) -> None:
    for alpha, power in [(0.05, 0.5), (0.05, 0.8), (0.01, 0.99)]:
        difference = minimal_detectable_difference(2.0, n, alpha, power)
        # The right tail by scipy.stats.nct, scipy 1.17.1; the left one is below 1e-4 here.
        shift, critical = difference / 2.0 * math.sqrt(n), stats.t.isf(alpha / 2, n - 1)
        right = stats.nct.sf(critical, n - 1, shift)
        assert power - 1e-4 < right <= power + 1e-9
        assert paired_t_power(difference, 2.0, n, alpha) == pytest.approx(power, abs=1e-11)


def test_large_samples_follow_the_normal_rule() -> None:
    # (1.959964 + 0.841621) * sd / sqrt(n) for 80 % power at 5 %.
    expected = 2.801585 * 0.3 / math.sqrt(1e6)
    assert minimal_detectable_difference(0.3, 1_000_000) == pytest.approx(expected, rel=1e-5)


def test_the_test_finds_what_the_power_promises() -> None:
    rng, n, repetitions = np.random.default_rng(0), 50, 1_000
    difference = minimal_detectable_difference(1.0, n)
    found = sum(
        paired_t(rng.normal(difference, 1, n), np.zeros(n)).p <= 0.05 for _ in range(repetitions)
    )
    assert abs(found / repetitions - 0.8) < 4 * math.sqrt(0.8 * 0.2 / repetitions)


def test_without_a_difference_power_is_alpha() -> None:
    assert paired_t_power(0, 1, 30, 0.05) == pytest.approx(0.05, abs=1e-12)


def test_edges() -> None:
    assert minimal_detectable_difference(0.0, 10) == 0
    with pytest.raises(DataError, match="two users or more, but n is 1"):
        minimal_detectable_difference(1.0, 1)
    with pytest.raises(DataError, match="positive standard deviation, but sd is 0"):
        paired_t_power(0.1, 0, 10)
    with pytest.raises(DataError, match="alpha must lie between 0 and 1, but is 5"):
        paired_t_power(0.1, 1, 10, alpha=5)
    with pytest.raises(DataError, match=r"between alpha \(0.05\) and 1, but is 80"):
        minimal_detectable_difference(1, 10, power=80)
