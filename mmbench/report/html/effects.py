"""Differences: which pairs differ significantly, and by how much each system differs."""

from __future__ import annotations

import math
from functools import partial

from matplotlib.figure import Figure as Drawing

from mmbench.report.captions import CORRECTION_NAMES, TEST_NAMES, p_head, tested_systems
from mmbench.report.comparison import Comparison, Contrast
from mmbench.report.html import drawing
from mmbench.report.html.content import (
    Cell,
    Column,
    Details,
    Figure,
    Gallery,
    Part,
    Section,
    Table,
    Text,
)
from mmbench.report.html.evidence import Evidence
from mmbench.report.html.leaderboard import tone_of
from mmbench.report.html.naming import slug
from mmbench.report.numbers import count, fixed, mean_decimals, p_value, percent, signed
from mmbench.report.testing import Pair, Tested

SHOWN_FIRST = 2


def significance(evidence: Evidence) -> Section | None:
    """For each metric a matrix of all pairs, in one family of tests as stated."""
    c = evidence.pairs
    if c is None:
        return None
    tables = [_matrix(c, i) for i, column in enumerate(c.columns) if column.metric.per_user]
    if not tables:
        return None
    n_pairs = len(c.systems) * (len(c.systems) - 1) // 2
    said = (
        "Each cell compares the system of its row with that of its column: the relative difference "
        f"of their means, and {p_head(c)} below it. Coloured and marked with * where {p_head(c)} < "
        f"{c.alpha:g}.",
        f"{TEST_NAMES.get(c.test, c.test)} over users, each user's value averaged over the seeds; "
        f"{_family(c, n_pairs)}.",
    )
    parts: list[Part] = [Text((said[0], said[1][0].upper() + said[1][1:])), *tables[:SHOWN_FIRST]]
    if further := tables[SHOWN_FIRST:]:
        parts.append(Details("Further metrics", tuple(further)))
    return Section("significance", "Significance of all pairs", tuple(parts))


def _family(c: Comparison, n_pairs: int) -> str:
    if c.correction == "none":
        return "not corrected for multiple testing"
    name = CORRECTION_NAMES.get(c.correction, c.correction)
    if c.family == "table":
        n_columns = sum(column.metric.per_user for column in c.columns)
        if n_columns > 1:
            return f"{name} over all {n_pairs} pairs in all {n_columns} metrics together"
    pairs = "the one pair" if n_pairs == 1 else f"all {n_pairs} pairs"
    return f"{name} over {pairs} of each metric"


def _matrix(c: Comparison, index: int) -> Table:
    column = c.columns[index]
    labels = [system.label for system in c.systems]
    rows = []
    for i, label in enumerate(labels):
        row = [Cell(label, label)]
        for j in range(len(labels)):
            row.append(Cell("", None, "muted") if i == j else _pair(c, index, i, j))
        rows.append(tuple(row))
    return Table(
        f"significance-{slug(str(column.metric))}",
        f"{column.head}: row against column",
        (Column("System", numeric=False), *(Column(label) for label in labels)),
        tuple(rows),
        sortable=False,
    )


def _pair(c: Comparison, index: int, i: int, j: int) -> Cell:
    """How system i differs from system j; every pair was tested once, in either direction."""
    tested, sign = c.tests.get(Pair(index, i, j)), 1
    if tested is None:
        tested, sign = c.tests.get(Pair(index, j, i)), -1
    if tested is None:  # an undirected metric has no best, hence no tests
        return Cell("-")
    difference = sign * tested.paired.difference
    base = c.cells[j][index].mean
    relative = difference / abs(base) if base else math.nan
    tone = tone_of(difference, tested.adjusted, c.alpha, c.columns[index].metric.higher_is_better)
    shown = percent(relative) if math.isfinite(relative) else signed(difference, 4)
    mark = "*" if _significant(tested, c.alpha) else ""
    return Cell(f"{shown}\n{p_value(tested.adjusted)}{mark}", tested.adjusted, tone)


def _significant(tested: Tested, alpha: float) -> bool:
    return math.isfinite(tested.adjusted) and tested.adjusted < alpha


def effects(evidence: Evidence) -> Section | None:
    """Differences from the reference with their intervals: forest plots and a table."""
    c = evidence.main
    columns = [i for i in range(len(c.columns)) if any(row[i].contrast for row in c.cells)]
    if not columns:
        return None
    over_seeds = tested_systems(c)
    said = [
        "Mean difference over users with its 95 % interval"
        + (
            "; the thin line is the interval with users and seeds both random."
            if over_seeds
            else "."
        ),
        "d_z is Cohen's effect size: the mean difference over the standard deviation of the "
        "users' differences. Intervals are of one difference each, not corrected.",
    ]
    figures = tuple(
        Figure(
            f"effect-{slug(str(c.columns[i].metric))}",
            f"{c.columns[i].head}: difference from the reference",
            _said(c, i),
            partial(_forest, evidence, i),
        )
        for i in columns
    )
    table = _effect_table(c, columns)
    return Section(
        "effects",
        "Effect sizes",
        (
            Text(tuple(said)),
            Gallery(figures),
            Details("Effects and intervals in numbers", (table,)),
        ),
    )


def _said(c: Comparison, index: int) -> str:
    parts = []
    for system, row in zip(c.systems, c.cells, strict=True):
        if x := row[index].contrast:
            parts.append(
                f"{system.label}: {signed(x.difference, 4)} "
                f"[{signed(x.low, 4)}, {signed(x.high, 4)}] from {x.reference}"
            )
    return "; ".join(parts) + "."


def _forest(evidence: Evidence, index: int) -> Drawing:
    c = evidence.main
    shown = [(s.label, row[index].contrast) for s, row in zip(c.systems, c.cells, strict=True)]
    rows = [(label, contrast) for label, contrast in shown if contrast is not None]
    figure, axes = drawing.canvas(0.85 + 0.42 * len(rows))
    for place, (label, x) in enumerate(rows):
        seen = drawing.look(evidence.look_index(label))
        if x.system is not None:
            axes.plot([x.system.low, x.system.high], [place, place], color=seen.color, linewidth=1)
        axes.plot([x.low, x.high], [place, place], color=seen.color, linewidth=3.2)
        axes.plot([x.difference], [place], marker=seen.marker, color=seen.color, markersize=7)
        axes.annotate(
            f"d_z {signed(x.d_z, 2)}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=drawing.MUTED,
            fontsize=8,
        )
    axes.axvline(0, color=drawing.INK, linewidth=0.9)
    axes.set_yticks(range(len(rows)), [drawing.wrapped(label, 22) for label, _ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=drawing.INK)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    references = dict.fromkeys(x.reference for _, x in rows)
    reference = next(iter(references)) if len(references) == 1 else "the other side"
    axes.set_xlabel(drawing.wrapped(f"{c.columns[index].head} minus that of {reference}", 60))
    axes.locator_params(axis="x", nbins=5)
    return figure


def _effect_table(c: Comparison, indices: list[int]) -> Table:
    heads = ("Metric", "Reference", "diff", "relative", "low", "high", "d_z", "raw p", p_head(c))
    rows = []
    for i in indices:
        decimals = max(4, mean_decimals(row[i].mean for row in c.cells))
        for system, row in zip(c.systems, c.cells, strict=True):
            if x := row[i].contrast:
                head = c.columns[i].head
                rows.append(
                    (
                        Cell(system.label, system.label),
                        Cell(head, head),
                        Cell(x.reference, x.reference),
                        *_effect_cells(c, x, decimals, c.columns[i].metric.higher_is_better),
                    )
                )
    return Table(
        "effects",
        "Differences from the reference over users, with 95 % intervals",
        (
            Column("System", numeric=False),
            *(Column(head, numeric=head not in heads[:2]) for head in heads),
            Column("wins"),
            Column("ties"),
            Column("losses"),
        ),
        tuple(rows),
    )


def _effect_cells(
    c: Comparison, x: Contrast, decimals: int, higher: bool | None
) -> tuple[Cell, ...]:
    tone = tone_of(x.difference, x.adjusted, c.alpha, higher)
    return (
        Cell(signed(x.difference, decimals), x.difference, tone),
        Cell(percent(x.relative), x.relative),
        Cell(signed(x.low, decimals), x.low),
        Cell(signed(x.high, decimals), x.high),
        Cell(fixed(x.d_z, 3), x.d_z),
        Cell(p_value(x.p), x.p),
        Cell(p_value(x.adjusted) + ("*" if tone else ""), x.adjusted),
        *(Cell(count(n), n) for n in (x.wins, x.ties, x.losses)),
    )
