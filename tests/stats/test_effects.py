from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mmbench.stats import effects


def test_effect_golden() -> None:
    # d = 1, 2, 3: mean 2, standard deviation sqrt((1 + 0 + 1) / 2) = 1.
    d = np.array([1.0, 2.0, 3.0])
    assert effects.cohen_dz(d) == 2
    # The 97.5 % quantile of t with 2 degrees of freedom is 4.302653; 4.302653 / sqrt(3) = 2.484138.
    assert effects.t_interval(d) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 400])
def test_interval_agrees_with_scipy(n: int) -> None:
    d = np.random.default_rng(n).normal(1, 3, n)
    # scipy.stats.t.interval(0.95, df, loc, scale), scipy 1.17.1
    expected = stats.t.interval(0.95, n - 1, loc=d.mean(), scale=stats.sem(d))
    np.testing.assert_allclose(effects.t_interval(d), expected, rtol=1e-12, atol=1e-12)


def test_undefined_and_degenerate_effects() -> None:
    assert math.isnan(effects.cohen_dz(np.array([])))
    assert math.isnan(effects.cohen_dz(np.array([1.0])))
    assert effects.cohen_dz(np.zeros(3)) == 0
    assert effects.cohen_dz(np.full(3, -0.1)) == -math.inf
    assert all(math.isnan(bound) for bound in effects.t_interval(np.array([1.0])))


def test_resampling_in_blocks_draws_what_one_block_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(1).random(50)
    whole = effects.bootstrap_means(d, np.random.default_rng(2), 100)
    monkeypatch.setattr(effects, "BLOCK", 70)  # one resample at a time
    blocks = effects.bootstrap_means(d, np.random.default_rng(2), 100)
    np.testing.assert_array_equal(blocks, whole)


def test_blocks_cover_every_row_and_stay_small() -> None:
    sizes = list(effects.row_blocks(9_999, 20_000))
    assert sum(sizes) == 9_999
    assert max(sizes) * 20_000 <= effects.BLOCK
