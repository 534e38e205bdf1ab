"""The trials of a search as a table: by validation, best first; test values have no place in it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from tabulate import tabulate

from mmbench.report.listing import TABULATE


@dataclass(frozen=True)
class SearchRow:
    """One trial.

    Attributes:
        number: from 1, in the order in which trials were proposed.
        point: its settings, by key.
        value: on validation; None where it failed.
        error: why it failed.
        chosen: whether it is the one that is trained with all seeds.
    """

    number: int
    point: Mapping[str, Any]
    value: float | None
    error: str | None
    chosen: bool


@dataclass(frozen=True)
class SearchTable:
    """All trials of one system.

    Attributes:
        label: what tables call the system.
        select_by: the metric that chooses, on validation.
        method: how settings were searched.
        seed: of the sampler and of every trial.
        space: the values of each key, in words.
        rows: the trials, in any order.
    """

    label: str
    select_by: str
    method: str
    seed: int
    space: Mapping[str, str]
    rows: Sequence[SearchRow]

    def ordered(self) -> list[SearchRow]:
        """Best first, failed ones last; of equal ones the earlier first."""
        return sorted(
            self.rows, key=lambda r: (r.value is None, -(r.value or 0.0), not r.chosen, r.number)
        )

    def text(self, output: str) -> str:
        """For other programs: "github", "latex", "csv" or "json"."""
        if output == "json":
            return json.dumps(
                {
                    "label": self.label,
                    "method": self.method,
                    "seed": self.seed,
                    "select_by": self.select_by,
                    "space": dict(self.space),
                    "trials": [
                        {
                            "trial": row.number,
                            "settings": dict(row.point),
                            "valid": row.value,
                            "error": row.error,
                            "chosen": row.chosen,
                        }
                        for row in self.ordered()
                    ],
                },
                indent=2,
                default=str,
            )
        heads = ["trial", *self.space, f"valid {self.select_by}", "error", "chosen"]
        cells: list[list[Any]] = [
            [
                row.number,
                *(str(row.point.get(key, "")) for key in self.space),
                "" if row.value is None else row.value,
                row.error or "",
                row.chosen,
            ]
            for row in self.ordered()
        ]
        if output == "csv":
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows([heads, *cells])
            return out.getvalue()
        return tabulate(
            cells, heads, tablefmt=TABULATE[output], floatfmt=".4f", disable_numparse=False
        )

    def table(self) -> Table:
        """For a terminal; the chosen trial is marked."""
        table = Table(
            title=f"Trials of {self.label}",
            caption=f"by {self.select_by} on validation alone, with seed {self.seed}",
            title_justify="left",
            caption_justify="left",
        )
        short = short_keys(list(self.space))
        table.add_column("trial", justify="right")
        for key in self.space:
            table.add_column(short[key], justify="right", overflow="fold")
        table.add_column(f"valid {self.select_by}", justify="right", overflow="fold")
        table.add_column("chosen")
        for row in self.ordered():
            value = "failed" if row.value is None else f"{row.value:.4f}"
            settings = (str(row.point.get(key, "")) for key in self.space)
            chosen = "yes" if row.chosen else ""
            style = "bold" if row.chosen else None
            table.add_row(str(row.number), *settings, value, chosen, style=style)
        return table


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key, where that tells it from the others."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)
    }


def budget_text(tables: Sequence[SearchTable]) -> str:
    """Whether the systems had the same chance to be tuned, in words."""
    first, counts = tables[0], [len(table.rows) for table in tables]
    ways = list(dict.fromkeys((t.method, t.seed, t.select_by) for t in tables))
    how = " | ".join(
        f"{method}, sampler and trials with seed {seed}, chosen by {metric} on validation"
        for method, seed, metric in ways
    )
    if len(tables) == 1:
        lines = [f"Budget: {_trials(counts[0])}; {how}; test played no part."]
    elif len(set(counts)) == 1:
        lines = [
            f"Equal budgets: {_trials(counts[0])} for each of {len(tables)} systems; {how}; test "
            "played no part."
        ]
    else:
        lines = [f"Budgets: {how}; test played no part."]
        lines += [f"  {table.label}: {_trials(len(table.rows))}" for table in tables]
        lines.append("  Where there are fewer, the system's space holds no other point.")
    if len(tables) > 1:
        same = all(table.space == first.space for table in tables)
        lines.append(f"Space{', the same for all' if same else ''}:")
    values: dict[str, dict[str, list[str]]] = {}
    for table in tables:
        for key, text in table.space.items():
            values.setdefault(key, {}).setdefault(text, []).append(table.label)
    for key, texts in values.items():
        whole = len(texts) == 1 and len(next(iter(texts.values()))) == len(tables)
        for text, labels in texts.items():
            lines.append(f"  {key}: {text}" + ("" if whole else f" (of {'; '.join(labels)})"))
    lines += [
        f"  failed: {table.label} trial {row.number}: {row.error}"
        for table in tables
        for row in table.rows
        if row.error is not None
    ]
    return "\n".join(lines)


def _trials(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'}"
