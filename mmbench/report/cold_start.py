"""Warm, cold and overall side by side: means, intervals, chance, and tests over users.

The unit is the user: where a user has several cases, their mean is the user's value. The mean
over cases, as arXiv 2403.17372 counts, stands beside it. What is tested is as in `comparison`:
each system against a named baseline, or against the best of each column with every pair in the
family. A family holds all comparisons of one metric, whatever the column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.metrics.lists import BoolArray, FloatArray, IntArray, RankedLists
from mmbench.report.breakdown import Column, Group, restrict_items
from mmbench.report.systems import System, check_depth, check_same_users, group_runs
from mmbench.report.testing import FamilySize, Pair, Tested, run_tests
from mmbench.runs import Run
from mmbench.stats.chance import chance
from mmbench.stats.clustered import two_way_interval
from mmbench.stats.effects import spread

BEST = "best"
IDS_ALONE = "IDs alone"


@dataclass(frozen=True)
class Scope:
    """One group of columns: whose lists, and which relevant items count.

    Attributes:
        name: what tables call it.
        part: of the runs whose lists are read.
        items: the relevant items that count [I]; None for all.
        candidates: how many items are ranked in each row [rows].
        is_cold: whether these items are cold.
    """

    name: str
    part: str
    items: BoolArray | None
    candidates: IntArray
    is_cold: bool = False


@dataclass(frozen=True)
class ColdCell:
    """A system, or chance, in one column.

    Attributes:
        mean: over users; each user's value is the mean over his cases and the seeds.
        per_case: the mean over cases.
        low, high: 95 % interval of `mean`, users and items both random; NaN for chance.
        seed_sd: standard deviation (n - 1) of the mean over seeds; None with one seed.
        n_users, n_cases: users, and cases (lists), with a value.
        is_best: whether no system has a better mean.
        reference: label of the system that it was tested against, if any.
        tested: the test, if any.
    """

    mean: float
    per_case: float
    low: float = float("nan")
    high: float = float("nan")
    seed_sd: float | None = None
    n_users: int = 0
    n_cases: int = 0
    is_best: bool = False
    reference: str | None = None
    tested: Tested | None = None


@dataclass(frozen=True)
class ColdTable:
    """Systems by columns; `columns[c]` belongs to `scopes[c]`.

    Attributes:
        content: what each system is given, "IDs alone" or its modalities.
        chance: by column.
        cells: by system, then column.
        baseline: label, or "best".
        notes: sentences about the definition.
    """

    dataset: str
    split: str
    definition: str
    systems: tuple[System, ...]
    content: tuple[str, ...]
    scopes: tuple[Scope, ...]
    columns: tuple[Column, ...]
    chance: tuple[ColdCell, ...]
    cells: tuple[tuple[ColdCell, ...], ...]
    families: tuple[FamilySize, ...]
    baseline: str
    alpha: float
    notes: tuple[str, ...]


def compare_cold(
    runs: Sequence[Run],
    scopes: Sequence[Scope],
    metrics: Sequence[str],
    *,
    definition: str,
    notes: Sequence[str] = (),
    baseline: str | None = None,
    alpha: float = 0.05,
) -> ColdTable:
    """Put judged runs side by side.

    Raises:
        ConfigError: a metric has no value per user or looks deeper than the lists.
        UnknownNameError: there is no such metric, or no such baseline.
        DataError: lists are missing or broken.
    """
    wanted = list(dict.fromkeys(parse_metric(name) for name in metrics))
    for metric in wanted:
        if not metric.per_user or not metric.higher_is_better:
            raise ConfigError(
                f"{metric} does not say how well items are found; use for example recall@20"
            )
    systems = group_runs(runs)
    labels = [system.label for system in systems]
    if baseline not in (None, BEST, *labels):
        raise UnknownNameError(
            "baseline", str(baseline), labels, hint=f'Or "{BEST}": the best of each column.'
        )
    placed = [(metric, scope) for metric in wanted for scope in scopes]
    columns = [Column(metric, str(metric), Group(scope.name)) for metric, scope in placed]
    values: list[list[FloatArray]] = []
    cells: list[list[ColdCell]] = []
    by_chance: list[ColdCell] = []
    first: dict[str, tuple[Run, RankedLists]] = {}
    for system in systems:
        measured = [_measure(run, placed, first) for run in system.runs]
        columns_of_runs = list(zip(*measured, strict=True))
        values.append([np.stack([each.users for each in c]) for c in columns_of_runs])
        cells.append([_cell(c) for c in columns_of_runs])
        by_chance = by_chance or [each.chance for each in measured[0]]
    cells = _marked(cells)
    shown, pairs = _pairs(cells, labels, baseline or BEST)
    tested, families = run_tests(
        pairs,
        columns,
        values,
        [system.hash for system in systems],
        test="t-test",
        correction="holm",
        family="metric",
        seed=0,
    )
    for pair in shown:
        cell = cells[pair.system][pair.column]
        cells[pair.system][pair.column] = replace(
            cell, reference=labels[pair.reference], tested=tested[pair]
        )
    manifest = runs[0].manifest
    return ColdTable(
        dataset=str(manifest["dataset"]["name"]),
        split=str(manifest["split"]["name"]),
        definition=definition,
        systems=tuple(systems),
        content=tuple(_content(system) for system in systems),
        scopes=tuple(scope for _, scope in placed),
        columns=tuple(columns),
        chance=tuple(by_chance),
        cells=tuple(map(tuple, cells)),
        families=tuple(families),
        baseline=baseline or BEST,
        alpha=alpha,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Measured:
    """One run in one column: values, and what its interval needs."""

    users: FloatArray  # one value per distinct user
    pair_users: IntArray
    pair_items: IntArray
    parts: FloatArray
    weights: FloatArray
    per_case: float
    n_cases: int
    chance: ColdCell


def _measure(
    run: Run, placed: Sequence[tuple[Metric, Scope]], first: dict[str, tuple[Run, RankedLists]]
) -> list[_Measured]:
    """One run in all columns; `first` keeps the first run's lists, which others must match."""
    kept: dict[str, RankedLists] = {}
    found = []
    for metric, scope in placed:
        if scope.part not in kept:
            kept[scope.part] = run.lists(scope.part)  # type: ignore[arg-type]
            check_same_users(
                *first.setdefault(scope.part, (run, kept[scope.part])), run, kept[scope.part]
            )
        lists = kept[scope.part]
        check_depth(run, lists, [metric])
        if scope.items is not None:
            lists = restrict_items(lists, scope.items)
        found.append(_column(metric, scope, lists))
    return found


def _column(metric: Metric, scope: Scope, lists: RankedLists) -> _Measured:
    values = metric.values(lists)
    at_random = chance(
        metric.name, metric.k, scope.candidates.astype(np.float64), lists.n_relevant.astype(float)
    )
    users, per_user = by_user(values, lists.users)
    _, random_per_user = by_user(at_random, lists.users)
    has = ~np.isnan(values)
    defined = ~np.isnan(per_user)
    # Each list counts as its share of its user, each relevant item as its share of the list.
    cases_of_user = np.bincount(np.searchsorted(users, lists.users), weights=has)
    share = np.zeros(len(values))
    place = np.searchsorted(users, lists.users)
    share[has] = 1 / (cases_of_user[place[has]] * max(1, int(defined.sum())))
    rows = np.repeat(np.arange(lists.n_users), lists.n_relevant)
    weights = share[rows] / lists.n_relevant[rows]
    # The value of a list is owed to the items that were hit, to equal shares.
    hits = lists.hits_at(metric.k)
    n_hits = hits.sum(axis=1)
    hit_rows, ranks = np.nonzero(hits)
    owed = share[hit_rows] * values[hit_rows] / n_hits[hit_rows]
    n_items = len(lists.popularity)
    keys = rows * n_items + lists.relevant_items
    order = np.argsort(keys)
    at = order[
        np.searchsorted(keys, hit_rows * n_items + lists.items[hit_rows, ranks], sorter=order)
    ]
    parts = np.bincount(at, weights=owed, minlength=len(keys)).astype(np.float64)
    n_cases = int(has.sum())
    return _Measured(
        users=per_user,
        pair_users=lists.users[rows],
        pair_items=lists.relevant_items,
        parts=parts,
        weights=weights,
        per_case=_mean(values),
        n_cases=n_cases,
        chance=ColdCell(
            _mean(random_per_user),
            _mean(at_random),
            n_users=int(defined.sum()),
            n_cases=n_cases,
        ),
    )


def by_user(values: FloatArray, users: IntArray) -> tuple[IntArray, FloatArray]:
    """The users, ascending, and the mean of each one's defined values; NaN where none is."""
    distinct, place = np.unique(users, return_inverse=True)
    place, has = place.reshape(-1), ~np.isnan(values)
    total = np.bincount(place[has], weights=values[has], minlength=len(distinct))
    counts = np.bincount(place[has], minlength=len(distinct))
    return distinct, np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _cell(of_runs: Sequence[_Measured]) -> ColdCell:
    """A system in a column; parts of the same pair are averaged over the seeds."""
    first = of_runs[0]
    means = np.array([_mean(each.users) for each in of_runs])
    low, high = two_way_interval(
        first.pair_users,
        first.pair_items,
        np.mean([each.parts for each in of_runs], axis=0),
        first.weights,
    )
    return ColdCell(
        mean=float(means.mean()),
        per_case=float(np.mean([each.per_case for each in of_runs])),
        low=max(0.0, low) if low == low else low,
        high=high,
        seed_sd=spread(means) if len(means) > 1 else None,
        n_users=int((~np.isnan(first.users)).sum()),
        n_cases=first.n_cases,
    )


def _marked(cells: list[list[ColdCell]]) -> list[list[ColdCell]]:
    for column in range(len(cells[0])):
        means = [row[column].mean for row in cells]
        best = max((mean for mean in means if mean == mean), default=float("nan"))
        for row in cells:
            if len(cells) > 1 and row[column].mean == best:
                row[column] = replace(row[column], is_best=True)
    return cells


def _pairs(
    cells: Sequence[Sequence[ColdCell]], labels: Sequence[str], baseline: str
) -> tuple[list[Pair], list[Pair]]:
    """What is shown, and all that is tested: every pair where the data choose the reference."""
    shown: list[Pair] = []
    every: list[Pair] = []
    for column in range(len(cells[0])):
        best = [row for row, line in enumerate(cells) if line[column].is_best]
        if baseline == BEST and not best:
            continue
        reference = best[0] if baseline == BEST else labels.index(baseline)
        here = [Pair(column, row, reference) for row in range(len(cells)) if row != reference]
        shown += here
        every += here
        if baseline == BEST:
            every += [
                Pair(column, a, b)
                for a, b in combinations(range(len(cells)), 2)
                if reference not in (a, b)
            ]
    return shown, every


def _content(system: System) -> str:
    modalities = system.runs[0].manifest["model"].get("modalities") or []
    return ", ".join(modalities) or IDS_ALONE


def _mean(values: FloatArray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")
