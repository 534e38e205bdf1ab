"""Systems laid out as the tables of arXiv 2310.20343: recommenders by encoder and by paradigm.

    encoders     Table 3: each recommender with each encoder, against modality-specific encoders
    paradigms    Table 4: each recommender and encoder, pre-trained, fine-tuned and end to end,
                 against the best of the three
    modalities   Table 5: each recommender with all modalities and with each alone

Rows come in groups; a row is tested against the reference of its group. Where the reference is the
best of its group, the data choose it, so all pairs of the group are in the family. Where several
systems belong in one cell, as the trials of a grid do, the best on validation is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.report.comparison import Cell, Comparison, contrast_of, summarise
from mmbench.report.layout_rows import FROZEN, Kind, Place, Row, called, rows_of
from mmbench.report.measuring import measure
from mmbench.report.pairing import BEST, References
from mmbench.report.paradigms import encoding_of
from mmbench.report.systems import (
    System,
    check_comparable,
    group_runs,
    recorded_metrics,
    resolved_recipe,
)
from mmbench.report.testing import Family, Pair, run_tests
from mmbench.runs import Part, Run
from mmbench.stats.correction import CORRECTIONS

LAYOUTS: Mapping[str, int] = {"encoders": 3, "paradigms": 4, "modalities": 5}
"""Names of layouts, and the paper's table that each is the layout of."""
NEEDS: Mapping[str, str] = {
    "encoders": "models that read pictures or texts",
    "paradigms": "models that read pictures or texts",
    "modalities": "models with all of their modalities and with some alone, as `mmbench ablate "
    "--drop each` trains them",
}
USUAL = "ndcg@20"
"""What the paper's Table 5 holds."""


@dataclass(frozen=True)
class Sheet:
    """The rows on one dataset.

    Attributes:
        comparison: the systems shown, with every test.
        places: of each row of the layout its system, by index; None where there is no run.
        trials: of each row how many systems it was chosen from.
    """

    comparison: Comparison
    places: tuple[int | None, ...]
    trials: tuple[int, ...]

    def cell(self, row: int, column: int) -> Cell | None:
        """The cell of a row, None where there is no run."""
        place = self.places[row]
        return None if place is None else self.comparison.cells[place][column]


@dataclass(frozen=True)
class Layout:
    """Rows by datasets and metrics.

    Attributes:
        reference: what the rows of a group are tested against, in words.
        left_out: what has no place in it, each with the reason.
        rows_learn: labels of the rows whose stored vectors learn with the recommender.
    """

    kind: Kind
    rows: tuple[Row, ...]
    sheets: tuple[Sheet, ...]
    reference: str
    left_out: tuple[tuple[str, str], ...]
    rows_learn: tuple[str, ...]


def lay_out(
    runs: Sequence[Run],
    kind: Kind,
    *,
    metrics: Sequence[str] = (),
    baseline: str | None = None,
    part: Part = "test",
    test: str = "t-test",
    correction: str = "holm",
    family: Family = "metric",
    alpha: float = 0.05,
    data_dir: Path | None = None,
    seed: int = 0,
) -> Layout:
    """Lay runs out, of one dataset or of several, and test the rows of each group.

    Args:
        runs: complete runs; those that differ only in seed are one system.
        kind: which layout.
        metrics: columns; what all runs recorded if none is given, NDCG@20 for modalities.
        baseline: name of the reference row of each group, or "best".
        part: whose lists are read.
        test: name of the paired test over users.
        correction: name of the correction for multiple testing.
        family: "metric" corrects the comparisons of one metric and dataset together, "table" all
            of a dataset.
        alpha: level at which tables mark a difference.
        data_dir: where datasets lie prepared, for runs that do not tell their paradigm.
        seed: of the resampling tests.

    Raises:
        ConfigError: no run has a place in the layout, runs are not comparable, or there are several
            possible references.
        DataError: a run folder is damaged.
        UnknownNameError: there is no such baseline.
    """
    if correction not in CORRECTIONS:
        raise UnknownNameError("correction", correction, CORRECTIONS)
    if not runs:
        raise ConfigError("no complete run to lay out; name run folders, for example runs/*")
    placed, left_out = _place(runs, data_dir, kind)
    every = [place for places in placed.values() for place in places]
    frozen = [place for place in every if place.encoding.paradigm in FROZEN]
    if kind == "encoders" and frozen:
        left_out += [
            (called(place), "its encoder learns, see --layout paradigms")
            for place in every
            if place not in frozen
        ]
        placed = {name: [p for p in places if p in frozen] for name, places in placed.items()}
        every = frozen
    keys = rows_of(kind, every)
    if not keys:
        reasons = "; ".join(f"{what}: {why}" for what, why in left_out)
        raise ConfigError(
            f"no run belongs into the layout {kind!r} ({reasons or 'each stands alone'}); it shows "
            f"{NEEDS[kind]}"
        )
    rows = list(keys)
    for place in every:
        if not any(belongs(place) for belongs in keys.values()):
            lacking = "an encoder" if not place.encoding.encoders else "other modalities"
            left_out.append((called(place), f"its model has no run with {lacking}"))
    reference = _reference(kind, rows, every, baseline)
    if kind == "encoders":
        rows.sort(key=lambda row: (row.group, not _is_named(row.name, reference)))
    wanted = [parse_metric(name) for name in metrics] or _usual(kind, every, part)
    sheets = []
    for places in placed.values():
        found: list[list[Place]] = [[p for p in places if keys[row](p)] for row in rows]
        chosen = [_chosen(found_here) for found_here in found]
        trials = tuple(map(len, found))
        options = _Options(reference, part, test, correction, family, alpha, seed)
        if any(chosen):
            sheets.append(_sheet(rows, chosen, trials, list(dict.fromkeys(wanted)), options))
    learn = [
        row.label for row in rows if any(keys[row](p) and p.encoding.rows_learn for p in every)
    ]
    left_out = list(dict.fromkeys(left_out))
    named = {BEST: "the best of its group"}.get(reference, f"{reference} in its group")
    return Layout(kind, tuple(rows), tuple(sheets), named, tuple(left_out), tuple(learn))


@dataclass(frozen=True)
class _Options:
    reference: str
    part: Part
    test: str
    correction: str
    family: Family
    alpha: float
    seed: int


def _place(
    runs: Sequence[Run], data_dir: Path | None, kind: Kind
) -> tuple[dict[str, list[Place]], list[tuple[str, str]]]:
    """Where systems belong, by dataset; and who belongs nowhere, with the reason."""
    by_dataset: dict[str, list[Run]] = {}
    for run in runs:
        by_dataset.setdefault(str(run.manifest["dataset"]["name"]), []).append(run)
    placed: dict[str, list[Place]] = {}
    left_out: list[tuple[str, str]] = []
    for dataset, own in by_dataset.items():
        for system in group_runs(own):
            first = system.runs[0]
            recipe = resolved_recipe(first)
            encoding = encoding_of(first, data_dir)
            if recipe.get("corruptions"):
                left_out.append((system.label, "its features are spoilt on purpose"))
            elif not encoding.encoders and kind != "modalities":
                left_out.append((system.label, "it learns from IDs alone"))
            else:
                model = str((first.manifest.get("model") or recipe.get("model") or {}).get("name"))
                placed.setdefault(dataset, []).append(Place(system, model, encoding))
    return placed, left_out


def _reference(
    kind: Kind, rows: Sequence[Row], places: Sequence[Place], baseline: str | None
) -> str:
    """Name of the row that the others of its group are tested against."""
    names = list(dict.fromkeys(row.name for row in rows))
    if baseline is not None:
        if baseline != BEST and baseline not in names:
            raise UnknownNameError(
                f"row of the layout {kind!r}", baseline, names, hint=f'Or "{BEST}".'
            )
        return baseline
    if kind == "paradigms":
        return BEST
    if kind == "modalities":
        whole = [name for name in names if name.count("&") == max(n.count("&") for n in names)]
        return whole[0] if len(whole) == 1 else BEST
    separate = {p.encoding.encoder for p in places if not p.encoding.is_shared}
    if len(separate) > 1:
        raise ConfigError(
            "several encoders are specific to a modality; name the one that the others are tested "
            f'against with --baseline, or "{BEST}": {", ".join(sorted(separate))}'
        )
    return separate.pop() if separate else BEST


def _usual(kind: Kind, places: Sequence[Place], part: Part) -> list[Metric]:
    found = recorded_metrics([run for place in places for run in place.system.runs], part)
    usual = [metric for metric in found if str(metric) == USUAL]
    return usual if kind == "modalities" and usual else found


def _chosen(places: Sequence[Place]) -> Place | None:
    """The system with the best validation value; the first of equal ones.

    Raises:
        ConfigError: they were not chosen by one metric.
    """
    if len(places) < 2:
        return places[0] if places else None
    asked = {_selected_by(place.system) for place in places}
    if len(asked) > 1:
        names = ", ".join(place.system.label for place in places)
        raise ConfigError(
            f"{names} belong in one cell, but were selected by {', '.join(sorted(asked))}; name "
            "runs of one selection"
        )
    metric = parse_metric(asked.pop())

    def value(place: Place) -> float:
        means = [np.nanmean(run.values(metric, "valid")) for run in place.system.runs]
        return float(np.mean(means))

    return max(places, key=value)


def _selected_by(system: System) -> str:
    training = resolved_recipe(system.runs[0]).get("training")
    return str((training if isinstance(training, Mapping) else {}).get("select_by", "recall@20"))


def _sheet(
    rows: Sequence[Row],
    chosen: Sequence[Place | None],
    trials: tuple[int, ...],
    metrics: Sequence[Metric],
    options: _Options,
) -> Sheet:
    """The rows of one dataset, measured and tested."""
    there = [(row, place) for row, place in zip(rows, chosen, strict=True) if place is not None]
    systems = [replace(place.system, label=row.label) for row, place in there]
    numbers = {row: number for number, (row, _) in enumerate(there)}
    places = tuple(numbers.get(row) for row in rows)
    # One system can stand in several rows: it is read once.
    once = {system.hash: system for system in systems}
    every = [run for system in once.values() for run in system.runs]
    check_comparable(every, options.part)
    columns, found, n_users = measure(list(once.values()), metrics, options.part, None, ())
    by_hash = dict(zip(once, found, strict=True))
    values = [by_hash[system.hash] for system in systems]
    table = [[summarise(v) for v in row] for row in values]
    shown: list[Pair] = []
    behind: dict[Pair, None] = {}
    groups: dict[int, dict[str, int]] = {}
    for row, index in numbers.items():
        groups.setdefault(row.group, {})[row.name] = index
    for c, column in enumerate(columns):
        for members in groups.values():
            inside = list(members.values())
            best = _best(column.metric, {i: table[i][c].mean for i in inside})
            for i in inside:
                if i in best and len(inside) > 1:
                    table[i][c] = replace(table[i][c], is_best=True)
            if not column.metric.per_user:
                continue
            if options.reference == BEST:
                own = best[0] if best else None
            else:
                own = next((i for n, i in members.items() if _is_named(n, options.reference)), None)
            if own is None:
                continue
            shown += [Pair(c, i, own) for i in inside if i != own]
            if options.reference == BEST:
                rest = [i for i in inside if i != own]
                behind |= {Pair(c, a, b): None for a, b in combinations(rest, 2)}
    names = [system.hash for system in systems]
    tested, families = run_tests(
        dict.fromkeys([*shown, *behind]),
        columns,
        values,
        names,
        test=options.test,
        correction=options.correction,
        family=options.family,
        seed=options.seed,
    )
    for pair in shown:
        ours, theirs = table[pair.system][pair.column], table[pair.reference][pair.column]
        label, metric = systems[pair.reference].label, columns[pair.column].metric
        contrast = contrast_of(tested[pair], label, metric, ours, theirs)
        table[pair.system][pair.column] = replace(ours, contrast=contrast)
        table[pair.reference][pair.column] = replace(theirs, is_reference=True)
    manifest = every[0].manifest
    protocols = dict.fromkeys(str(run.manifest["protocol"].get("name")) for run in every)
    named = "the best of its group" if options.reference == BEST else options.reference
    comparison = Comparison(
        dataset=str(manifest["dataset"]["name"]),
        split=str(manifest["split"]["name"]),
        protocol=", ".join(protocols),
        part=options.part,
        n_users=n_users,
        columns=tuple(columns),
        systems=tuple(systems),
        cells=tuple(map(tuple, table)),
        families=tuple(families),
        baseline=None,
        by=None,
        test=options.test,
        correction=options.correction,
        family=options.family,
        alpha=options.alpha,
        tests=tested,
        references=References({}, named),
    )
    return Sheet(comparison, places, trials)


def _is_named(name: str, reference: str) -> bool:
    """Whether a row is the reference; a recommender of pictures alone has one of its encoders."""
    return name == reference or set(name.split("+")) < set(reference.split("+"))


def _best(metric: Metric, means: Mapping[int, float]) -> list[int]:
    """The systems with the best mean; none where neither direction is better."""
    defined = {i: mean for i, mean in means.items() if not np.isnan(mean)}
    if metric.higher_is_better is None or not defined:
        return []
    pick = max if metric.higher_is_better else min
    best = pick(defined.values())
    return [i for i, mean in defined.items() if mean == best]
