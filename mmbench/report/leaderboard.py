"""Leaderboards for the terminal: as many columns as fit, then a further table; nothing squeezed.

A metric is a block of narrow columns (mean, difference, p-values) that stay together. Blocks are
packed into as many tables as the width asks for; only the labels of systems are ever wrapped.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from mmbench.errors import UnknownNameError
from mmbench.report import aligning
from mmbench.report import cost as costing
from mmbench.report import learned as learning
from mmbench.report.aligning import AlignmentBeside
from mmbench.report.beside import PublishedBeside, terminal
from mmbench.report.blocks import Block, tables
from mmbench.report.captions import SIGNIFICANT, SPREAD, caption, p_head, tested_systems, title
from mmbench.report.comparison import Cell, Comparison, Contrast
from mmbench.report.cost import Cost
from mmbench.report.formats import MARKUP, as_csv, as_json, as_markup
from mmbench.report.numbers import count, fixed, mean_decimals, p_value, percent, signed

PLAIN_WIDTH = 80


def leaderboard(
    comparison: Comparison,
    *,
    details: bool = False,
    cost: Sequence[Cost] = (),
    published: PublishedBeside | None = None,
    aligned: AlignmentBeside | None = None,
) -> Leaderboard:
    """A comparison as a rich renderable.

    Args:
        comparison: what is shown.
        details: one block per metric, with every figure, instead of the short table.
        cost: what each system cost, for a table of its own below.
        published: published numbers, for tables of their own below.
        aligned: how well vectors agree, for a table of its own below.
    """
    return Leaderboard(comparison, details, tuple(cost), published, aligned)


def render(
    comparison: Comparison,
    form: str,
    *,
    details: bool = False,
    cost: Sequence[Cost] = (),
    published: PublishedBeside | None = None,
    aligned: AlignmentBeside | None = None,
) -> str:
    """A comparison as text.

    Args:
        comparison: what is shown.
        form: "github", "latex", "csv", "json", or "table" for the terminal's, plain, 80 wide.
        details: for "table": every figure. CSV and JSON always hold all.
        cost: what each system cost; further columns of CSV, a list of its own in JSON.
        published: published numbers; further lines of CSV, a list of its own in JSON.
        aligned: how well vectors agree; further columns of CSV, a list of its own in JSON.

    Raises:
        UnknownNameError: there is no such format.
    """
    if form in MARKUP:
        return as_markup(comparison, form, cost, published, aligned)
    if form in _DATA:
        return _DATA[form](comparison, cost, published, aligned)
    if form != "table":
        raise UnknownNameError("format", form, ["table", *MARKUP, *_DATA])
    console = Console(width=PLAIN_WIDTH, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(
            leaderboard(
                comparison, details=details, cost=cost, published=published, aligned=aligned
            )
        )
    return captured.get()


_DATA = {"csv": as_csv, "json": as_json}


@dataclass(frozen=True)
class Leaderboard:
    """Renders a comparison; it looks at the width of the console only when it is printed."""

    comparison: Comparison
    details: bool = False
    cost: tuple[Cost, ...] = ()
    published: PublishedBeside | None = None
    aligned: AlignmentBeside | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the tables, and what they say about themselves."""
        c, width = self.comparison, options.max_width
        labels = [system.label for system in c.systems]
        every = range(len(c.columns))
        blocks = (
            [_detail_blocks(c, i) for i in every]
            if self.details
            else [[short_block(c, i) for i in every]]
        )
        yield Text(title(c), style="bold")
        for group in blocks:
            for table in tables(labels, group, width):
                yield Text("")
                yield table
        yield Text("")
        for line in caption(c):
            yield Text(line, style="dim")
        if self.details:
            yield from learning.shown(learning.learned(c.systems), width)
        if self.cost:
            for table in tables(labels, [costing.block(self.cost)], width):
                yield Text("")
                yield table
            yield Text("")
            for line in costing.notes(self.cost):
                yield Text(line, style="dim")
        if self.aligned:
            yield from aligning.terminal(self.aligned, width)
        if self.published:
            yield from terminal(self.published, width)


def _titles(c: Comparison, index: int, what: str = "") -> tuple[str, ...]:
    column = c.columns[index]
    head = f"{column.metric.label}{what}"
    if column.group is None:
        return (head,)
    users = max(row[index].n_users for row in c.cells)
    return head, f"{column.group.name}, n = {count(users)}"


def short_block(c: Comparison, index: int) -> Block:
    """Mean, relative difference and p-values of one column."""
    cells = [row[index] for row in c.cells]
    decimals = mean_decimals(cell.mean for cell in cells)
    if not any(cell.contrast for cell in cells):
        return Block(
            _titles(c, index), ("mean",), tuple((_mean(cell, decimals),) for cell in cells)
        )
    systems = tested_systems(c)
    heads = ("mean", "diff", p_head(c), *(["sys. p"] if systems else []))
    marks = "".join(
        mark for mark in (SIGNIFICANT, SPREAD) if any(mark in _marks(c, x.contrast) for x in cells)
    )
    rows = []
    for cell in cells:
        own = _marks(c, cell.contrast)
        # Every mark has its own place, so that the digits stay aligned.
        mean = _mean(cell, decimals) + Text("".join(mark if mark in own else " " for mark in marks))
        row = [mean, *_difference(c, cell)]
        if systems:
            contrast = cell.contrast
            row.append(
                _p(c, contrast.system.adjusted) if contrast and contrast.system else Text("")
            )
        rows.append(tuple(row))
    return Block(_titles(c, index), heads, tuple(rows))


def _difference(c: Comparison, cell: Cell) -> list[Text]:
    if cell.contrast is None:
        return [Text("ref." if cell.is_reference else "", style="dim"), Text("")]
    return [Text(percent(cell.contrast.relative)), _p(c, cell.contrast.adjusted)]


def _detail_blocks(c: Comparison, index: int) -> list[Block]:
    """Everything known about one column: the effect, then the evidence."""
    cells = [row[index] for row in c.cells]
    decimals = mean_decimals(cell.mean for cell in cells)
    several = any(cell.seed_sd is not None for cell in cells)
    compared = any(cell.contrast for cell in cells)
    heads = ["mean", *(["seed sd"] if several else [])]
    rows = [[_mean(cell, decimals)] for cell in cells]
    if several:
        for row, cell in zip(rows, cells, strict=True):
            row.append(Text(fixed(cell.seed_sd, decimals + 1)))
    if compared:
        heads += ["diff", "relative", "95% interval", "d_z"]
        for row, cell in zip(rows, cells, strict=True):
            row += _effect(cell, decimals)
    effect = Block(
        _titles(c, index, ": effect" if compared else ""),
        tuple(heads),
        tuple(tuple(row) for row in rows),
    )
    if not compared:
        return [effect]
    systems = any(cell.contrast and cell.contrast.system for cell in cells)
    heads = ["raw p", p_head(c), *(["raw sys. p", "sys. p"] if systems else []), "wins/ties/losses"]
    evidence = Block(
        _titles(c, index, ": tests"),
        tuple(heads),
        tuple(tuple(_evidence(c, cell, systems)) for cell in cells),
    )
    return [effect, evidence]


def _effect(cell: Cell, decimals: int) -> list[Text]:
    contrast = cell.contrast
    if contrast is None:
        return [
            Text("ref." if cell.is_reference else "", style="dim"),
            Text(""),
            Text(""),
            Text(""),
        ]
    interval = f"[{signed(contrast.low, decimals)}, {signed(contrast.high, decimals)}]"
    mark = SPREAD if contrast.seed_spread_exceeds else ""
    return [
        Text(signed(contrast.difference, decimals) + mark),
        Text(percent(contrast.relative)),
        Text(interval),
        Text(signed(contrast.d_z, 3)),
    ]


def _evidence(c: Comparison, cell: Cell, systems: bool) -> list[Text]:
    contrast = cell.contrast
    if contrast is None:
        return [Text("")] * (5 if systems else 3)
    texts = [Text(p_value(contrast.p)), _p(c, contrast.adjusted)]
    if systems:
        system = contrast.system
        texts += (
            [Text(p_value(system.p)), _p(c, system.adjusted)] if system else [Text("-"), Text("-")]
        )
    return [*texts, Text(f"{count(contrast.wins)}/{count(contrast.ties)}/{count(contrast.losses)}")]


def _mean(cell: Cell, decimals: int) -> Text:
    return Text(fixed(cell.mean, decimals), style="bold" if cell.is_best else "")


def _marks(c: Comparison, contrast: Contrast | None) -> str:
    if contrast is None:
        return ""
    significant = SIGNIFICANT if contrast.adjusted < c.alpha else ""
    return significant + (SPREAD if contrast.seed_spread_exceeds else "")


def _p(c: Comparison, value: float) -> Text:
    return Text(p_value(value), style="" if value < c.alpha else "dim")
