"""How soon training gets as far as a reference gets at its best, on validation, epoch by epoch.

    goal_s(x)   x times the best validation value of the reference run of seed s
    epochs      the first validated epoch of the run of seed s that reaches goal_s(x), mean over
                the seeds that do; 0 where the weights that it starts from do so by themselves

Runs of one table validate the same users, so that their values can be put on one axis.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure as Drawing
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as Grid
from rich.text import Text
from tabulate import tabulate

from mmbench.errors import UnknownNameError
from mmbench.metrics.base import parse_metric
from mmbench.report.gains import LEAST_LABEL, MARKUP
from mmbench.report.html import drawing
from mmbench.report.html.content import Cell, Column, Figure, Gallery, Section, Table
from mmbench.report.html.evidence import read_history
from mmbench.report.html.naming import slug
from mmbench.report.labels import wrap_label
from mmbench.report.numbers import MISSING, fixed
from mmbench.runs import Run

SHARES = (0.5, 0.8, 0.9, 0.95, 1.0)
_ROUNDING = 1e-9
"""0.9 times 0.4 is more than 0.36 in floating point."""


@dataclass(frozen=True)
class Trace:
    """A system whose convergence is looked at.

    Attributes:
        label: what the table calls it.
        runs: one per seed.
        reference: the runs whose best values are the goals.
        untrained: runs of the weights that it starts from, where those can rank by themselves.
    """

    label: str
    runs: tuple[Run, ...]
    reference: tuple[Run, ...]
    untrained: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One run: validated epochs, from 0 where the weights at the start can rank.

    Attributes:
        seed: of the run.
        epochs: which were validated, ascending.
        values: the validation metric after them.
        steps_per_epoch: of the optimiser.
    """

    seed: int
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    steps_per_epoch: int

    @property
    def best(self) -> float:
        """The best value among the epochs that were trained; NaN where there is none."""
        return max(
            (v for e, v in zip(self.epochs, self.values, strict=True) if e), default=math.nan
        )

    def first(self, goal: float) -> int | None:
        """The first validated epoch that reaches a goal, None where none does."""
        goal *= 1 - _ROUNDING
        pairs = zip(self.epochs, self.values, strict=True)
        return next((epoch for epoch, value in pairs if value >= goal), None)


@dataclass(frozen=True)
class Reached:
    """One system and one share of what the reference reaches.

    Attributes:
        system: its label.
        share: of the reference's best validation value.
        seeds: runs.
        reached: how many of them get there.
        epochs: mean over those; NaN where there is none.
        steps: of the optimiser until then, mean over those.
    """

    system: str
    share: float
    seeds: int
    reached: int
    epochs: float
    steps: float


def curves(trace: Trace, metric: str) -> tuple[Curve, ...]:
    """The curves of a system, one per run.

    Raises:
        DataError: a history is damaged.
    """
    start = {run.seed: run for run in trace.untrained}
    found = []
    for run in trace.runs:
        epochs, values = [], []
        if run.seed in start:
            epochs.append(0)
            values.append(float(start[run.seed].manifest["metrics"]["valid"].get(metric, math.nan)))
        for epoch in read_history(run):
            if metric in epoch.valid:
                epochs.append(epoch.number)
                values.append(epoch.valid[metric])
        steps = int(run.manifest["training"].get("steps_per_epoch") or 0)
        found.append(Curve(run.seed, tuple(epochs), tuple(values), steps))
    return tuple(found)


def reached(trace: Trace, metric: str, shares: Sequence[float] = SHARES) -> list[Reached]:
    """When a system gets how far, one record per share."""
    goals = {curve.seed: curve.best for curve in curves(Trace("", trace.reference, ()), metric)}
    own = [curve for curve in curves(trace, metric) if curve.seed in goals]
    found = []
    for share in shares:
        firsts = [(curve.first(share * goals[curve.seed]), curve) for curve in own]
        there = [(epoch, curve) for epoch, curve in firsts if epoch is not None]
        epochs = [epoch for epoch, _ in there]
        steps = [epoch * curve.steps_per_epoch for epoch, curve in there]
        found.append(
            Reached(
                trace.label,
                share,
                len(own),
                len(there),
                float(np.mean(epochs)) if epochs else math.nan,
                float(np.mean(steps)) if steps else math.nan,
            )
        )
    return found


@dataclass(frozen=True)
class Convergence:
    """Systems whose curves stand on one axis, as a table of when each gets how far.

    Attributes:
        heading: one line above.
        metric: on validation.
        traces: the systems; those that are trained.
        named: what the goals are taken from, in words.
    """

    heading: str
    metric: str
    traces: tuple[Trace, ...]
    named: str
    shares: tuple[float, ...] = SHARES

    @property
    def rows(self) -> list[list[Reached]]:
        """Of each system its records, by share."""
        return [reached(trace, self.metric, self.shares) for trace in self.traces]

    @property
    def caption(self) -> list[str]:
        """The sentences below it."""
        return [
            f"Epochs until validation {parse_metric(self.metric).label} reaches a share of "
            f"{self.named}, seed by seed, mean over seeds; 0: without training. n/N: only n of N "
            f"seeds get there; {MISSING}: none does.",
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One table, no wider than the console."""
        yield Text(self.heading, style="bold")
        yield Text("")
        heads, texts = self._heads(), self._texts()
        widths = [max(len(heads[i]), *(len(row[i]) for row in texts)) for i in range(1, len(heads))]
        room = options.max_width - sum(widths) - 2 * len(widths)
        label = max(LEAST_LABEL, min(max(len(row[0]) for row in texts), room))
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        grid.add_column(heads[0], min_width=label, max_width=label, overflow="fold")
        for head in heads[1:]:
            grid.add_column(head, justify="right", no_wrap=True)
        for row in texts:
            grid.add_row(*map(Text, (wrap_label(row[0], label), *row[1:])))
        yield grid
        yield Text("")
        for line in self.caption:
            yield Text(line, style="dim")

    def text(self, form: str) -> str:
        """The table for machines and papers: "github", "latex", "csv" or "json".

        Raises:
            UnknownNameError: there is no such format.
        """
        if form == "json":
            return json.dumps(self.as_dict(), indent=2, allow_nan=False)
        if form == "csv":
            out = io.StringIO()
            writer = csv.DictWriter(out, list(Reached.__dataclass_fields__), lineterminator="\n")
            writer.writeheader()
            writer.writerows(record for record in self._records())
            return out.getvalue()
        if form not in MARKUP:
            raise UnknownNameError("format", form, [*MARKUP, "csv", "json"])
        return tabulate(self._texts(), self._heads(), tablefmt=MARKUP[form], disable_numparse=True)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON; what is not finite becomes None."""
        return {
            "heading": self.heading,
            "metric": self.metric,
            "caption": self.caption,
            "reached": self._records(),
        }

    def _records(self) -> list[dict[str, object]]:
        records = [asdict(each) for row in self.rows for each in row]
        return [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()}
            for r in records
        ]

    def _heads(self) -> list[str]:
        return ["System", "best", "steps/ep.", *(f"{share:.0%}" for share in self.shares)]

    def _texts(self) -> list[list[str]]:
        found = []
        for trace, row in zip(self.traces, self.rows, strict=True):
            own = curves(trace, self.metric)
            best = float(np.mean([curve.best for curve in own]))
            steps = max(curve.steps_per_epoch for curve in own)
            found.append([trace.label, fixed(best, 4), str(steps), *map(_reached_text, row)])
        return found


def _reached_text(each: Reached) -> str:
    if not each.reached:
        return MISSING
    part = "" if each.reached == each.seeds else f" {each.reached}/{each.seeds}"
    return f"{each.epochs:.4g}{part}"


def section(name: str, tables: Sequence[Convergence]) -> Section:
    """Convergence as a section: of each table two figures, and all of them as files.

    Args:
        name: of its files.
        tables: one, or one for each number of users.
    """
    figures: list[Figure] = []
    parts: list[Table] = []
    for number, table in enumerate(tables):
        own = name if len(tables) == 1 else f"{name}-{number + 1}"
        lines = {trace.label: curves(trace, table.metric) for trace in table.traces}
        label = parse_metric(table.metric).label
        for kind in ("epochs", "steps"):
            figures.append(
                Figure(
                    f"{own}-{kind}",
                    f"{table.heading}: validation {label} over {kind}",
                    _told(lines),
                    partial(_drawn, lines, label, kind),
                )
            )
        parts.append(_table(own, table))
    return Section(slug(name), "Convergence", (Gallery(tuple(figures)), *parts))


def _table(name: str, table: Convergence) -> Table:
    rows = tuple(
        (
            Cell(each.system, each.system),
            Cell(f"{each.share:.0%}", each.share),
            Cell(str(each.seeds), each.seeds),
            Cell(str(each.reached), each.reached),
            Cell(_reached_text(each), each.epochs),
            Cell(fixed(each.steps, 0), each.steps),
        )
        for row in table.rows
        for each in row
    )
    heads = ("share of the goal", "seeds", "reached", "epochs", "steps")
    columns = (Column("System", numeric=False), *(Column(head) for head in heads))
    return Table(name, table.heading, columns, rows, tuple(table.caption))


def _told(lines: Mapping[str, Sequence[Curve]]) -> str:
    """The figure in words: of each curve its first and its best value."""
    parts = []
    for label, own in lines.items():
        for curve in own:
            if curve.epochs:
                parts.append(
                    f"{label}, seed {curve.seed}: {fixed(curve.values[0], 4)} at epoch "
                    f"{curve.epochs[0]}, best {fixed(curve.best, 4)}, {curve.epochs[-1]} epochs"
                )
    return "; ".join(parts) + "."


def _drawn(lines: Mapping[str, Sequence[Curve]], label: str, kind: str) -> Drawing:
    figure, axes = drawing.canvas()
    for number, own in enumerate(lines.values()):
        seen = drawing.look(number)
        for curve in own:
            scale = 1 if kind == "epochs" else curve.steps_per_epoch
            along = [epoch * scale for epoch in curve.epochs]
            axes.plot(along, curve.values, color=seen.color, linestyle=seen.dashes, linewidth=1.3)
            if along and along[0] == 0:  # what the weights do before any step here
                axes.plot(along[:1], curve.values[:1], color=seen.color, marker=seen.marker)
    axes.set_xlabel("epoch" if kind == "epochs" else "steps of the optimizer")
    axes.set_ylabel(f"validation {label}")
    axes.set_xlim(left=0)
    drawing.legend(figure, [(name, i) for i, name in enumerate(lines)])
    return figure
