"""Gains as figures and as tables of files: curves along an axis of numbers, bars for groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmbench.report.captions import p_head
from mmbench.report.gains import Gain, GainTable
from mmbench.report.html import drawing
from mmbench.report.html.breakdowns import BAND, K_TICKS
from mmbench.report.html.content import Cell, Column, Figure, Gallery, Section, Table, Tone
from mmbench.report.html.naming import slug
from mmbench.report.numbers import count, p_value, percent, signed

NUMBERS = ("K", "share")
"""Axes whose places are numbers, so that 5 is sorted before 10."""


def section(
    name: str,
    table: GainTable,
    axis: str,
    *,
    kind: str = "k",
    what: str = "gain",
    menu: str = "",
) -> Section:
    """Gains as a section: one figure per metric, and the table.

    Args:
        name: of its files.
        table: the gains.
        axis: label of the horizontal axis.
        kind: "k" for a logarithmic axis of cut-offs, "share" for one from 0 to 1 where the
            difference is 0 at 0 unless the table has one there, "groups" for places without an
            order, "none" for no figure.
        what: the word for the difference, on the vertical axis.
        menu: what the navigation of a page calls it; the heading unless given.
    """
    if kind == "none":
        return Section(name, table.heading, (_table(name, table),), menu)
    figures = []
    for metric in dict.fromkeys(row.metric for row in table.rows):
        rows = [row for row in table.rows if row.metric == metric]
        figures.append(
            Figure(
                name if name.endswith(f"-{slug(metric)}") else f"{name}-{slug(metric)}",
                f"{table.heading}: {metric}",
                _told(rows),
                partial(_drawn, rows, axis, f"{what} in {metric}", _AXES[kind]),
            )
        )
    return Section(name, table.heading, (Gallery(tuple(figures)), _table(name, table)), menu)


def _drawn(
    rows: Sequence[Gain],
    axis: str,
    label: str,
    draw: Callable[[Axes, Sequence[Gain], int, int], None],
) -> Drawing:
    figure, axes = drawing.canvas()
    series = list(dict.fromkeys(row.series for row in rows))
    for number, name in enumerate(series):
        draw(axes, [row for row in rows if row.series == name], number, len(series))
    axes.axhline(0, color=drawing.INK, linewidth=0.9)
    if draw is _bars:
        ticks = {
            row.x: f"{row.at.removeprefix('users ')}\nn = {count(row.n_users)}" for row in rows
        }
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.grid(axis="x", visible=False)
    axes.set_xlabel(axis)
    axes.set_ylabel(label)
    drawing.legend(figure, [(name, i) for i, name in enumerate(series)], lines=draw is not _bars)
    return figure


def _curve(axes: Axes, rows: Sequence[Gain], number: int, total: int) -> None:
    seen = drawing.look(number)
    xs = [row.x for row in rows]
    low, high = [row.low for row in rows], [row.high for row in rows]
    axes.fill_between(xs, low, high, color=seen.color, alpha=BAND, linewidth=0)
    axes.plot(
        xs, [row.gain for row in rows], color=seen.color, marker=seen.marker, linestyle=seen.dashes
    )


def _over_k(axes: Axes, rows: Sequence[Gain], number: int, total: int) -> None:
    _curve(axes, rows, number, total)
    axes.set_xscale("log")
    deepest = max(row.x for row in rows)
    axes.xaxis.set_major_locator(FixedLocator([k for k in K_TICKS if k <= deepest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(drawing.number))


def _over_share(axes: Axes, rows: Sequence[Gain], number: int, total: int) -> None:
    rows = sorted(rows, key=lambda row: row.x)
    if rows[0].x > 0:  # where nothing is spoilt a system is its own reference
        nothing = Gain(rows[0].series, rows[0].metric, "0%", 0, 0, 0, 0, 0, 0, 1, 1, None, False)
        rows = [nothing, *rows]
    _curve(axes, rows, number, total)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))


def _bars(axes: Axes, rows: Sequence[Gain], number: int, total: int) -> None:
    seen = drawing.look(number)
    shift = (number - (total - 1) / 2) * min(0.16, 0.8 / total)
    axes.errorbar(
        [row.x + shift for row in rows],
        [row.gain for row in rows],
        yerr=[[row.gain - row.low for row in rows], [row.high - row.gain for row in rows]],
        color=seen.color,
        marker=seen.marker,
        linestyle="none",
        elinewidth=1.6,
    )


_AXES = {"k": _over_k, "share": _over_share, "groups": _bars}


def _told(rows: Sequence[Gain]) -> str:
    """The figure in words: of each series both ends."""
    parts = []
    for name in dict.fromkeys(row.series for row in rows):
        own = [row for row in rows if row.series == name]
        ends = [own[0], *([own[-1]] if len(own) > 1 else [])]
        said = " and ".join(
            f"{signed(x.gain, 4)} [{signed(x.low, 4)}, {signed(x.high, 4)}] at {x.at}" for x in ends
        )
        parts.append(f"{name}: {said}")
    return "; ".join(parts) + "."


def _table(name: str, table: GainTable) -> Table:
    rows = []
    by_number = table.axis in NUMBERS
    for x in table.rows:
        tone: Tone = "" if not x.significant else "better" if x.gain > 0 else "worse"
        rows.append(
            (
                Cell(x.series, x.series),
                Cell(x.metric, x.metric),
                Cell(x.at, x.x if by_number else x.at),
                Cell(count(x.n_users), x.n_users),
                Cell(signed(x.gain, 4), x.gain, tone),
                Cell(signed(x.low, 4), x.low),
                Cell(signed(x.high, 4), x.high),
                Cell(percent(x.relative), x.relative),
                Cell(p_value(x.adjusted) + ("*" if x.significant else ""), x.adjusted),
            )
        )
    heads = ("users", "gain", "low", "high", "relative", p_head(table.comparison))
    columns = (
        Column(table.series, numeric=False),
        Column("Metric", numeric=False),
        Column(table.axis, numeric=by_number),
        *(Column(head) for head in heads),
    )
    return Table(name, table.heading, columns, tuple(rows), tuple(table.caption))
