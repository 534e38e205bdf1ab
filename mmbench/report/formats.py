"""Leaderboards for other programs and for papers: GitHub, LaTeX, CSV and JSON.

GitHub and LaTeX tables are rounded like the terminal's; CSV and JSON hold every field at full
precision, CSV one line per system and column.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from mmbench.report import aligning
from mmbench.report import beside as putting
from mmbench.report import cost as costing
from mmbench.report.aligning import AlignmentBeside
from mmbench.report.beside import PublishedBeside
from mmbench.report.captions import SIGNIFICANT, SPREAD, caption, p_head, tested_systems, title
from mmbench.report.comparison import Cell, Comparison
from mmbench.report.cost import Cost
from mmbench.report.learned import learned
from mmbench.report.numbers import fixed, mean_decimals, p_value, percent

JSON_SCHEMA = 1
# Stand for markup while tabulate escapes the rest of a cell.
_BOLD, _END, _STAR, _TILDE = "\ue000", "\ue001", "\ue002", "\ue003"
MARKUP = {
    "github": {_BOLD: "**", _END: "**", _STAR: "\\*", _TILDE: "\\~"},
    "latex": {_BOLD: "\\textbf{", _END: "}", _STAR: "$^{*}$", _TILDE: "$^{\\sim}$"},
}


def as_json(
    comparison: Comparison,
    cost: Sequence[Cost] = (),
    published: PublishedBeside | None = None,
    aligned: AlignmentBeside | None = None,
) -> str:
    """Every field as JSON; see `as_dict`."""
    return json.dumps(as_dict(comparison, cost, published, aligned), indent=2, allow_nan=False)


def as_dict(
    comparison: Comparison,
    cost: Sequence[Cost] = (),
    published: PublishedBeside | None = None,
    aligned: AlignmentBeside | None = None,
) -> dict[str, Any]:
    """A comparison as plain values, ready for JSON; what is not finite becomes None.

    `cost`, `published` and `alignment` are keys only where they are given.
    """
    c = comparison
    return {
        "schema": JSON_SCHEMA,
        "dataset": c.dataset,
        "split": c.split,
        "protocol": c.protocol,
        "part": c.part,
        "n_users": c.n_users,
        "baseline": c.baseline,
        "by": c.by,
        "test": c.test,
        "correction": c.correction,
        "family": c.family,
        "alpha": c.alpha,
        "families": [asdict(family) for family in c.families],
        "unpaired": list(c.unpaired),
        "caption": caption(c),
        "systems": [
            {
                "label": system.label,
                "system": system.hash,
                "seeds": list(system.seeds),
                "runs": [str(run.path) for run in system.runs],
                **({"learned": own[0].values} if (own := learned([system])) else {}),
            }
            for system in c.systems
        ],
        "cells": _records(c),
        **({"cost": costing.records(cost)} if cost else {}),
        **({"published": _published(published)} if published else {}),
        **({"alignment": alignment_dict(aligned)} if aligned else {}),
    }


def alignment_dict(aligned: AlignmentBeside) -> dict[str, Any]:
    """What was measured of alignment, and of whom nothing was, as plain values."""
    lacking = [{"label": label, "reason": reason} for label, reason in aligned.lacking]
    return {"rows": aligning.records(aligned), "lacking": lacking}


def _published(published: PublishedBeside) -> dict[str, Any]:
    rows = [{k: _finite(v) for k, v in row.items()} for row in putting.records(published)]
    return {"notes": list(published.notes), "rows": rows}


def _records(c: Comparison) -> list[dict[str, Any]]:
    """One flat record per system and column, all with the same keys."""
    records = []
    for system, row in zip(c.systems, c.cells, strict=True):
        for column, cell in zip(c.columns, row, strict=True):
            contrast, over_systems = cell.contrast, cell.contrast.system if cell.contrast else None
            record: dict[str, Any] = {
                "label": system.label,
                "metric": str(column.metric),
                "group": column.group.name if column.group else None,
                "n_seeds": len(system.seeds),
                **{name: getattr(cell, name) for name in _CELL_FIELDS},
                "seed_means": list(cell.seed_means),
                **{name: getattr(contrast, name, None) for name in _CONTRAST_FIELDS},
                "n_paired_users": getattr(contrast, "n_users", None),
                **{f"system_{name}": getattr(over_systems, name, None) for name in _SYSTEM_FIELDS},
            }
            records.append({name: _finite(value) for name, value in record.items()})
    return records


_CELL_FIELDS = ("mean", "seed_sd", "n_users", "n_undefined", "is_best", "is_reference")
_CONTRAST_FIELDS = (
    "reference",
    "difference",
    "relative",
    "low",
    "high",
    "d_z",
    "statistic",
    "p",
    "adjusted",
    "wins",
    "ties",
    "losses",
    "seed_spread_exceeds",
)
_SYSTEM_FIELDS = ("statistic", "degrees_of_freedom", "low", "high", "p", "adjusted")


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(
    c: Comparison,
    cost: Sequence[Cost] = (),
    published: PublishedBeside | None = None,
    aligned: AlignmentBeside | None = None,
) -> str:
    """One line per system and column with every field; undefined ones are empty.

    Published numbers are lines of their own, with what differs.
    """
    records = _records(c)
    costs = {record["label"]: record for record in costing.records(cost)}
    names = costing.FIELDS if cost else ()
    measures = aligning.FIELDS if aligned else ()
    fields = [*records[0], *names, *measures, *(putting.FIELDS if published else ())]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for record in records:
        means = " ".join("" if mean is None else repr(mean) for mean in record["seed_means"])
        further = {name: costs[record["label"]][name] for name in names}
        if further:
            further["devices"] = "; ".join(further["devices"])
        if aligned:
            further |= aligning.csv_fields(aligned, record["label"])
        writer.writerow({**record, "seed_means": means, **further})
    if published:
        writer.writerows(putting.csv_records(published))
    return text.getvalue()


def as_markup(
    c: Comparison,
    form: str,
    cost: Sequence[Cost] = (),
    published: PublishedBeside | None = None,
    aligned: AlignmentBeside | None = None,
) -> str:
    """A table for "github" or "latex" (booktabs), rounded, with its caption.

    Costs, alignment and published numbers stand in tables of their own.
    """
    systems, heads = tested_systems(c), ["System"]
    labels = [
        system.label.replace("|", "\\|") if form == "github" else system.label
        for system in c.systems
    ]
    rows = [[label] for label in labels]
    for index, column in enumerate(c.columns):
        cells = [row[index] for row in c.cells]
        decimals = mean_decimals(cell.mean for cell in cells)
        compared = any(cell.contrast for cell in cells)
        heads.append(column.head)
        if compared:
            heads += ["diff", p_head(c), *(["sys. p"] if systems else [])]
        for row, cell in zip(rows, cells, strict=True):
            row.append(_mean(c, cell, decimals))
            if compared:
                row += _compared(cell, systems)
    text = _titled(title(c), heads, rows, caption(c), form)
    if cost:
        costly = [[name, *costing.cells(each)] for name, each in zip(labels, cost, strict=True)]
        heads = ["System", *costing.LONG_HEADS]
        text += "\n\n" + _titled("Cost", heads, costly, costing.notes(cost), form)
    if aligned:
        text += "\n\n" + alignment_markup(aligned, form)
    for section in putting.sections(published) if published else ():
        heads, lines = putting.markup_rows(section)
        lines = [
            [line[0].replace("|", "\\|") if form == "github" else line[0], *line[1:]]
            for line in lines
        ]
        text += "\n\n" + _titled(section.title, heads, lines, section.sentences(), form)
    for note in published.notes if published else ():
        text += f"\n\n{note}" if form == "github" else f"\n% {note}"
    for mark, markup in MARKUP[form].items():
        text = text.replace(mark, markup)
    return text


def alignment_markup(aligned: AlignmentBeside, form: str) -> str:
    """The table of alignment for "github" or "latex", or only why there is none."""
    heads, rows = aligning.markup_rows(aligned)
    said = aligning.notes(aligned)
    if rows:
        return _titled(aligning.TITLE, heads, rows, said, form)
    return "\n".join(f"- {line}" if form == "github" else f"% {line}" for line in said)


def _titled(
    head: str, heads: Sequence[str], rows: Sequence[Sequence[str]], said: Sequence[str], form: str
) -> str:
    """A table with its title above it and its sentences."""
    align = ["left", *["right"] * (len(heads) - 1)]
    tables = {"github": "github", "latex": "latex_booktabs"}
    table = tabulate(
        rows, headers=heads, tablefmt=tables[form], colalign=align, disable_numparse=True
    )
    if form == "github":
        return "\n".join([f"**{head}**", "", table, "", *(f"- {line}" for line in _escaped(said))])
    return "\n".join([f"% {head}", *(f"% {line}" for line in said), table])


def _escaped(lines: Sequence[str]) -> list[str]:
    return [
        line.replace(SIGNIFICANT, _STAR).replace(SPREAD, _TILDE).replace("<", "&lt;")
        for line in lines
    ]


def _mean(c: Comparison, cell: Cell, decimals: int) -> str:
    text = fixed(cell.mean, decimals)
    if cell.is_best:
        text = f"{_BOLD}{text}{_END}"
    if cell.contrast and cell.contrast.adjusted < c.alpha:
        text += _STAR
    return text + _TILDE if cell.contrast and cell.contrast.seed_spread_exceeds else text


def _compared(cell: Cell, systems: bool) -> list[str]:
    contrast = cell.contrast
    if contrast is None:
        return ["ref." if cell.is_reference else "", *[""] * (2 if systems else 1)]
    texts = [percent(contrast.relative), p_value(contrast.adjusted)]
    if systems:
        texts.append(p_value(contrast.system.adjusted) if contrast.system else "")
    return texts
