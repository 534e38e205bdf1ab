"""What finished runs say of the stages of a pipeline: findings over K, and of two stages."""

from __future__ import annotations

from collections.abc import Sequence

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.metrics.base import METRICS, Metric, parse_metric
from mmbench.report.comparison import compare
from mmbench.report.gains import GainTable, gains
from mmbench.report.html.gains import section
from mmbench.report.pairing import References
from mmbench.report.systems import check_comparable, group_runs
from mmbench.runs import Run
from mmbench.studies.findings import Finding, over_k, shallowest, stage_grid
from mmbench.studies.two_stage import TwoStages, against

USUAL = ("recall", "ndcg")


def stage_findings(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] = (),
    cutoffs: Sequence[int] = (),
) -> list[Finding]:
    """The gain of each system over a reference at every cut-off, one finding per metric.

    Args:
        runs: finished runs of two or more systems.
        baseline: label of the reference; the first run's system unless given.
        metrics: names without a cut-off; recall and ndcg unless given.
        cutoffs: those that the printed table holds; all unless given.

    Raises:
        ConfigError: the runs are not comparable, there is one system, a metric has no gain for
            each user, or a cut-off is deeper than the lists.
        UnknownNameError: no system has that label.
    """
    systems = group_runs(runs)
    if len(systems) < 2:
        raise ConfigError("a gain is over another system; name runs of two or more")
    labels = [system.label for system in systems]
    if baseline is not None and baseline not in labels:
        raise UnknownNameError("baseline", baseline, labels)
    reference = systems[labels.index(baseline) if baseline is not None else 0]
    check_comparable(runs, "test")
    depth = shallowest(runs)
    grid = stage_grid(depth, cutoffs)
    references = References(
        {system.hash: reference.hash for system in systems if system is not reference},
        reference.label,
    )
    found = []
    for name in dict.fromkeys(metrics or USUAL):
        metric = parse_metric(f"{name.partition('@')[0]}@{depth}")
        if not metric.per_user or metric.higher_is_better is None:
            able = [m for m in METRICS.names() if _gains(m)]
            raise ConfigError(f"{name} has no gain for each user; choose among {', '.join(able)}")
        c = compare(
            runs,
            metrics=[metric],
            references=references,
            family="table",
            by="k",
            cutoffs=grid,
        )
        found.append(
            over_k(
                c,
                name=f"stages-{metric.name}",
                depth=depth,
                of_reference=False,
                over=reference.label,
                cutoffs=cutoffs,
            )
        )
    return found


def pipelines(pairs: Sequence[TwoStages]) -> list[Finding]:
    """Of each N two tables: two stages against the first one alone, and against the second."""
    found = []
    for n in dict.fromkeys(pair.n for pair in pairs):
        own = [pair for pair in pairs if pair.n == n]
        for which, title in (
            ("candidates", f"Re-ranking the first {n} items, against not re-ranking"),
            ("reranker", f"Re-ranking the first {n} items, against the re-ranker over all items"),
        ):
            c = against(own, which)
            table = GainTable(title, "System", "K", c, tuple(gains(c)))
            name = f"two-stage-{n}-against-{which}"
            found.append(Finding(title, c, section(name, table, "", kind="none")))
    return found


def _gains(name: str) -> bool:
    metric = Metric(name, 1)
    return metric.per_user and metric.higher_is_better is not None
