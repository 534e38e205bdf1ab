"""Warm, cold and overall side by side as a section: means with intervals, and chance."""

from __future__ import annotations

import math
from functools import partial

from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from mmbench.metrics.base import Metric
from mmbench.report.cold_start import BEST, ColdCell, ColdTable
from mmbench.report.cold_tables import CHANCE, DECIMALS, caption
from mmbench.report.html import drawing
from mmbench.report.html.content import Cell, Column, Figure, Gallery, Section, Table, Text
from mmbench.report.html.evidence import Evidence
from mmbench.report.html.leaderboard import tone_of
from mmbench.report.html.naming import slug
from mmbench.report.numbers import count, fixed, p_value

CHANCE_HALF_WIDTH = 0.42
STEP = 0.16


def cold_starts(evidence: Evidence) -> tuple[Section, ...]:
    """A section for each definition by which all the runs were judged."""
    return tuple(
        cold_start(table, f"cold-start-{slug(table.definition)}") for table in evidence.cold
    )


def cold_start(table: ColdTable, name: str = "cold-start") -> Section:
    """A figure for each metric, and all cells in long form.

    Args:
        table: the systems on warm and cold items.
        name: of its files and of its place in the page.
    """
    metrics = list(dict.fromkeys(column.metric for column in table.columns))
    figures = tuple(
        Figure(
            f"{name}-{slug(str(metric))}",
            f"{metric.label} on warm and cold items",
            _told(table, metric),
            partial(_drawn, table, metric),
        )
        for metric in metrics
    )
    said = (
        "Bars are 95 % intervals of the mean, users and items both random; a dashed line is what "
        "a random order of the same candidates scores.",
    )
    heading = f"Cold start, definition {table.definition}"
    parts = (Text(said), Gallery(figures), _table(table, name))
    return Section(name, heading, parts, menu="Cold start")


def _places(t: ColdTable, metric: Metric) -> list[int]:
    return [i for i, column in enumerate(t.columns) if column.metric == metric]


def _drawn(t: ColdTable, metric: Metric) -> Drawing:
    figure, axes = drawing.canvas()
    places, labels = _places(t, metric), [system.label for system in t.systems]
    step = min(STEP, 0.8 / len(labels))
    for number, row in enumerate(t.cells):
        seen = drawing.look(number)
        shift = (number - (len(labels) - 1) / 2) * step
        cells = [row[i] for i in places]
        axes.errorbar(
            [at + shift for at in range(len(cells))],
            [cell.mean for cell in cells],
            yerr=[[_arm(c.mean, c.low) for c in cells], [_arm(c.high, c.mean) for c in cells]],
            color=seen.color,
            marker=seen.marker,
            linestyle="none",
            elinewidth=1.6,
        )
    for at, i in enumerate(places):
        ends = [at - CHANCE_HALF_WIDTH, at + CHANCE_HALF_WIDTH]
        axes.plot(ends, [t.chance[i].mean] * 2, color=drawing.INK, linestyle="--", linewidth=1.1)
    ticks = [
        f"{drawing.wrapped(t.scopes[i].name, 11)}\nn = {count(t.chance[i].n_users)}" for i in places
    ]
    axes.set_xticks(range(len(places)), ticks)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("which held-out items count, and users who have some")
    axes.set_ylabel(f"{metric.label}, mean over users")
    dashed = Line2D([], [], color=drawing.INK, linestyle="--", linewidth=1.1)
    series = [(label, i) for i, label in enumerate(labels)]
    drawing.legend(figure, series, lines=False, more=[(CHANCE, dashed)])
    return figure


def _arm(upper: float, lower: float) -> float:
    """Length of one arm of an interval; none where it has no such end."""
    return max(0.0, upper - lower) if math.isfinite(upper - lower) else 0.0


def _told(t: ColdTable, metric: Metric) -> str:
    """The figure in words: of each scope every system, and chance."""
    parts = []
    for i in _places(t, metric):
        said = [
            f"{system.label} {fixed(row[i].mean, DECIMALS)}"
            for system, row in zip(t.systems, t.cells, strict=True)
        ]
        said.append(f"{CHANCE} {fixed(t.chance[i].mean, DECIMALS)}")
        parts.append(f"{t.scopes[i].name}: {', '.join(said)}")
    return "; ".join(parts) + "."


def _table(t: ColdTable, name: str) -> Table:
    lines = [
        *((system.label, row) for system, row in zip(t.systems, t.cells, strict=True)),
        (CHANCE, t.chance),
    ]
    # What stands in one column of the figure stands together, chance below it.
    rows = [_row(t, label, i, row[i]) for i in range(len(t.columns)) for label, row in lines]
    columns = [
        *(Column(head, numeric=False) for head in ("System", "Items", "Metric")),
        *(Column(head) for head in ("mean", "low", "high", "adj. p", "users")),
        *(Column(head) for head in (("over cases", "cases") if _several_cases(t) else ())),
    ]
    said = "Every system on warm and cold items, with 95 % intervals"
    return Table(name, said, tuple(columns), tuple(rows), tuple(caption(t)))


def _several_cases(t: ColdTable) -> bool:
    """Whether a user has several cases, so that the mean over cases is another."""
    return any(cell.n_cases > cell.n_users for cell in t.chance)


def _row(t: ColdTable, label: str, i: int, cell: ColdCell) -> tuple[Cell, ...]:
    metric, test = t.columns[i].metric, cell.tested
    tone = tone_of(test.paired.difference, test.adjusted, t.alpha) if test else ""
    if test is not None:
        tested = Cell(p_value(test.adjusted) + ("*" if tone else ""), test.adjusted, tone)
    else:
        tested = Cell("best" if cell.is_best and t.baseline == BEST else "", None, "muted")
    low, high = (fixed(x, DECIMALS) if math.isfinite(x) else "" for x in (cell.low, cell.high))
    over_cases = (
        Cell(fixed(cell.per_case, DECIMALS), cell.per_case),
        Cell(count(cell.n_cases), cell.n_cases),
    )
    return (
        Cell(label, label),
        Cell(t.scopes[i].name, t.scopes[i].name),
        Cell(metric.label, metric.label),
        Cell(fixed(cell.mean, DECIMALS), cell.mean, "best" if cell.is_best else ""),
        Cell(low, cell.low),
        Cell(high, cell.high),
        tested,
        Cell(count(cell.n_users), cell.n_users),
        *(over_cases if _several_cases(t) else ()),
    )
