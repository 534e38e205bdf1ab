"""Do two systems differ, training seeds included?

A paired test over users asks whether *these trained models* differ for such users. It takes the
seeds at hand for the whole truth and therefore rejects too often when the question is whether
the *systems* differ: with enough users, two sets of runs of one recipe differ significantly,
because each set of seeds has its own luck. Here users and seeds are both random.

Model. The value of user u in run s of system A is

    x_us = mu + user_u + seed_s + noise_us

with a seed effect that all users share (a good or a bad run) and noise of each user in each
run; likewise for B, whose runs are other draws. The users are the same, and the difference of
the two user effects, g_u, varies from user to user unless A and B are the same recipe. With S_A
and S_B runs and n users, D = mean over users and runs of A minus that of B has

    Var D = Var(g) / n  +  V_A / S_A  +  V_B / S_B
    V_A   = Var(seed) + Var(noise) / n        (the variance of a run's mean over users)

Estimators. V_A is estimated by the variance of the S_A run means, and V_B likewise. Nothing is
assumed for that: it stays right if noise differs in size between users or is shared by groups of
them. The variance over users of their seed-averaged difference d_u estimates
Var(g) + Var(noise_A) / S_A + Var(noise_B) / S_B. The noise in it is counted in V_A and V_B
already, and is subtracted by the mean squares M of the two-way residuals
x_us - x_u. - x_.s + x_.. of each system:

    Var(g) = max(0, Var_u(d_u) - M_A / S_A - M_B / S_B)

Why the noise goes with the seeds and not with the users: splitting it off V_A as well would need
max(0, V_A - M_A / n), which is 0 by chance in many triples of seeds, and the test would then
trust the users alone. That is liberal just where seeds matter a little.

Degrees of freedom (Satterthwaite, Biometrics Bulletin 1946), each mean square being independent
of the others under normality:

    df = (Var D)^2 / (  [W^2 / (n-1) + (M_A/S_A)^2 / ((n-1)(S_A-1)) + ...B] / n^2
                      + (V_A/S_A)^2 / (S_A-1) + (V_B/S_B)^2 / (S_B-1)  ),   W = Var_u(d_u)

where the first line is left out if Var(g) is estimated as 0. For one recipe against itself,
Var(g) = 0, and the test is Welch's t-test of the run means.

Calibration, by simulation at a level of 5 %. One recipe against itself is rejected in 2.5 to
3.6 % of cases with three seeds a side and in 3.5 to 4.5 % with five, whatever the size of the
seed effect, where the paired t-test over users reaches 75 %. Two equally good systems whose
users differ too are rejected in 4 to 5 % where their seeds vary alike, and with three seeds in up
to 7 % where they do not. The weak corner is Satterthwaite's: where one system
has no seed variance at all (a neighbourhood model) and the other's three seeds make nine tenths
of Var D, 8 % are rejected; with five seeds 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from mmbench.errors import DataError
from mmbench.stats.effects import (
    FloatArray,
    mean_of,
    paired_differences,
    ratio,
    refuse_infinite,
    spread,
    t_quantile,
)


@dataclass(frozen=True)
class SystemResult:
    """What the system-level test found.

    Attributes:
        difference: mean over users and seeds of A, minus that of B.
        se: its standard error, users and seeds both random.
        df: effective degrees of freedom.
        statistic: t = difference / se; 0 for 0/0, infinite where only se is 0.
        p: two-sided, not corrected for other comparisons; NaN where it cannot be tested.
        ci_low: lower bound of the 95 % interval of the difference.
        ci_high: upper bound of it.
        user_variance: variance over users of the true difference, Var(g).
        seed_variance_a: variance over seeds of A's mean over users, V_A; NaN for one seed.
        seed_variance_b: the same for B.
        n_users: users used.
        n_seeds_a: runs of A.
        n_seeds_b: runs of B.
        n_dropped: users left out because a value is NaN in some run.
    """

    difference: float
    se: float
    df: float
    statistic: float
    p: float
    ci_low: float
    ci_high: float
    user_variance: float
    seed_variance_a: float
    seed_variance_b: float
    n_users: int
    n_seeds_a: int
    n_seeds_b: int
    n_dropped: int


@dataclass(frozen=True)
class _Side:
    """One system's runs: user means [n], variance of the run means, residual mean square."""

    user_means: FloatArray
    seed_variance: float
    residual: float
    n_seeds: int


def _side(values: FloatArray) -> _Side:
    n_seeds, n_users = values.shape
    # Measured from the first run, equal runs have exactly its values as their mean; the plain
    # mean of three equal numbers may not be that number.
    user_means = values[0] + (values - values[0]).mean(axis=0)
    run_means = np.array([mean_of(run) for run in values])
    residuals = values - user_means - (run_means - mean_of(user_means))[:, None]
    freedom = (n_seeds - 1) * (n_users - 1)
    return _Side(
        user_means=user_means,
        seed_variance=spread(run_means) ** 2,
        residual=float((residuals**2).sum() / freedom) if freedom > 0 else float("nan"),
        n_seeds=n_seeds,
    )


def system_test(values_a: FloatArray, values_b: FloatArray) -> SystemResult:
    """Two-sided test of the difference of two systems, with users and seeds both random.

    With fewer than two seeds on a side, or fewer than two users, nothing but the difference and
    the seed variances is defined; the rest is NaN. Callers ask for three seeds, since two leave
    one degree of freedom.

    Args:
        values_a: one value per run and user [S_A, U].
        values_b: one value per run and user [S_B, U], the baseline; the same users.

    Raises:
        DataError: the sides differ in users, have no run, or a value is infinite.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise DataError(
            f"the system-level test needs values [seeds, users] of the same users on both sides, "
            f"but got shapes {a.shape} and {b.shape}"
        )
    refuse_infinite(a, b)
    keep = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    side_a, side_b = _side(a[:, keep]), _side(b[:, keep])
    differences = paired_differences(side_a.user_means, side_b.user_means)
    difference, n = mean_of(differences), len(differences)
    se = df = statistic = p = half = user_variance = float("nan")
    if n >= 2 and side_a.n_seeds >= 2 and side_b.n_seeds >= 2:
        user_variance, se, df = _standard_error(differences, side_a, side_b)
        statistic = ratio(difference, se)
        # Without any variance there is no distribution: 0 is certainly 0, and x certainly not.
        p = 2 * float(special.stdtr(df, -abs(statistic))) if se > 0 else float(difference == 0)
        half = t_quantile(df) * se if se > 0 else 0.0
    return SystemResult(
        difference=difference,
        se=se,
        df=df,
        statistic=statistic,
        p=p,
        ci_low=difference - half,
        ci_high=difference + half,
        user_variance=user_variance,
        seed_variance_a=side_a.seed_variance,
        seed_variance_b=side_b.seed_variance,
        n_users=n,
        n_seeds_a=side_a.n_seeds,
        n_seeds_b=side_b.n_seeds,
        n_dropped=int((~keep).sum()),
    )


def _standard_error(
    differences: FloatArray, side_a: _Side, side_b: _Side
) -> tuple[float, float, float]:
    """Var(g), the standard error of the mean difference, and its degrees of freedom."""
    n, sides = len(differences), (side_a, side_b)
    total = spread(differences) ** 2
    user_variance = max(0.0, total - sum(side.residual / side.n_seeds for side in sides))
    variance = user_variance / n
    uncertainty = 0.0  # sum of squared parts over their degrees of freedom
    if user_variance > 0:
        uncertainty += total**2 / (n - 1) / n**2
        for side in sides:
            noise = side.residual / side.n_seeds / n
            uncertainty += noise**2 / ((n - 1) * (side.n_seeds - 1))
    for side in sides:
        part = side.seed_variance / side.n_seeds
        variance += part
        uncertainty += part**2 / (side.n_seeds - 1)
    df = variance**2 / uncertainty if uncertainty > 0 else float("nan")
    return user_variance, float(np.sqrt(variance)), df
