"""The tables of a cold-start study: for the terminal, for papers, and for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from tabulate import tabulate

from mmbench.report.blocks import Block, tables
from mmbench.report.captions import SIGNIFICANT
from mmbench.report.cold_start import BEST, ColdCell, ColdTable
from mmbench.report.leaderboard import PLAIN_WIDTH
from mmbench.report.listing import TABULATE
from mmbench.report.numbers import count, fixed, p_value

DECIMALS = 4
CHANCE = "chance"
JSON_SCHEMA = 1


@dataclass(frozen=True)
class ColdLeaderboard:
    """Renders a table of a cold-start study, as wide as the console."""

    table: ColdTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the tables, and what they say about themselves."""
        t = self.table
        labels = [*(system.label for system in t.systems), CHANCE]
        blocks = [_block(t, column) for column in range(len(t.columns))]
        yield Text(title(t), style="bold")
        for table in tables(labels, blocks, options.max_width):
            yield Text("")
            yield table
        if _several_cases(t):
            for table in tables(labels, _case_blocks(t), options.max_width):
                yield Text("")
                yield table
        yield Text("")
        for line in caption(t):
            yield Text(line, style="dim")


def render_cold(table: ColdTable, form: str) -> str:
    """A table as text: "table" (plain, 80 wide), "github", "latex", "csv" or "json"."""
    if form == "json":
        return json.dumps(as_dict(table), indent=2, allow_nan=False)
    if form == "csv":
        rows = records(table)
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()
    if form == "table":
        console = Console(width=PLAIN_WIDTH, file=io.StringIO(), color_system=None)
        with console.capture() as captured:
            console.print(ColdLeaderboard(table))
        return captured.get()
    return _markup(table, form)


def title(t: ColdTable) -> str:
    """One line: the data, the definition, the split."""
    return f"{t.dataset} | cold start, definition {t.definition} | split {t.split}"


def caption(t: ColdTable) -> list[str]:
    """What a reader must know of the numbers, one sentence each."""
    lines = list(t.notes)
    given = ", ".join(f"{s.label}: {c}" for s, c in zip(t.systems, t.content, strict=True))
    lines.append(f"Given to the models: {given}.")
    sizes = []
    for column, scope in enumerate(t.scopes):
        cell = t.chance[column]
        size = f"{scope.name} {count(cell.n_users)} users, {count(cell.n_cases)} cases"
        if size not in sizes:
            sizes.append(size)
    lines.append(f"Sizes: {'; '.join(sizes)}.")
    lines.append(
        "mean: over users; a user with several cases counts once, by their mean. 95% interval: of "
        "the mean, users and items both random (two-way clusters); with no hit at all its upper "
        "bound is what so few users or items could hide."
    )
    lines.append(f"{CHANCE}: what a random order of the candidates scores, computed exactly.")
    if len(t.systems) > 1:
        what = (
            "the best of each column, every pair in the family since the data choose the reference"
            if t.baseline == BEST
            else t.baseline
        )
        number = {family.over_users for family in t.families}
        sizes_text = " or ".join(map(str, sorted(number)))
        lines.append(
            f"adj. p: two-sided paired t-test over users (seeds averaged) against {what}; "
            f"Holm-Bonferroni over {sizes_text} comparisons per metric, all its columns together. "
            f"{SIGNIFICANT} adj. p < {t.alpha:g}."
        )
    seeds = sorted({len(system.seeds) for system in t.systems})
    lines.append(f"Seeds: {' or '.join(map(str, seeds))} each.")
    return lines


def as_dict(t: ColdTable) -> dict[str, Any]:
    """All of it as plain values; what is not finite is None."""
    return {
        "schema": JSON_SCHEMA,
        "dataset": t.dataset,
        "split": t.split,
        "definition": t.definition,
        "baseline": t.baseline,
        "alpha": t.alpha,
        "families": [
            {"name": family.name, "comparisons": family.over_users} for family in t.families
        ],
        "caption": caption(t),
        "systems": [
            {
                "label": system.label,
                "system": system.hash,
                "given": given,
                "seeds": list(system.seeds),
                "runs": [str(run.path) for run in system.runs],
            }
            for system, given in zip(t.systems, t.content, strict=True)
        ],
        "cells": records(t),
    }


def records(t: ColdTable) -> list[dict[str, Any]]:
    """One flat record per system and column, chance included, all with the same keys."""
    rows = []
    lines = [(s.label, given, c) for s, given, c in zip(t.systems, t.content, t.cells, strict=True)]
    for label, given, cells in [*lines, (CHANCE, None, t.chance)]:
        for column, cell in enumerate(cells):
            test = cell.tested
            record = {
                "label": label,
                "given": given,
                "metric": str(t.columns[column].metric),
                "scope": t.scopes[column].name,
                "is_cold": t.scopes[column].is_cold,
                "part": t.scopes[column].part,
                "mean": cell.mean,
                "per_case": cell.per_case,
                "low": cell.low,
                "high": cell.high,
                "seed_sd": cell.seed_sd,
                "n_users": cell.n_users,
                "n_cases": cell.n_cases,
                "is_best": cell.is_best,
                "chance": t.chance[column].mean,
                "reference": cell.reference,
                "difference": test.paired.difference if test else None,
                "difference_low": test.paired.ci_low if test else None,
                "difference_high": test.paired.ci_high if test else None,
                "d_z": test.paired.effect if test else None,
                "p": test.paired.p if test else None,
                "adjusted": test.adjusted if test else None,
                "wins": test.paired.wins if test else None,
                "ties": test.paired.ties if test else None,
                "losses": test.paired.losses if test else None,
                "system_p": test.system.p if test and test.system else None,
                "system_adjusted": test.system_adjusted if test and test.system else None,
            }
            rows.append({name: _finite(value) for name, value in record.items()})
    return rows


def _block(t: ColdTable, column: int) -> Block:
    rows = [_texts(t, row[column]) for row in t.cells]
    rows.append((Text(fixed(t.chance[column].mean, DECIMALS) + " "), Text(""), Text("")))
    metric, scope = t.columns[column].metric, t.scopes[column]
    return Block(
        (f"{metric.label}: {scope.name}",), ("mean ", "95% interval", "adj. p"), tuple(rows)
    )


def _texts(t: ColdTable, cell: ColdCell) -> tuple[Text, ...]:
    mark = SIGNIFICANT if _is_significant(t, cell) else " "
    mean = Text(fixed(cell.mean, DECIMALS), style="bold" if cell.is_best else "") + Text(mark)
    return mean, Text(_interval(cell)), _p(t, cell)


def _case_blocks(t: ColdTable) -> list[Block]:
    """Means over cases, one block per metric."""
    blocks = []
    for metric in dict.fromkeys(column.metric for column in t.columns):
        places = [i for i, column in enumerate(t.columns) if column.metric == metric]
        rows = tuple(
            tuple(Text(fixed(line[i].per_case, DECIMALS)) for i in places)
            for line in (*t.cells, t.chance)
        )
        heads = tuple(t.scopes[i].name.replace(", ", "/") for i in places)
        blocks.append(Block((f"{metric.label}: mean over cases",), heads, rows))
    return blocks


def _markup(t: ColdTable, form: str) -> str:
    heads = ["System"]
    lines = [[system.label] for system in t.systems] + [[CHANCE]]
    for column, scope in enumerate(t.scopes):
        heads += [f"{t.columns[column].metric.label} {scope.name}", "95% interval", "adj. p"]
        for line, row in zip(lines, (*t.cells, t.chance), strict=True):
            cell = row[column]
            mark = SIGNIFICANT if _is_significant(t, cell) else ""
            line += [fixed(cell.mean, DECIMALS) + mark, _interval(cell), _p(t, cell).plain]
    if _several_cases(t):
        for column, scope in enumerate(t.scopes):
            heads.append(f"{t.columns[column].metric.label} {scope.name}, per case")
            for line, row in zip(lines, (*t.cells, t.chance), strict=True):
                line.append(fixed(row[column].per_case, DECIMALS))
    if form == "github":
        lines = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in lines]
    table = tabulate(lines, heads, tablefmt=TABULATE[form], disable_numparse=True)
    if form == "github":
        said = [f"- {line.replace('*', chr(92) + '*').replace('<', '&lt;')}" for line in caption(t)]
        return "\n".join([f"**{title(t)}**", "", table, "", *said])
    return "\n".join([f"% {title(t)}", *(f"% {line}" for line in caption(t)), table])


def _interval(cell: ColdCell) -> str:
    if not math.isfinite(cell.low):
        return ""
    return f"{fixed(cell.low, DECIMALS)}-{fixed(cell.high, DECIMALS)}"


def _p(t: ColdTable, cell: ColdCell) -> Text:
    if cell.tested is None:
        return Text("best" if cell.is_best and t.baseline == BEST else "", style="dim")
    return Text(p_value(cell.tested.adjusted), style="" if _is_significant(t, cell) else "dim")


def _is_significant(t: ColdTable, cell: ColdCell) -> bool:
    return cell.tested is not None and cell.tested.adjusted < t.alpha


def _several_cases(t: ColdTable) -> bool:
    return any(cell.n_cases > cell.n_users for cell in t.chance)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
