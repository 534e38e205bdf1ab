"""Power: how small a difference a comparison of so many users can find.

For the two-sided paired t-test with n users, differences of standard deviation sd and true mean
difference D, t has a non-central t distribution with n - 1 degrees of freedom and non-centrality
sqrt(n) * D / sd (Cohen, 1988), and

    power = P(t > t_crit) + P(t < -t_crit),   t_crit the 1 - alpha / 2 quantile of central t
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special, stats

from mmbench.errors import DataError


def paired_t_power(difference: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Probability that the two-sided paired t-test finds a true mean difference.

    Args:
        difference: the true mean difference.
        sd: standard deviation of the differences over users.
        n: number of users.
        alpha: level of the test; after Bonferroni, alpha / size of the family.

    Raises:
        DataError: n is below 2, sd is not positive, or alpha lies outside (0, 1).
    """
    _check(sd, n, alpha)
    critical = float(special.stdtrit(n - 1, 1 - alpha / 2))
    shift = n * (difference / sd) ** 2
    if shift == 0:
        return alpha
    # t^2 has a non-central F distribution, which holds both tails; SciPy's non-central t gives
    # NaN where the far tail is minute.
    return float(stats.ncf.sf(critical**2, 1, n - 1, shift))


def minimal_detectable_difference(
    sd: float, n: int, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest true mean difference that the paired t-test finds with probability `power`.

    Args:
        sd: standard deviation of the differences over users; 0 gives 0.
        n: number of users.
        alpha: level of the test; after Bonferroni, alpha / size of the family.
        power: wanted probability, above alpha.

    Raises:
        DataError: n is below 2, sd is negative, or not 0 < alpha < power < 1.
    """
    if sd == 0 and n >= 2:
        return 0.0
    _check(sd, n, alpha)
    if not alpha < power < 1:
        raise DataError(f"power must lie between alpha ({alpha}) and 1, but is {power}")

    def missing(effect: float) -> float:
        return paired_t_power(effect, 1.0, n, alpha) - power

    high = 1.0 / np.sqrt(n)
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high, xtol=1e-14, rtol=1e-13)) * sd


def _check(sd: float, n: int, alpha: float) -> None:
    if n < 2:
        raise DataError(f"power is defined for two users or more, but n is {n}")
    if not sd > 0:
        raise DataError(f"power needs a positive standard deviation, but sd is {sd}")
    if not 0 < alpha < 1:
        raise DataError(f"alpha must lie between 0 and 1, but is {alpha}")
