"""Systems over several datasets: average ranks, never a pooled test.

Metrics of different datasets are not on one scale, so within each dataset the systems are ranked by
their mean over users and seeds, and the ranks are averaged; see `stats/friedman.py`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import Metric, parse_metric
from mmbench.report.labels import wrap_label
from mmbench.report.listing import TABULATE
from mmbench.report.numbers import fixed, p_value
from mmbench.report.systems import check_comparable, group_runs, recorded_metrics
from mmbench.runs import Part, Run
from mmbench.stats.effects import FloatArray
from mmbench.stats.friedman import (
    FriedmanResult,
    critical_difference,
    friedman,
    holm_against,
    holm_pairs,
)

_HEAD = 12  # cells of a column's head, beyond which the name of a dataset is wrapped


@dataclass(frozen=True)
class RankedSystems:
    """One metric over N datasets and M systems.

    Attributes:
        labels: the systems, best average rank first [M].
        means: mean over users and seeds of each dataset and system [N, M].
        result: average ranks [M] and the Friedman test.
        reference: the system that the others are tested against: the baseline, or the best.
        adjusted: Holm-corrected p of each system against it [M]; NaN for that one.
        comparisons: size of the family: M - 1 with a named baseline; all pairs where the data
            chose the reference.
    """

    metric: Metric
    datasets: tuple[str, ...]
    labels: tuple[str, ...]
    means: FloatArray
    result: FriedmanResult
    reference: str
    adjusted: FloatArray
    comparisons: int


def rank_over_datasets(
    runs: Sequence[Run],
    metrics: Sequence[str] = (),
    *,
    baseline: str | None = None,
    part: Part = "test",
) -> list[RankedSystems]:
    """Rank systems of equal label over the datasets of their runs, metric by metric.

    Raises:
        ConfigError: there are fewer than two datasets or systems, a system lacks a dataset, two
            systems of a dataset share a label, or runs of one dataset are not comparable.
        UnknownNameError: no system is called `baseline`.
    """
    by_dataset: dict[str, list[Run]] = {}
    for run in runs:
        by_dataset.setdefault(str(run.manifest["dataset"]["name"]), []).append(run)
    if len(by_dataset) < 2:
        raise ConfigError("--over-datasets needs runs on two datasets or more")
    wanted = [parse_metric(name) for name in metrics] or recorded_metrics(runs, part)
    directed = [metric for metric in wanted if metric.higher_is_better is not None]
    if not directed:
        raise ConfigError("no metric to rank by; name one that is better high or low")
    means: dict[str, dict[str, list[float]]] = {}
    for dataset, own in by_dataset.items():
        check_comparable(own, part)
        means[dataset] = {
            system.label: [
                float(np.mean([np.nanmean(run.values(metric, part)) for run in system.runs]))
                for metric in directed
            ]
            for system in group_runs(own)
        }
    labels = list(dict.fromkeys(label for systems in means.values() for label in systems))
    missing = [
        f"{label} on {d}"
        for d, systems in means.items()
        for label in labels
        if label not in systems
    ]
    if missing:
        raise ConfigError(
            f"every system needs a run on every dataset; missing: {', '.join(missing)}. Train "
            "these or leave their systems out"
        )
    if len(labels) < 2:
        raise ConfigError("--over-datasets needs two systems or more")
    if baseline not in (None, "best", *labels):
        raise UnknownNameError("system", str(baseline), labels)
    return [
        _ranked(
            metric,
            tuple(means),
            labels,
            np.array([[means[d][label][i] for label in labels] for d in means]),
            None if baseline == "best" else baseline,
        )
        for i, metric in enumerate(directed)
    ]


def _ranked(
    metric: Metric,
    datasets: tuple[str, ...],
    labels: Sequence[str],
    means: FloatArray,
    baseline: str | None,
) -> RankedSystems:
    higher = bool(metric.higher_is_better)
    order = np.argsort(friedman(means, higher_is_better=higher).average_ranks, kind="stable")
    ordered = tuple(labels[i] for i in order)
    result = friedman(means[:, order], higher_is_better=higher)
    n, control = len(ordered), ordered.index(baseline) if baseline else 0
    if baseline:
        adjusted, comparisons = holm_against(result, control), n - 1
    else:
        adjusted, comparisons = holm_pairs(result)[control], n * (n - 1) // 2
        adjusted[control] = np.nan
    return RankedSystems(
        metric, datasets, ordered, means[:, order], result, ordered[control], adjusted, comparisons
    )


def ranking_tables(rankings: Sequence[RankedSystems]) -> Group:
    """One table per metric for the terminal, and what was tested below."""
    parts: list[Any] = []
    for ranked in rankings:
        table = Table(
            title=f"{ranked.metric.label} over {len(ranked.datasets)} datasets",
            title_justify="left",
        )
        table.add_column("System", overflow="fold")
        for head in ("avg. rank", "adj. p", *ranked.datasets):
            table.add_column(Text(wrap_label(head, _HEAD)), justify="right", overflow="fold")
        for i, label in enumerate(ranked.labels):
            p = "ref." if label == ranked.reference else p_value(float(ranked.adjusted[i]))
            values = (fixed(float(v), 4) for v in ranked.means[:, i])
            table.add_row(label, f"{ranked.result.average_ranks[i]:.2f}", p, *values)
        parts.append(table)
        parts.append(
            Text(
                f"Friedman test: chi-square {ranked.result.statistic:.2f}, {ranked.result.df} df, "
                f"p {p_value(ranked.result.p)}. adj. p: Holm over {ranked.comparisons} "
                f"comparisons, here with {ranked.reference}; few datasets give little power. "
                f"Nemenyi's test separates ranks {critical_difference(ranked.result):.2f} apart.",
                style="dim",
            )
        )
    return Group(*parts)


def ranking_text(rankings: Sequence[RankedSystems], form: str) -> str:
    """The same as "github", "latex", "csv" or "json"."""
    rows = [
        {
            "metric": str(ranked.metric),
            "system": label,
            "average_rank": float(ranked.result.average_ranks[i]),
            "adjusted": None if label == ranked.reference else float(ranked.adjusted[i]),
            "reference": ranked.reference,
            "friedman_p": float(ranked.result.p),
            **{d: float(ranked.means[n, i]) for n, d in enumerate(ranked.datasets)},
        }
        for ranked in rankings
        for i, label in enumerate(ranked.labels)
    ]
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()
    return tabulate(rows, headers="keys", tablefmt=TABULATE[form], floatfmt=".4f")
