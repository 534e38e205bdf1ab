"""Where a gain comes from: which cut-offs, which users, which items."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmbench.metrics.base import METRICS
from mmbench.report.captions import caption, p_head
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
from mmbench.report.numbers import count, p_value, percent, signed

K_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
BAND = 0.16
INTERVALS = "Bands and bars are 95 % intervals over users, each for one difference, not corrected."


def gain_over_k(evidence: Evidence) -> Section | None:
    """The difference from the reference at every cut-off, from re-ranking to recall."""
    c = evidence.by_k
    if c is None:
        return None
    figures = [
        Figure(
            f"gain-over-k-{slug(name)}",
            f"{_label(name)}: gain over {_over(evidence)} by K",
            _told(c, _indices(c, name), lambda index: f"K = {c.columns[index].metric.k}"),
            partial(_curves, evidence, c, name),
        )
        for name in _names(c)
    ]
    said = (
        "Difference from the reference at cut-off K: small K is the re-ranking stage, large K the "
        f"recall stage. {INTERVALS}",
    )
    table = _table("gain-over-k", "Gain at each cut-off", c, "K")
    return Section(
        "gain-over-k",
        "Gain over K",
        (Text(said), Gallery(tuple(figures)), Details("Gains in numbers", (table,))),
    )


def sparsity(evidence: Evidence) -> Section | None:
    """The difference from the reference by activity of users and popularity of items."""
    parts: list[Part] = [Text((f"Difference from the reference within each group. {INTERVALS}",))]
    kinds = (
        ("user-activity", "user activity", evidence.by_activity),
        ("item-popularity", "item popularity", evidence.by_popularity),
    )
    figures: list[Figure] = []
    tables: list[Table] = []
    for name, kind, c in kinds:
        if c is None:
            continue
        groups = _group_namer(c)
        for metric in dict.fromkeys(str(column.metric) for column in c.columns):
            indices = [i for i, column in enumerate(c.columns) if str(column.metric) == metric]
            head = c.columns[indices[0]].metric.label
            figures.append(
                Figure(
                    f"{name}-{slug(metric)}",
                    f"{head}: gain over {_over(evidence)} by {kind}",
                    _told(c, indices, groups),
                    partial(_groups, evidence, c, indices, kind),
                )
            )
        tables.append(_table(f"gain-by-{name}", f"Gain by {kind}", c, "Group"))
    if not figures:
        return None
    parts += [Gallery(tuple(figures)), Details("Gains in numbers", tuple(tables))]
    return Section("sparsity", "Sparsity", tuple(parts))


def _names(c: Comparison) -> list[str]:
    return list(dict.fromkeys(column.metric.name for column in c.columns))


def _indices(c: Comparison, name: str) -> list[int]:
    return [i for i, column in enumerate(c.columns) if column.metric.name == name]


def _label(name: str) -> str:
    return str(METRICS.get(name).info["label"])


def _over(evidence: Evidence) -> str:
    return evidence.reference or "the other side"


def _contrasts(c: Comparison, label: str, indices: list[int]) -> list[tuple[int, Contrast]]:
    cells = [(i, c.cell(label, i).contrast) for i in indices]
    return [(i, contrast) for i, contrast in cells if contrast is not None]


def _series(evidence: Evidence) -> list[tuple[str, int]]:
    return [(label, evidence.look_index(label)) for label in evidence.others]


def _curves(evidence: Evidence, c: Comparison, name: str) -> Drawing:
    figure, axes = drawing.canvas()
    indices = _indices(c, name)
    for label, place in _series(evidence):
        seen, found = drawing.look(place), _contrasts(c, label, indices)
        ks = [c.columns[i].metric.k for i, _ in found]
        axes.fill_between(
            ks,
            [x.low for _, x in found],
            [x.high for _, x in found],
            color=seen.color,
            alpha=BAND,
            linewidth=0,
        )
        axes.plot(
            ks,
            [x.difference for _, x in found],
            color=seen.color,
            marker=seen.marker,
            linestyle=seen.dashes,
        )
    axes.axhline(0, color=drawing.INK, linewidth=0.9)
    axes.set_xscale("log")
    depth = max(c.columns[i].metric.k for i in indices)
    axes.xaxis.set_major_locator(FixedLocator([k for k in K_TICKS if k <= depth]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(drawing.number))
    axes.set_xlabel("K (items recommended)")
    axes.set_ylabel(f"difference in {_label(name)}@K")
    drawing.legend(figure, _series(evidence))
    return figure


def _groups(evidence: Evidence, c: Comparison, indices: list[int], kind: str) -> Drawing:
    figure, axes = drawing.canvas()
    series = _series(evidence)
    step = min(0.16, 0.8 / max(1, len(series)))
    for number, (label, place) in enumerate(series):
        seen = drawing.look(place)
        shift = (number - (len(series) - 1) / 2) * step
        found = [(at, x) for at, i in enumerate(indices) if (x := c.cell(label, i).contrast)]
        axes.errorbar(
            [at + shift for at, _ in found],
            [x.difference for _, x in found],
            yerr=[
                [x.difference - x.low for _, x in found],
                [x.high - x.difference for _, x in found],
            ],
            color=seen.color,
            marker=seen.marker,
            linestyle="none",
            elinewidth=1.6,
        )
    axes.axhline(0, color=drawing.INK, linewidth=0.9)
    names = _group_namer(c)
    axes.set_xticks(range(len(indices)), [_tick(names(i), c, i) for i in indices])
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.5, len(indices) - 0.5)
    items = kind == "item-popularity" or "popularity" in kind
    axes.set_xlabel(f"training interactions per {'item' if items else 'user'}")
    axes.set_ylabel(f"difference in {c.columns[indices[0]].metric.label}")
    drawing.legend(figure, series, lines=False)
    return figure


def _tick(name: str, c: Comparison, index: int) -> str:
    users = max(row[index].n_users for row in c.cells)
    return f"{name.removeprefix('users ')}\nn = {count(users)}"


def _group_namer(c: Comparison) -> Callable[[int], str]:
    def name(index: int) -> str:
        group = c.columns[index].group
        return group.name if group else str(c.columns[index].metric.k)

    return name


def _told(c: Comparison, indices: list[int], name: Callable[[int], str]) -> str:
    """The figure in words: of each system its gain at both ends."""
    parts = []
    for system in c.systems:
        found = _contrasts(c, system.label, indices)
        if found:
            ends = [found[0], *([found[-1]] if len(found) > 1 else [])]
            said = " and ".join(
                f"{signed(x.difference, 4)} [{signed(x.low, 4)}, {signed(x.high, 4)}] at {name(i)}"
                for i, x in ends
            )
            parts.append(f"{system.label}: {said}")
    return "; ".join(parts) + "."


def _table(name: str, title: str, c: Comparison, kind: str) -> Table:
    rows = []
    groups = _group_namer(c)
    for system, row in zip(c.systems, c.cells, strict=True):
        for index, (column, cell) in enumerate(zip(c.columns, row, strict=True)):
            x = cell.contrast
            if x is None:
                continue
            tone = tone_of(x.difference, x.adjusted, c.alpha, column.metric.higher_is_better)
            metric = column.metric.label if column.group else _label(column.metric.name)
            group = Cell(groups(index), groups(index) if column.group else column.metric.k)
            rows.append(
                (
                    Cell(system.label, system.label),
                    Cell(metric, metric),
                    group,
                    Cell(count(x.n_users), x.n_users),
                    Cell(signed(x.difference, 4), x.difference, tone),
                    Cell(signed(x.low, 4), x.low),
                    Cell(signed(x.high, 4), x.high),
                    Cell(percent(x.relative), x.relative),
                    Cell(p_value(x.adjusted) + ("*" if tone else ""), x.adjusted),
                )
            )
    by_k = c.by == "k"
    return Table(
        name,
        f"{title}, with 95 % intervals over users",
        (
            Column("System", numeric=False),
            Column("Metric", numeric=False),
            Column(kind, numeric=by_k),
            *(Column(head) for head in ("users", "diff", "low", "high", "relative", p_head(c))),
        ),
        tuple(rows),
        tuple(caption(c)),
    )
