"""Effects: how large a paired difference is, and how surely it is known.

    d_z = mean(d) / sd(d)          Cohen's effect size for paired differences d
    t interval                     mean(d) -/+ t_{n-1, 0.975} * sd(d) / sqrt(n)
    BCa interval                   Efron, "Better Bootstrap Confidence Intervals", JASA 1987

All functions take the differences of the pairs [n], one per user.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mmbench.errors import DataError

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
# Numbers drawn at a time by the resampling methods; 2**22 keeps their memory below 100 MB.
BLOCK = 2**22
# Two means of the same numbers in another order differ in the last bits, by a few 1e-16.
ROUNDING = 1e-12


def refuse_infinite(*sides: FloatArray) -> None:
    """Raise a DataError where a value is infinite."""
    if any(np.isinf(values).any() for values in sides):
        raise DataError("a metric value is infinite; every value of a user must be finite or NaN")


def paired_differences(values_a: FloatArray, values_b: FloatArray) -> FloatArray:
    """A minus B [n], with differences that are only rounding set to zero.

    A user whose value is 1/3 under both systems must be a tie even where one mean over seeds
    was added up in another order.

    """
    difference = values_a - values_b
    noise = ROUNDING * np.maximum(np.abs(values_a), np.abs(values_b))
    return np.where(np.abs(difference) <= noise, 0.0, difference)


def spread(values: FloatArray) -> float:
    """Standard deviation (n - 1); exactly 0 for equal values, NaN for fewer than two."""
    if len(values) < 2:
        return float("nan")
    # The mean of equal numbers may differ from them in the last bit, and with it the deviation
    # from 0; a t statistic of 1e16 instead of "no variance" would follow.
    return 0.0 if np.ptp(values) == 0 else float(np.std(values, ddof=1))


def ratio(mean: float, scale: float) -> float:
    """`mean` over a standard deviation or error: 0 for 0/0, signed infinity for x/0."""
    if scale == 0:
        return 0.0 if mean == 0 else float(np.copysign(np.inf, mean))
    return mean / scale


def mean_of(values: FloatArray) -> float:
    """Mean; NaN for no values, without NumPy's warning."""
    return float(values.mean()) if len(values) else float("nan")


def cohen_dz(differences: FloatArray) -> float:
    """Mean over standard deviation; NaN for fewer than two pairs, infinite for constant ones."""
    return ratio(mean_of(differences), spread(differences))


def relative_difference(difference: float, baseline: float) -> float:
    """`difference` as a share of the baseline's mean; NaN where that is 0."""
    return difference / abs(baseline) if baseline != 0 else float("nan")


def t_quantile(df: float) -> float:
    """The quantile of Student's t that bounds a two-sided interval."""
    return float(special.stdtrit(df, (1 + CONFIDENCE) / 2))


def t_interval(differences: FloatArray) -> tuple[float, float]:
    """Student's interval of the mean; NaN for fewer than two pairs."""
    n = len(differences)
    if n < 2:
        return float("nan"), float("nan")
    mean, half = mean_of(differences), t_quantile(n - 1) * spread(differences) / np.sqrt(n)
    return float(mean - half), float(mean + half)


def row_blocks(n_rows: int, n_columns: int) -> Iterator[int]:
    """Sizes of blocks that split `n_rows` so that each holds about `BLOCK` numbers."""
    size = max(1, BLOCK // max(1, n_columns))
    for start in range(0, n_rows, size):
        yield min(size, n_rows - start)


def bootstrap_means(
    differences: FloatArray, rng: np.random.Generator, n_resamples: int
) -> FloatArray:
    """Means of resamples of the pairs, drawn with replacement [n_resamples]."""
    n = len(differences)
    return np.concatenate(
        [
            differences[rng.integers(0, n, size=(rows, n))].mean(axis=1)
            for rows in row_blocks(n_resamples, n)
        ]
    )


def bca_correction(differences: FloatArray, means: FloatArray) -> tuple[float, float]:
    """Bias correction z_0 and acceleration a of the BCa interval of a mean.

    For a mean, the jackknife acceleration is sum(e^3) / (6 * sum(e^2)^1.5), e = d - mean(d).
    """
    centre = mean_of(differences)
    # Half of the ties count as below, so that swapping the sides flips the sign of z_0.
    below = float(np.mean((means < centre) / 2 + (means <= centre) / 2))
    error = differences - centre
    acceleration = (error**3).sum() / (6 * (error**2).sum() ** 1.5)
    return float(special.ndtri(below)), float(acceleration)


def bca_interval(differences: FloatArray, means: FloatArray) -> tuple[float, float]:
    """BCa interval of the mean from its bootstrap distribution [n_resamples].

    The differences must not all be equal.
    """
    z_0, a = bca_correction(differences, means)
    tail = special.ndtri((1 - CONFIDENCE) / 2)
    shifted = z_0 + np.array([tail, -tail])
    low, high = np.quantile(means, special.ndtr(z_0 + shifted / (1 - a * shifted)))
    return float(low), float(high)


def bca_p(differences: FloatArray, means: FloatArray) -> float:
    """Two-sided p that belongs to `bca_interval`: the level whose interval just reaches 0.

    Never below 1 / (n_resamples + 1). The differences must not all be equal.
    """
    z_0, a = bca_correction(differences, means)
    floor = 1 / (len(means) + 1)
    below = float(np.mean((means < 0) / 2 + (means <= 0) / 2))
    w = float(special.ndtri(np.clip(below, floor, 1 - floor))) - z_0
    # The interval's mapping solved for its tail; past the pole 0 lies outside every interval.
    z = w / (1 + a * w) - z_0 if 1 + a * w > 0 else float("inf")
    return max(floor, min(1.0, 2 * float(special.ndtr(-abs(z)))))
