"""Corrections for many comparisons in one family.

For p-values sorted ascending, p_1 <= ... <= p_m:

    bonferroni  m * p_i                                       family-wise error
    holm        max over j <= i of (m - j + 1) * p_j          family-wise error, never less powerful
    bh          min over j >= i of (m / j) * p_j              false discovery rate
    none        p_i

all capped at 1. Holm, Scand. J. Statist. 1979; Benjamini and Hochberg, J. R. Statist. Soc. B
1995. An adjusted p is compared with alpha itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from mmbench.errors import DataError, UnknownNameError
from mmbench.stats.effects import FloatArray


def _bonferroni(ascending: FloatArray) -> FloatArray:
    return ascending * len(ascending)


def _holm(ascending: FloatArray) -> FloatArray:
    return np.maximum.accumulate(ascending * np.arange(len(ascending), 0, -1))


def _benjamini_hochberg(ascending: FloatArray) -> FloatArray:
    m = len(ascending)
    scaled = ascending * (m / np.arange(1, m + 1))
    return np.minimum.accumulate(scaled[::-1])[::-1]


def _none(ascending: FloatArray) -> FloatArray:
    return ascending


CORRECTIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = MappingProxyType(
    {"holm": _holm, "bonferroni": _bonferroni, "bh": _benjamini_hochberg, "none": _none}
)


def adjust(pvalues: ArrayLike, method: str) -> FloatArray:
    """Adjusted p-values [m] of one family, in the order given.

    NaN, the p of a comparison that could not be tested, stays NaN and does not count in the
    family.

    Args:
        pvalues: p-values of the family [m].
        method: "holm", "bonferroni", "bh" (Benjamini-Hochberg) or "none".

    Raises:
        UnknownNameError: there is no such method.
        DataError: a p-value lies outside [0, 1], or they are not one list.
    """
    if method not in CORRECTIONS:
        raise UnknownNameError("correction", method, CORRECTIONS)
    raw = np.asarray(pvalues, dtype=np.float64)
    if raw.ndim != 1:
        raise DataError(f"the p-values of a family are one list, but got shape {raw.shape}")
    family = np.flatnonzero(~np.isnan(raw))
    if ((raw[family] < 0) | (raw[family] > 1)).any():
        raise DataError("a p-value lies outside [0, 1]; pass p-values, not test statistics")
    order = family[np.argsort(raw[family], kind="stable")]
    adjusted = raw.copy()
    # A product can round to just below its p; adjusting never makes a p smaller.
    adjusted[order] = np.clip(CORRECTIONS[method](raw[order]), raw[order], 1.0)
    return adjusted
