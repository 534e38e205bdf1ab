"""Layouts for the terminal, for GitHub and LaTeX, and for other programs.

In the terminal every dataset is a table of its own, 80 columns wide; in GitHub's and LaTeX's form
the datasets stand side by side, as in the paper. CSV and JSON hold every field at full precision.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from mmbench.errors import UnknownNameError
from mmbench.report import aligning
from mmbench.report.aligning import AlignmentBeside
from mmbench.report.blocks import Block, tables
from mmbench.report.captions import CORRECTION_NAMES, SIGNIFICANT, TEST_NAMES, title
from mmbench.report.comparison import Cell
from mmbench.report.formats import MARKUP, alignment_dict, alignment_markup
from mmbench.report.layout_rows import Row
from mmbench.report.layouts import LAYOUTS, Layout, Sheet
from mmbench.report.numbers import MISSING, fixed, mean_decimals
from mmbench.report.paradigms import name_of
from mmbench.report.publications import Beside, beside, facts

PAPER = "arXiv:2310.20343"
SEPARATE = "separate"
"""In `paper_encoders` what stands for encoders that are specific to a modality."""
FEW = 4
"""Names that a sentence lists before it counts."""
_SECOND = {
    "encoders": "train it with a second encoder too, for example --set features.visual=NAME",
    "paradigms": "train it with the fine-tuned set of an encoder, or end to end, too",
    "modalities": "train it with one modality alone too, for example --set features.visual=none",
}
"""What makes a second row of a group, by layout."""
FORMS = ("table", "github", "latex", "csv", "json")


@dataclass(frozen=True)
class Shown:
    """A layout and, where they are asked for, what stands beside it.

    Attributes:
        with_published: whether the paper's own numbers do.
        aligned: of each sheet, how well its systems' vectors agree; empty if it is not asked for.
    """

    layout: Layout
    with_published: bool = False
    aligned: tuple[AlignmentBeside, ...] = ()

    @cached_property
    def published(self) -> Mapping[tuple[int, int, int], Beside]:
        """The printed number of each sheet, row and column that has one."""
        found: dict[tuple[int, int, int], Beside] = {}
        for s, sheet in enumerate(self.layout.sheets if self.with_published else ()):
            rows = [row for row in beside(sheet.comparison) if row.source.startswith(PAPER)]
            own = f"{PAPER} Table {LAYOUTS[self.layout.kind]}"
            rows.sort(key=lambda row: row.source != own)
            for r, row in enumerate(self.layout.rows):
                for c, column in enumerate(sheet.comparison.columns):
                    named = {
                        one.variant: one
                        for one in reversed(rows)
                        if (one.label, one.metric) == (row.label, str(column.metric))
                    }
                    if (one := self._same(row, named)) is not None:
                        found[s, r, c] = one
        return found

    def _same(self, row: Row, named: Mapping[str, Beside]) -> Beside | None:
        """The one of a recommender's printed numbers that is of a row's encoder and paradigm.

        Args:
            row: of the layout.
            named: the numbers by their variant: encoder, paradigm and modalities.
        """
        known = facts()["paper_encoders"]
        name = next((key for key, names in known.items() if row.encoder in names), None)
        if name is None and (row.is_separate or row.paradigm == "fixed"):
            name = next(key for key, names in known.items() if SEPARATE in names)
        paradigm = "pt" if row.paradigm == "fixed" else row.paradigm
        letters = row.letters.replace("&", "").lower()
        if (exact := named.get(f"{name} {paradigm} {letters}")) is not None:
            return exact
        # VBPR reads pictures alone there.
        alike = [one for key, one in named.items() if key.startswith(f"{name} {paradigm} ")]
        fits = self.layout.kind != "modalities" and "(" not in row.label
        return alike[0] if len(alike) == 1 and fits else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A table for each dataset, and what they say about themselves."""
        layout = self.layout
        ends = [r for r, row in enumerate(layout.rows[:-1]) if layout.rows[r + 1].group > row.group]
        for s, sheet in enumerate(layout.sheets):
            yield Text(("\n" if s else "") + title(sheet.comparison), style="bold")
            blocks = [self._block(s, sheet, c) for c in range(len(sheet.comparison.columns))]
            labels = [row.label for row in layout.rows]
            for table in tables(labels, blocks, options.max_width, head="Method", ends=ends):
                yield Text("")
                yield table
            if self.aligned:
                yield from aligning.terminal(self.aligned[s], options.max_width)
        yield Text("")
        for line in self.notes():
            yield Text(line, style="dim")

    def _block(self, s: int, sheet: Sheet, c: int) -> Block:
        column = sheet.comparison.columns[c]
        cells = [sheet.cell(r, c) for r in range(len(self.layout.rows))]
        decimals = mean_decimals(cell.mean for cell in cells if cell)
        printed = any(one.comparable for key, one in self.published.items() if key[::2] == (s, c))
        rows = []
        for r, cell in enumerate(cells):
            mean = Text(fixed(cell.mean if cell else None, decimals))
            if cell and cell.is_best:
                mean.stylize("bold")
            mean += Text(SIGNIFICANT if _is_marked(sheet, cell) else " ")
            rows.append((mean, Text(self._printed(s, r, c))) if printed else (mean,))
        heads = ("ours ", "publ.") if printed else ("mean ",)
        return Block((column.head,), heads, tuple(rows))

    def _printed(self, s: int, r: int, c: int) -> str:
        one = self.published.get((s, r, c))
        return fixed(one.published if one and one.comparable else None, 4)

    def _why_untested(self) -> str:
        """What is missing for a comparison of rows."""
        layout = self.layout
        if not any(c.metric.per_user for s in layout.sheets for c in s.comparison.columns):
            return "these metrics are no means over users"
        per_group = [
            Counter(
                row.group for row, at in zip(layout.rows, s.places, strict=True) if at is not None
            )
            for s in layout.sheets
        ]
        if all(max(counts.values(), default=0) < 2 for counts in per_group):
            more = _SECOND[layout.kind]
            return f"rows of one model are compared, and each model has one here; {more}"
        return f"no group holds both the reference ({layout.reference}) and another row"

    def notes(self) -> list[str]:
        """The sentences below, one per thing to know."""
        layout, first = self.layout, self.layout.sheets[0].comparison
        number = LAYOUTS[layout.kind]
        rows = [row for sheet in layout.sheets for row in sheet.comparison.cells]
        bold = " Bold: the best of its group." if any(c.is_best for r in rows for c in r) else ""
        lines = [f"Laid out as Table {number} of arXiv 2310.20343.{bold}"]
        if any(
            family.over_users for sheet in layout.sheets for family in sheet.comparison.families
        ):
            pairs = ", every pair of a group" if "best" in layout.reference else ""
            correction = (
                "not corrected for multiple testing"
                if first.correction == "none"
                else f"{CORRECTION_NAMES.get(first.correction, first.correction)} over "
                f"{self._sizes()}{pairs}"
            )
            p = "p" if first.correction == "none" else "adj. p"
            lines.append(
                f"{SIGNIFICANT} {p} < {first.alpha:g} against {layout.reference}: "
                f"{TEST_NAMES.get(first.test, first.test)} over users, each user's value averaged "
                f"over the seeds; {correction}."
            )
        else:
            lines.append(f"No test: {self._why_untested()}.")
        seeds = sorted({len(s.seeds) for sheet in layout.sheets for s in sheet.comparison.systems})
        lines.append(f"Seeds: {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} each.")
        several = [
            f"{row.label} ({', '.join(dict.fromkeys(str(n) for n in counts if n > 1))})"
            for row, counts in zip(
                layout.rows,
                zip(*(sheet.trials for sheet in layout.sheets), strict=True),
                strict=True,
            )
            if max(counts) > 1
        ]
        if several:
            lines.append(f"Best on validation of several trials: {', '.join(several)}.")
        if any(place is None for sheet in layout.sheets for place in sheet.places):
            lines.append(f"{MISSING} no run.")
        if layout.rows_learn:
            lines.append(
                f"Stored vectors learn with the recommender in: {', '.join(layout.rows_learn)}."
            )
        if any("open" in row.paradigm for row in layout.rows):
            lines.append(
                f"{name_of('open')} neither the run nor --data-dir tells how the encoder was "
                "trained."
            )
        for why in dict.fromkeys(why for _, why in layout.left_out):
            named = [what for what, reason in layout.left_out if reason == why]
            more = f" and {len(named) - FEW} more" if len(named) > FEW else ""
            lines.append(f"Left out ({why}): {', '.join(named[:FEW])}{more}.")
        return lines + (self._published_notes() if self.with_published else [])

    def _sizes(self) -> str:
        """How many comparisons were corrected together."""
        comparisons = [sheet.comparison for sheet in self.layout.sheets]
        sizes = sorted({family.over_users for c in comparisons for family in c.families})
        told = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
        of = "dataset" if comparisons[0].family == "table" else "metric"
        of += " and dataset" if of == "metric" and len(comparisons) > 1 else ""
        return f"{told} comparison{'' if sizes == [1] else 's'} per {of}"

    def _published_notes(self) -> list[str]:
        rows = list(self.published.values())
        if not rows:
            return [f"{PAPER} prints none of these rows."]
        lines = []
        if any(row.comparable for row in rows):
            differs = dict.fromkeys(
                what
                for row in rows
                if row.comparable
                for what in row.differs
                # A row is the one of its encoder and paradigm.
                if not what.startswith(
                    ("its encoders", "features there: CLIP", "features there: V")
                )
            )
            lines.append(
                f"publ.: as {PAPER} prints it; no test, since no value for each user is published."
                + (f" What differs: {'; '.join(differs)}." if differs else "")
            )
        reasons = dict.fromkeys(reason for row in rows for reason in row.reasons)
        if reasons:
            lines.append(f"Published, but not comparable, hence not shown: {'; '.join(reasons)}.")
        return lines


def render_layout(shown: Shown, form: str) -> str:
    """A layout as text: "table" (plain, 80 wide), "github", "latex", "csv" or "json".

    Raises:
        UnknownNameError: there is no such format.
    """
    if form == "table":
        console = Console(width=80, file=io.StringIO(), color_system=None)
        with console.capture() as captured:
            console.print(shown)
        return captured.get()
    if form == "json":
        return json.dumps(as_dict(shown), indent=2, allow_nan=False)
    if form == "csv":
        rows = records(shown)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            means = " ".join("" if mean is None else repr(mean) for mean in row["seed_means"])
            writer.writerow({**row, "seed_means": means})
        return text.getvalue()
    if form in MARKUP:
        laid = _github(shown) if form == "github" else _latex(shown)
        further = [
            f"{_dataset(sheet, form)}\n{alignment_markup(aligned, form)}"
            for sheet, aligned in zip(shown.layout.sheets, shown.aligned, strict=False)
        ]
        return "\n\n".join([laid, *further])
    raise UnknownNameError("format", form, FORMS)


def as_dict(shown: Shown) -> dict[str, Any]:
    """A layout as plain values, ready for JSON."""
    layout = shown.layout
    return {
        "schema": 1,
        "layout": layout.kind,
        "paper": PAPER,
        "table": LAYOUTS[layout.kind],
        "reference": layout.reference,
        "notes": shown.notes(),
        "datasets": [
            {
                "dataset": sheet.comparison.dataset,
                "split": sheet.comparison.split,
                "n_users": sheet.comparison.n_users,
                "families": [asdict(family) for family in sheet.comparison.families],
                **({"alignment": alignment_dict(shown.aligned[s])} if shown.aligned else {}),
                "runs": {
                    system.label: [str(run.path) for run in system.runs]
                    for system in sheet.comparison.systems
                },
            }
            for s, sheet in enumerate(layout.sheets)
        ],
        "cells": records(shown),
    }


_CELL = ("mean", "seed_sd", "n_users", "n_undefined", "is_best", "is_reference")
_CONTRAST = (
    "reference", "difference", "relative", "low", "high", "d_z", "statistic", "p", "adjusted",
    "wins", "ties", "losses", "seed_spread_exceeds",
)  # fmt: skip


def records(shown: Shown) -> list[dict[str, Any]]:
    """One flat record per dataset, row and metric that there is a run of."""
    found = []
    for s, sheet in enumerate(shown.layout.sheets):
        for r, row in enumerate(shown.layout.rows):
            for c, column in enumerate(sheet.comparison.columns):
                cell = sheet.cell(r, c)
                if cell is None:
                    continue
                one = shown.published.get((s, r, c))
                record: dict[str, Any] = {
                    "dataset": sheet.comparison.dataset,
                    "label": row.label,
                    "model": row.model,
                    "encoder": row.encoder,
                    "paradigm": name_of(row.paradigm),
                    "modalities": row.letters,
                    "group": row.group,
                    "metric": str(column.metric),
                    "n_trials": sheet.trials[r],
                    "n_seeds": len(cell.seed_means),
                    "seed_means": [_finite(mean) for mean in cell.seed_means],
                    **{name: getattr(cell, name) for name in _CELL},
                    **{name: getattr(cell.contrast, name, None) for name in _CONTRAST},
                    "is_significant": _is_marked(sheet, cell),
                    **(
                        {
                            "published": one.published if one else None,
                            "published_source": one.source if one else None,
                            "comparable": one.comparable if one else None,
                        }
                        if shown.with_published
                        else {}
                    ),
                }
                if shown.aligned:
                    record |= aligning.csv_fields(shown.aligned[s], row.label)
                found.append({name: _finite(value) for name, value in record.items()})
    return found


def _dataset(sheet: Sheet, form: str) -> str:
    name = sheet.comparison.dataset
    return f"{name}:" if form == "github" else f"% {name}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_marked(sheet: Sheet, cell: Cell | None) -> bool:
    contrast = cell.contrast if cell else None
    return contrast is not None and contrast.adjusted < sheet.comparison.alpha


def _texts(shown: Shown, bold: str, star: str) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Heads (dataset, metric) and the texts of each row, datasets side by side."""
    heads: list[tuple[str, str]] = []
    rows: list[list[str]] = [[] for _ in shown.layout.rows]
    for s, sheet in enumerate(shown.layout.sheets):
        for c, column in enumerate(sheet.comparison.columns):
            cells = [sheet.cell(r, c) for r in range(len(rows))]
            decimals = mean_decimals(cell.mean for cell in cells if cell)
            heads.append((sheet.comparison.dataset, column.head))
            if shown.with_published:
                heads.append((sheet.comparison.dataset, f"{column.head} publ."))
            for r, cell in enumerate(cells):
                text = fixed(cell.mean if cell else None, decimals)
                if cell and cell.is_best:
                    text = bold.format(text)
                rows[r].append(text + (star if _is_marked(sheet, cell) else ""))
                if shown.with_published:
                    rows[r].append(shown._printed(s, r, c))
    return heads, rows


def _github(shown: Shown) -> str:
    heads, rows = _texts(shown, "**{}**", "\\*")
    several = len(shown.layout.sheets) > 1
    names = ["Method", *(f"{dataset} {metric}" if several else metric for dataset, metric in heads)]
    titles = [f"**{title(sheet.comparison)}**" for sheet in shown.layout.sheets]
    lines = ["| " + " | ".join(names) + " |", "|" + "|".join([":--", *["--:"] * len(heads)]) + "|"]
    lines += [
        "| " + " | ".join([row.label.replace("|", "\\|"), *texts]) + " |"
        for row, texts in zip(shown.layout.rows, rows, strict=True)
    ]
    notes = [
        f"- {re.sub('^[*]', lambda _: chr(92) + '*', note).replace('<', '&lt;')}"
        for note in shown.notes()
    ]
    return "\n".join([*titles, "", *lines, "", *notes])


def _latex(shown: Shown) -> str:
    """A booktabs table with the datasets above their metrics and a rule after each group."""
    heads, rows = _texts(shown, "\\textbf{{{}}}", "$^{*}$")
    layout = shown.layout
    datasets = list(dict.fromkeys(dataset for dataset, _ in heads))
    width = len(heads) // len(datasets)
    above = [f"\\multicolumn{{{width}}}{{c}}{{{_escaped(dataset)}}}" for dataset in datasets]
    rules = [
        f"\\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(datasets))
    ]
    lines = [f"% {title(sheet.comparison)}" for sheet in layout.sheets]
    lines += [f"% {note}" for note in shown.notes()]
    lines += [
        f"\\begin{{tabular}}{{l{'r' * len(heads)}}}",
        "\\toprule",
        " & ".join(["Dataset", *above]) + " \\\\",
        " ".join(rules),
        " & ".join(["Method", *(_escaped(metric) for _, metric in heads)]) + " \\\\",
        "\\midrule",
    ]
    for r, (row, texts) in enumerate(zip(layout.rows, rows, strict=True)):
        if r and row.group > layout.rows[r - 1].group:
            lines.append("\\midrule")
        lines.append(" & ".join([_escaped(row.label), *texts]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text).replace("~", "\\textasciitilde{}")
