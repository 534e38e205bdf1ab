"""A comparison: systems side by side, each difference tested, every test in a declared family.

The unit is the user: a system's value for a user is the mean over its seeds, and systems are
paired over the same users. Where both sides have three or more seeds, a second test also takes
the seeds as random and so speaks about systems instead of these trained models.

What a system is tested against, and why some tests stand behind no cell: `report/pairing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmbench.errors import UnknownNameError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.metrics.lists import FloatArray
from mmbench.report.breakdown import CUTOFFS, OF_ITEMS, By, Column, Presence
from mmbench.report.measuring import measure
from mmbench.report.pairing import (
    BEST,
    References,
    best_rows,
    declared,
    declared_pairs,
    rows_from_best,
    shown_pairs,
    sides,
    unshown_pairs,
)
from mmbench.report.systems import System, check_comparable, recorded_metrics
from mmbench.report.testing import Family, FamilySize, Pair, Tested, run_tests
from mmbench.runs import Part, Run
from mmbench.stats.correction import CORRECTIONS
from mmbench.stats.effects import spread


@dataclass(frozen=True)
class SystemContrast:
    """The test of a difference with users and seeds both random; see mmbench.stats.system."""

    statistic: float
    degrees_of_freedom: float
    low: float
    high: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class Contrast:
    """A system's difference from its reference in one column, over `n_users` paired users.

    Attributes:
        reference: label of the reference.
        n_users: users who have a value under both.
        difference: mean of the users' differences, system minus reference.
        relative: `difference` as a share of the reference's mean; NaN where that is zero.
        low: lower bound of the 95 % confidence interval of `difference`.
        high: upper bound of it.
        d_z: Cohen's d_z, the mean difference over the standard deviation of the differences.
        statistic: of the paired test over users.
        p: of the paired test over users, not corrected.
        adjusted: p corrected for its family.
        wins: users for whom the system is better.
        ties: users for whom both are equal.
        losses: users for whom the system is worse.
        seed_spread_exceeds: whether the standard deviation over seeds of either side is larger
            than the difference.
        system: the test over users and seeds; None with fewer than three seeds on a side.
    """

    reference: str
    n_users: int
    difference: float
    relative: float
    low: float
    high: float
    d_z: float
    statistic: float
    p: float
    adjusted: float
    wins: int
    ties: int
    losses: int
    seed_spread_exceeds: bool
    system: SystemContrast | None


@dataclass(frozen=True)
class Cell:
    """One system in one column.

    Attributes:
        mean: over users and seeds; NaN if no user has a value.
        seed_means: the mean over users of each run, by seed.
        seed_sd: standard deviation (n - 1) of `seed_means`; None with one seed.
        n_users: users with a value; 1 for a metric of the whole system.
        n_undefined: users without a value, who enter no mean and no test.
        is_best: whether no system has a better mean; always False under `against`.
        is_reference: whether others are tested against it.
        contrast: the difference from the reference; None for the reference itself, and in a
            column that is not tested.
    """

    mean: float
    seed_means: tuple[float, ...]
    seed_sd: float | None
    n_users: int
    n_undefined: int
    is_best: bool = False
    is_reference: bool = False
    contrast: Contrast | None = None


@dataclass(frozen=True)
class Comparison:
    """Systems (rows) by columns, with every test that was made.

    Attributes:
        dataset: its name.
        split: its name.
        protocol: its name.
        part: whose lists were read, "test" or "valid".
        n_users: evaluated users.
        columns: what was measured.
        systems: best first in the first column; in pairs (reference, system) under `against`.
        cells: by system, then by column.
        families: the families of tests, with their sizes.
        baseline: the named baseline, "best", or None where each system has its own (`against`,
            `references`).
        by: the breakdown, if any.
        test: name of the paired test.
        correction: name of the correction for multiple testing.
        family: what is corrected together, "metric" or "table".
        alpha: level at which a difference counts as significant.
        unpaired: labels among the `against` runs that no compared system has.
        tests: every test that was made, those behind no cell included, by indices of `systems`.
        references: who was tested against whom, where it was declared; systems then stand in the
            order in which they were given.
    """

    dataset: str
    split: str
    protocol: str
    part: Part
    n_users: int
    columns: tuple[Column, ...]
    systems: tuple[System, ...]
    cells: tuple[tuple[Cell, ...], ...]
    families: tuple[FamilySize, ...]
    baseline: str | None
    by: By | None
    test: str
    correction: str
    family: Family
    alpha: float
    unpaired: tuple[str, ...] = ()
    tests: Mapping[Pair, Tested] = field(default_factory=dict, repr=False)
    references: References | None = None

    def cell(self, label: str, column: int = 0) -> Cell:
        """The cell of one system in one column."""
        return self.cells[[system.label for system in self.systems].index(label)][column]


def compare(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str | Metric] = (),
    baseline: str | None = None,
    against: Sequence[Run] = (),
    references: References | None = None,
    part: Part = "test",
    test: str = "t-test",
    correction: str = "holm",
    family: Family = "metric",
    by: By | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    presence: Presence | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare systems over the users of one part of one dataset.

    Memory holds one number per run, column and user, and the lists of two runs.

    Args:
        runs: complete runs; those that differ only in seed are one system.
        metrics: what is compared; the metrics that all runs recorded if none is given.
        baseline: label of the reference; "best" or None for the best system of each column.
        against: runs of the reference side, paired with `runs` by label, or one system with
            one system; takes the place of `baseline`.
        references: declares the reference of each system; takes the place of both.
        part: whose lists are read.
        test: name of the paired test over users.
        correction: name of the correction for multiple testing.
        family: "metric" corrects the comparisons of one metric together, all groups and
            cut-offs of a breakdown included; "table" corrects all of them together.
        by: breakdown; None for one column per metric.
        cutoffs: the cut-offs of the breakdown "k".
        presence: what items have, for the breakdowns by it; see `presence.presence_of`.
        alpha: level at which tables mark a difference.
        seed: of the resampling tests.

    Raises:
        ConfigError: the runs are not comparable, or an argument does not fit them.
        DataError: a run folder is damaged.
    """
    if correction not in CORRECTIONS:
        raise UnknownNameError("correction", correction, CORRECTIONS)
    systems, unpaired = sides(runs, against)
    every = [run for system in systems for run in system.runs]
    check_comparable(every, part)
    labels = [system.label for system in systems]
    baseline = baseline or BEST
    if not against and baseline not in (BEST, *labels):
        raise UnknownNameError(
            "baseline", baseline, labels, hint=f'Or "{BEST}": the best of each column.'
        )
    wanted = [parse_metric(metric) if isinstance(metric, str) else metric for metric in metrics]
    if not wanted:
        wanted = [m for m in recorded_metrics(every, part) if m.per_user or by not in OF_ITEMS]

    columns, values, n_users = measure(
        systems, list(dict.fromkeys(wanted)), part, by, cutoffs, presence
    )
    table = [[summarise(v) for v in row] for row in values]
    # Pairs under `against` are no ranking.
    best = [
        [] if against else best_rows(column.metric, [row[c].mean for row in table])
        for c, column in enumerate(columns)
    ]
    if references is not None:
        shown = declared_pairs(columns, declared(systems, references))
    else:
        shown = shown_pairs(columns, best, labels, BEST if against else baseline, bool(against))
    pairs = dict.fromkeys(shown)
    if not against and references is None and baseline == BEST:
        pairs |= dict.fromkeys(unshown_pairs(shown, len(systems)))
    names = [
        system.hash + ("" if i % 2 or not against else "*") for i, system in enumerate(systems)
    ]
    tested, families = run_tests(
        pairs, columns, values, names, test=test, correction=correction, family=family, seed=seed
    )

    for c, winners in enumerate(best):
        for row in winners:
            table[row][c] = replace(table[row][c], is_best=True)
    for pair in shown:
        ours, theirs = table[pair.system][pair.column], table[pair.reference][pair.column]
        contrast = contrast_of(
            tested[pair], labels[pair.reference], columns[pair.column].metric, ours, theirs
        )
        table[pair.system][pair.column] = replace(ours, contrast=contrast)
        table[pair.reference][pair.column] = replace(theirs, is_reference=True)
    order = (
        list(range(len(systems)))
        if against or references is not None
        else rows_from_best(columns[0].metric, [row[0].mean for row in table])
    )
    place = {row: index for index, row in enumerate(order)}
    manifest = every[0].manifest
    return Comparison(
        dataset=str(manifest["dataset"]["name"]),
        split=str(manifest["split"]["name"]),
        protocol=_protocol_name(every),
        part=part,
        n_users=n_users,
        columns=tuple(columns),
        systems=tuple(systems[i] for i in order),
        cells=tuple(tuple(table[i]) for i in order),
        families=tuple(families),
        baseline=None if against or references is not None else baseline,
        by=by,
        test=test,
        correction=correction,
        family=family,
        alpha=alpha,
        unpaired=unpaired,
        tests={
            Pair(pair.column, place[pair.system], place[pair.reference]): result
            for pair, result in tested.items()
        },
        references=references,
    )


def summarise(values: FloatArray) -> Cell:
    """The cell of a system from its values [S, U], before any test."""
    seed_means = tuple(_mean(run) for run in values)
    average = values.mean(axis=0)
    defined = int((~np.isnan(average)).sum())
    return Cell(
        mean=_mean(average),
        seed_means=seed_means,
        seed_sd=spread(np.array(seed_means)) if len(seed_means) > 1 else None,
        n_users=defined,
        n_undefined=len(average) - defined,
    )


def _mean(values: FloatArray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def contrast_of(
    tested: Tested, reference: str, metric: Metric, ours: Cell, theirs: Cell
) -> Contrast:
    """A system's difference from its reference as a record, from their test and their cells."""
    paired, system = tested.paired, tested.system
    better, worse = paired.wins, paired.losses
    if metric.higher_is_better is False:
        better, worse = worse, better
    over_seeds = max(ours.seed_sd or 0.0, theirs.seed_sd or 0.0)
    return Contrast(
        reference=reference,
        n_users=paired.n,
        difference=paired.difference,
        relative=paired.relative_difference,
        low=paired.ci_low,
        high=paired.ci_high,
        d_z=paired.effect,
        statistic=paired.statistic,
        p=paired.p,
        adjusted=tested.adjusted,
        wins=better,
        ties=paired.ties,
        losses=worse,
        seed_spread_exceeds=over_seeds > abs(paired.difference),
        system=None
        if system is None
        else SystemContrast(
            statistic=system.statistic,
            degrees_of_freedom=system.df,
            low=system.ci_low,
            high=system.ci_high,
            p=system.p,
            adjusted=tested.system_adjusted,
        ),
    )


def _protocol_name(runs: Sequence[Run]) -> str:
    protocols = [run.manifest["protocol"] for run in runs]
    names = [str(p.get("name") if isinstance(p, Mapping) else p) for p in protocols]
    return ", ".join(dict.fromkeys(names))
