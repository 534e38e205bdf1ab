"""Corrections against statsmodels 0.15, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from mmbench.errors import DataError, UnknownNameError
from mmbench.stats.correction import CORRECTIONS, adjust

THEIR_NAMES = {"holm": "holm", "bonferroni": "bonferroni", "bh": "fdr_bh"}
families = st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=12)


def test_golden() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    # Ascending 0.005, 0.01, 0.03, 0.04, in the places 4, 1, 3, 2.
    # Holm: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, 1 * 0.04 raised to 0.06.
    np.testing.assert_allclose(adjust(p, "holm"), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjust(p, "bonferroni"), [0.04, 0.16, 0.12, 0.02])
    # BH: 4/1 * 0.005 = 0.02, 4/2 * 0.01 = 0.02, 4/3 * 0.03 = 0.04, 4/4 * 0.04 = 0.04.
    np.testing.assert_allclose(adjust(p, "bh"), [0.02, 0.04, 0.04, 0.02])
    np.testing.assert_allclose(adjust(p, "none"), p)


@pytest.mark.parametrize("method", sorted(THEIR_NAMES))
@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_statsmodels(method: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random(rng.integers(1, 30)) ** 3
    if seed % 2:  # ties, zeros and ones
        p = np.round(p, 1)
    # statsmodels multipletests(p, method=...)[1], statsmodels 0.15.0
    expected = multipletests(p, method=THEIR_NAMES[method])[1]
    np.testing.assert_allclose(adjust(p, method), expected, rtol=1e-12, atol=1e-12)


@given(p=families)
def test_correction_never_lowers_p_and_keeps_the_order(p: list[float]) -> None:
    raw = np.array(p, dtype=float)
    tested = ~np.isnan(raw)
    order = np.argsort(raw[tested], kind="stable")
    for method in CORRECTIONS:
        adjusted = adjust(raw, method)
        assert (adjusted[tested] >= raw[tested]).all(), method
        assert (adjusted[tested] <= 1).all(), method
        assert (np.diff(adjusted[tested][order]) >= 0).all(), method


@given(p=families)
def test_holm_is_never_weaker_than_bonferroni(p: list[float]) -> None:
    tested = ~np.isnan(p)
    assert (adjust(p, "holm")[tested] <= adjust(p, "bonferroni")[tested]).all()


@given(p=families)
def test_what_could_not_be_tested_does_not_count(p: list[float]) -> None:
    tested = ~np.isnan(p)
    for method in CORRECTIONS:
        adjusted = adjust(p, method)
        np.testing.assert_array_equal(np.isnan(adjusted), ~tested)
        np.testing.assert_array_equal(adjusted[tested], adjust(np.array(p)[tested], method))


def test_the_input_is_left_alone() -> None:
    p = np.array([0.2, 0.1])
    adjust(p, "holm")
    assert p.tolist() == [0.2, 0.1]


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown correction 'holms'.*\"holm\""):
        adjust([0.1], "holms")
    for bad in [[-0.1], [1.5], [np.inf]]:
        with pytest.raises(DataError, match=r"outside \[0, 1\]"):
            adjust(bad, "holm")
    with pytest.raises(DataError, match=r"one list, but got shape \(1, 1\)"):
        adjust([[0.1]], "holm")
