"""Lists of what there is: models with shipped recipes, trials of a grid."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from tabulate import tabulate

from mmbench.metrics.base import Metric
from mmbench.runs import Run

TABULATE = {"github": "github", "latex": "latex_booktabs"}


@dataclass(frozen=True)
class TrialRow:
    """One trial of a grid: its runs, one per seed, and its mean on validation."""

    label: str
    runs: Sequence[Run]
    value: float
    chosen: bool


def trials_text(
    rows: Sequence[TrialRow], select_by: str, metrics: Sequence[Metric], output: str
) -> str:
    """All trials of a grid for machines: "github", "latex", "csv" or "json"."""
    heads, cells = _trials(rows, select_by, metrics)
    if output == "json":
        return json.dumps([dict(zip(heads, row, strict=True)) for row in cells], indent=2)
    if output == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([heads, *cells])
        return out.getvalue()
    return tabulate(cells, heads, tablefmt=TABULATE[output], floatfmt=".4f")


def trials_table(rows: Sequence[TrialRow], select_by: str, metrics: Sequence[Metric]) -> Table:
    """All trials of a grid as a table; the chosen one is marked."""
    heads, cells = _trials(rows, select_by, metrics)
    table = Table(
        title="Trials of the grid",
        caption=f"chosen by {select_by} on validation alone; test values are shown, never used",
        title_justify="left",
        caption_justify="left",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "trial" else "right", overflow="fold")
    for row, trial in zip(cells, rows, strict=True):
        shown = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row[:-1]]
        table.add_row(*shown, "yes" if trial.chosen else "", style="bold" if trial.chosen else None)
    return table


def _trials(
    rows: Sequence[TrialRow], select_by: str, metrics: Sequence[Metric]
) -> tuple[list[str], list[list[Any]]]:
    heads = ["trial", f"valid {select_by}", *(f"test {metric}" for metric in metrics), "chosen"]
    cells = []
    for row in rows:
        test = [float(np.mean([np.nanmean(run.values(m)) for run in row.runs])) for m in metrics]
        cells.append([row.label, row.value, *test, row.chosen])
    return heads, cells


def models_table(models: Mapping[str, str], recipes: Sequence[str]) -> Table:
    """Models with what they are and the datasets a recipe is shipped for.

    Args:
        models: name to one-line summary.
        recipes: shipped recipes, `<dataset>/<model>`, and `<paper>-paper/<table>` or
            `arxiv-<number>/<table>` for those that repeat a published table, which are named below.
    """
    table = Table(
        title="Models",
        caption=_papers(recipes),
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    for head in ("model", "what it is", "shipped recipes for"):
        table.add_column(head, overflow="fold")
    for name, summary in models.items():
        datasets = [d for d, _, model in (r.partition("/") for r in recipes) if model == name]
        table.add_row(name, summary.partition(": ")[2] or summary, ", ".join(datasets))
    return table


def _papers(recipes: Sequence[str]) -> str | None:
    """Each folder of recipes that repeat a paper's tables, and how one is run."""
    lines = []
    for folder in dict.fromkeys(recipe.partition("/")[0] for recipe in recipes):
        if not (folder.endswith("-paper") or folder.startswith("arxiv-")):
            continue
        names = sorted(recipe for recipe in recipes if recipe.startswith(f"{folder}/"))
        tables = ", ".join(name.partition("/")[2] for name in names)
        lines += [
            "",
            f"{folder}/: recipes of that paper's tables, run by name, for example",
            f"mmbench train {names[0]}; there are:",
            tables,
        ]
    return "\n".join(lines) or None
