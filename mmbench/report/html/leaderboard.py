"""The leaderboard: every system, metric and cost in one table that sorts by any column."""

from __future__ import annotations

import math

from mmbench.report.captions import caption, p_head, tested_systems
from mmbench.report.comparison import Cell as Result
from mmbench.report.comparison import Comparison
from mmbench.report.html.content import Cell, Column, Section, Table, Text, Tone
from mmbench.report.html.evidence import Evidence
from mmbench.report.numbers import fixed, mean_decimals, p_value, percent
from mmbench.report.pairing import BEST


def leaderboard(evidence: Evidence) -> Section:
    """All systems, best first."""
    return Section(
        "leaderboard",
        "Leaderboard",
        (Text(summary(evidence)), leaderboard_table(evidence.main)),
    )


def summary(evidence: Evidence) -> tuple[str, ...]:
    """What a hurried reader takes away, in a sentence or two."""
    c = evidence.main
    first, column = c.systems[0], c.columns[0]
    mean = fixed(c.cells[0][0].mean, mean_decimals([c.cells[0][0].mean]))
    if len(c.systems) == 1:
        return (
            f"One system: {first.label}, {column.head} {mean}. Comparisons need a second one; name "
            "more runs.",
        )
    if c.baseline is None:
        return ("Systems in pairs: each against the one of the same label on the other side.",)
    said = []
    if column.metric.higher_is_better is not None:
        said.append(f"Best in {column.head}: {first.label}, {mean}.")
    contrasts = [(s.label, row[0].contrast) for s, row in zip(c.systems, c.cells, strict=True)]
    known = [(label, contrast) for label, contrast in contrasts if contrast is not None]
    if not known:
        return tuple(said)
    differing = [label for label, contrast in known if contrast.adjusted < c.alpha]
    reference = known[0][1].reference
    said.append(
        f"{len(differing)} of {len(known)} others differ significantly from {reference} "
        f"({p_head(c)} < {c.alpha:g})."
    )
    if c.baseline == BEST:
        said.append("Gains below are over the best system; --baseline LABEL names another.")
    return (" ".join(said),)


def leaderboard_table(c: Comparison, name: str = "leaderboard") -> Table:
    """Every system of a comparison with its means, differences and tests."""
    systems = tested_systems(c)
    columns = [Column("System", numeric=False), Column("Seeds")]
    rows: list[list[Cell]] = [
        [Cell(s.label, s.label), Cell(str(len(s.seeds)), len(s.seeds))] for s in c.systems
    ]
    for index, column in enumerate(c.columns):
        cells = [row[index] for row in c.cells]
        several = any(cell.seed_sd is not None for cell in cells)
        compared = any(cell.contrast for cell in cells)
        group = column.head
        columns.append(Column("mean", group=group))
        columns += [Column("seed sd", group=group)] if several else []
        columns += [Column("diff", group=group), Column(p_head(c), group=group)] if compared else []
        columns += [Column("sys. p", group=group)] if compared and systems else []
        decimals = mean_decimals(cell.mean for cell in cells)
        for row, cell in zip(rows, cells, strict=True):
            row.append(Cell(fixed(cell.mean, decimals), cell.mean, "best" if cell.is_best else ""))
            if several:
                row.append(Cell(fixed(cell.seed_sd, decimals + 1), cell.seed_sd))
            if compared:
                row += _contrast(c, cell, systems, column.metric.higher_is_better)
    return Table(
        name,
        "Every system; a head sorts the table by its column.",
        tuple(columns),
        tuple(tuple(row) for row in rows),
        tuple(caption(c)),
    )


def _contrast(c: Comparison, cell: Result, systems: bool, higher: bool | None) -> list[Cell]:
    contrast = cell.contrast
    if contrast is None:
        reference = Cell("ref." if cell.is_reference else "", None, "muted")
        return [reference, Cell(""), *([Cell("")] if systems else [])]
    tone = tone_of(contrast.difference, contrast.adjusted, c.alpha, higher)
    found = [
        Cell(percent(contrast.relative), contrast.relative, tone),
        Cell(p_value(contrast.adjusted) + ("*" if tone else ""), contrast.adjusted),
    ]
    if systems:
        over = contrast.system
        found.append(Cell(p_value(over.adjusted), over.adjusted) if over else Cell("-"))
    return found


def tone_of(difference: float, adjusted: float, alpha: float, higher: bool | None = True) -> Tone:
    """Better or worse where a difference is significant; nothing where it is not."""
    if not math.isfinite(adjusted) or adjusted >= alpha or higher is None or difference == 0:
        return ""
    return "better" if (difference > 0) == higher else "worse"
