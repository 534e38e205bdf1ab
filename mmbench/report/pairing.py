"""Who is tested against whom in a comparison.

baseline=LABEL   that system, in every column
baseline="best"  the best system of each column. The data choose it, so it stands for all
n (n - 1) / 2 comparisons, and all of them are in the family; with the
n - 1 visible ones alone, the family-wise error rate would exceed its level.
against=RUNS     the system of the same label among those runs
references=...   for each system another one of the table, as a study declares it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from mmbench.errors import ConfigError
from mmbench.metrics.base import Metric
from mmbench.report.breakdown import Column
from mmbench.report.systems import System, group_runs
from mmbench.report.testing import Pair
from mmbench.runs import Run

BEST = "best"
AGAINST = "{} (against)"


@dataclass(frozen=True)
class References:
    """Who is tested against whom, where a study declares it for each system by itself.

    Attributes:
        of: hash of a system to the hash of its reference; a system that is not named is shown
            and not tested.
        named: what the references are, in words, for the caption.
    """

    of: Mapping[str, str]
    named: str


def sides(runs: Sequence[Run], against: Sequence[Run]) -> tuple[list[System], tuple[str, ...]]:
    """What is compared, under `against` in pairs (reference, system); and who is left over."""
    systems = group_runs(runs)
    if not against:
        return systems, ()
    references = {system.label: system for system in group_runs(against)}
    if len(systems) == len(references) == 1:
        partner = {systems[0].label: next(iter(references.values()))}
    else:
        partner = references
        missing = [system.label for system in systems if system.label not in references]
        if missing:
            raise ConfigError(
                f"no run to compare {', '.join(map(repr, missing))} against; the other side has "
                f"{', '.join(map(repr, sorted(references)))}. Systems are paired by label. "
                "--against takes one path, so of a pattern the shell gives it the first: name the "
                "folder that holds the runs, or repeat the option"
            )
    paired = []
    for system in systems:
        reference = partner[system.label]
        paired += [replace(reference, label=AGAINST.format(reference.label)), system]
    used = {partner[system.label].label for system in systems}
    return paired, tuple(sorted(set(references) - used))


def declared(systems: Sequence[System], references: References) -> list[int]:
    """The row of each system's declared reference, -1 for a system that has none.

    Raises:
        ConfigError: a declared reference is not among the systems.
    """
    rows = {system.hash: row for row, system in enumerate(systems)}
    declared = []
    for system in systems:
        key = references.of.get(system.hash)
        if key is not None and (key not in rows or key == system.hash):
            raise ConfigError(
                f"the reference of {system.label!r} is not among the compared systems; give its "
                "runs as well"
            )
        declared.append(-1 if key is None else rows[key])
    return declared


def best_rows(metric: Metric, means: Sequence[float]) -> list[int]:
    """The rows with the best mean; none where neither direction is better."""
    defined = [mean for mean in means if not np.isnan(mean)]
    if metric.higher_is_better is None or not defined or len(means) < 2:
        return []
    best = max(defined) if metric.higher_is_better else min(defined)
    return [row for row, mean in enumerate(means) if mean == best]


def rows_from_best(metric: Metric, means: Sequence[float]) -> list[int]:
    """Rows from best to worst, undefined ones last; as given where neither direction is better."""
    if metric.higher_is_better is None:
        return list(range(len(means)))
    sign = -1 if metric.higher_is_better else 1
    return sorted(range(len(means)), key=lambda row: (np.isnan(means[row]), sign * means[row]))


def shown_pairs(
    columns: Sequence[Column],
    best: Sequence[Sequence[int]],
    labels: Sequence[str],
    baseline: str,
    paired: bool,
) -> list[Pair]:
    """Who is tested against whom, column by column."""
    pairs = []
    for c, column in enumerate(columns):
        if not column.metric.per_user:
            continue
        if paired:
            pairs += [Pair(c, row + 1, row) for row in range(0, len(labels), 2)]
        elif baseline != BEST or best[c]:
            reference = best[c][0] if baseline == BEST else labels.index(baseline)
            pairs += [Pair(c, row, reference) for row in range(len(labels)) if row != reference]
    return pairs


def declared_pairs(columns: Sequence[Column], references: Sequence[int]) -> list[Pair]:
    """Each system with its declared reference, column by column."""
    return [
        Pair(c, row, reference)
        for c, column in enumerate(columns)
        if column.metric.per_user
        for row, reference in enumerate(references)
        if reference >= 0
    ]


def unshown_pairs(shown: Sequence[Pair], n_systems: int) -> list[Pair]:
    """The other pairs of the columns with tests: where data choose the reference, they count."""
    there = {(p.column, frozenset((p.system, p.reference))) for p in shown}
    return [
        Pair(c, a, b)
        for c in {p.column: None for p in shown}
        for a, b in combinations(range(n_systems), 2)
        if (c, frozenset((a, b))) not in there
    ]
