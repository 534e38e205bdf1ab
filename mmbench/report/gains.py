"""Gains: the differences of a comparison in long form, one line per place on an axis.

A leaderboard puts columns side by side; where the same difference is looked at along an axis (the
cut-off K, groups of users or items, rungs of a corruption ladder) a line for each place is read
more easily, and holds the interval.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from mmbench.errors import UnknownNameError
from mmbench.report.captions import SIGNIFICANT, caption, p_head, title
from mmbench.report.comparison import Comparison
from mmbench.report.labels import wrap_label
from mmbench.report.numbers import count, p_value, percent, signed

MARKUP = {"github": "github", "latex": "latex_booktabs"}
INTERVALS = "Intervals: 95 % over users, each for one difference, not corrected."
LEAST_LABEL = 12


@dataclass(frozen=True)
class Place:
    """Where a system stands on an axis: which series, how the place is called, and its number."""

    series: str
    at: str
    x: float


@dataclass(frozen=True)
class Gain:
    """One difference.

    Attributes:
        series: the system whose line this is.
        metric: its label; without the cut-off where that is the axis.
        at: the place on the axis, in words.
        x: the place on the axis, as a number.
        n_users: who are paired.
        gain: the mean of the users' differences.
        low: lower bound of its 95 % interval.
        high: upper bound of it.
        relative: `gain` as a share of the mean of what is gained over; NaN where that is zero.
        p: of the paired test over users, not corrected.
        adjusted: p corrected within the family of the whole comparison.
        system_adjusted: of the test over users and seeds; None with fewer than three seeds.
        significant: whether `adjusted` is below the comparison's level.
    """

    series: str
    metric: str
    at: str
    x: float
    n_users: int
    gain: float
    low: float
    high: float
    relative: float
    p: float
    adjusted: float
    system_adjusted: float | None
    significant: bool


def gains(
    c: Comparison, *, of_reference: bool = False, places: Mapping[str, Place] | None = None
) -> list[Gain]:
    """Every tested difference of a comparison, system by system.

    Args:
        c: the comparison.
        of_reference: tell what the reference gains over each system, and not the reverse: the
            gain of a modality is that of the model that has it over the one without.
        places: by the hash of a system, its place; by default a system is a series, and the
            columns of a breakdown are the places.
    """
    found = []
    for system, row in zip(c.systems, c.cells, strict=True):
        for index, (column, cell) in enumerate(zip(c.columns, row, strict=True)):
            x = cell.contrast
            if x is None:
                continue
            if places is not None:
                place = places[system.hash]
            elif column.group is not None:
                place = Place(system.label, column.group.name, index)
            else:
                place = Place(system.label, str(column.metric.k), column.metric.k)
            by_k = c.by == "k"
            gain, low, high, relative = x.difference, x.low, x.high, x.relative
            if of_reference:
                gain, low, high = -x.difference, -x.high, -x.low
                relative = gain / cell.mean if cell.mean else math.nan
            found.append(
                Gain(
                    series=place.series,
                    metric=column.metric.label.partition("@")[0] if by_k else column.metric.label,
                    at=place.at,
                    x=place.x,
                    n_users=x.n_users,
                    gain=gain,
                    low=low,
                    high=high,
                    relative=relative,
                    p=x.p,
                    adjusted=x.adjusted,
                    system_adjusted=x.system.adjusted if x.system else None,
                    significant=bool(x.adjusted < c.alpha),
                )
            )
    return found


@dataclass(frozen=True)
class GainTable:
    """Gains as they are printed: what is gained over, along which axis, within which family.

    Attributes:
        heading: one line above.
        series: head of the column of series.
        axis: head of the column of places.
        comparison: which they are of; its caption tells the family.
        rows: the gains.
        notes: further sentences.
        shown: places that the terminal shows; empty for all. The other forms hold all.
    """

    heading: str
    series: str
    axis: str
    comparison: Comparison
    rows: tuple[Gain, ...]
    notes: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    @property
    def caption(self) -> list[str]:
        """The sentences below it."""
        own = [line for line in caption(self.comparison) if not line.startswith("diff:")]
        return [*self.notes, INTERVALS, *own]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table per metric, no wider than the console."""
        yield Text(title(self.comparison), style="bold")
        yield Text(self.heading, style="bold")
        for metric in dict.fromkeys(row.metric for row in self.rows):
            rows = [row for row in self.rows if row.metric == metric]
            yield Text("")
            shown = [row for row in rows if not self.shown or row.at in self.shown]
            yield self._table(metric, shown, options.max_width)
        yield Text("")
        for line in self.caption:
            yield Text(line, style="dim")

    def _table(self, metric: str, rows: Sequence[Gain], width: int) -> Table:
        grouped = self.comparison.by in ("user-activity", "item-popularity")
        heads = [self.axis, *(["users"] if grouped else []), metric, "95% interval", "relative"]
        heads.append(p_head(self.comparison))
        texts = [_texts(row, grouped) for row in rows]
        widths = [max(len(head), *(len(text[i]) for text in texts)) for i, head in enumerate(heads)]
        longest = max(len(self.series), *(len(row.series) for row in rows))
        label = max(LEAST_LABEL, min(longest, width - sum(widths) - 2 * len(widths)))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column(self.series, min_width=label, max_width=label, overflow="fold")
        for head in heads:
            left = head == self.axis and grouped
            table.add_column(head, justify="left" if left else "right", no_wrap=True)
        before = None
        for row, text in zip(rows, texts, strict=True):
            *middle, last = text
            table.add_row(
                Text(wrap_label(row.series, label) if row.series != before else ""),
                *map(Text, middle),
                Text(last, style="" if row.significant else "dim"),
            )
            before = row.series
        return table

    def text(self, form: str) -> str:
        """The table for machines and papers: "github", "latex", "csv" or "json".

        Raises:
            UnknownNameError: there is no such format.
        """
        if form == "json":
            return json.dumps(self.as_dict(), indent=2, allow_nan=False)
        if form == "csv":
            out = io.StringIO()
            names = list(Gain.__dataclass_fields__)
            writer = csv.DictWriter(out, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
            return out.getvalue()
        if form not in MARKUP:
            raise UnknownNameError("format", form, [*MARKUP, "csv", "json"])
        heads = [self.series, "metric", self.axis, "users", "gain", "95% interval", "relative"]
        heads.append(p_head(self.comparison))
        rows = []
        for row in self.rows:
            at, users, *rest = _texts(row, grouped=True)
            rows.append([row.series, row.metric, at, users, *rest])
        return tabulate(rows, heads, tablefmt=MARKUP[form], disable_numparse=True)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON; what is not finite becomes None."""
        c = self.comparison
        rows = []
        for row in self.rows:
            values = asdict(row)
            rows.append(
                {
                    key: None if isinstance(v, float) and not math.isfinite(v) else v
                    for key, v in values.items()
                }
            )
        return {
            "heading": self.heading,
            "dataset": c.dataset,
            "split": c.split,
            "axis": self.axis,
            "by": c.by,
            "families": [asdict(family) for family in c.families],
            "caption": self.caption,
            "gains": rows,
        }


def _texts(row: Gain, grouped: bool) -> list[str]:
    mark = SIGNIFICANT if row.significant else " "
    return [
        row.at.removeprefix("users "),
        *([count(row.n_users)] if grouped else []),
        signed(row.gain, 4),
        f"[{signed(row.low, 4)}, {signed(row.high, 4)}]",
        percent(row.relative),
        p_value(row.adjusted) + mark,
    ]
