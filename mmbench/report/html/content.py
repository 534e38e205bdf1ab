"""What a report is made of: sections that hold sentences, tables, figures and text to unfold.

Sections say *what* is shown, in plain values. How it looks is known to the template alone, which
escapes every text; how it is written to files, to `exporting.py`. A section is made by a function
from the evidence, so a further study adds one function and touches nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from matplotlib.figure import Figure as Drawing

Tone = Literal["", "best", "better", "worse", "muted"]
Value = float | int | str | None


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is read.
        value: what is sorted by and written to CSV, at full precision; None where there is none.
        tone: how it stands out; never the only carrier of its meaning.
    """

    text: str
    value: Value = None
    tone: Tone = ""

    @property
    def sort_key(self) -> str:
        """The value as an attribute of the page; empty sorts last."""
        if self.value is None or (isinstance(self.value, float) and not math.isfinite(self.value)):
            return ""
        return repr(self.value) if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True)
class Column:
    """Head of a column; `group` is a head over several neighbours that share it."""

    head: str
    numeric: bool = True
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its head.

    Attributes:
        name: of its files and its id in the page.
        caption: one line above it.
        columns: their heads.
        rows: cells, as many as columns.
        notes: sentences below it.
        sortable: whether its heads sort it.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sortable: bool = True

    @property
    def grouped(self) -> tuple[tuple[str, int], ...]:
        """The upper heads with the number of columns below each; empty if there are none."""
        if not any(column.group for column in self.columns):
            return ()
        runs: list[tuple[str, int]] = []
        for column in self.columns:
            if runs and column.group and runs[-1][0] == column.group:
                runs[-1] = column.group, runs[-1][1] + 1
            else:
                runs.append((column.group, 1))
        return tuple(runs)


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its files and its id in the page.
        title: one line.
        description: what it shows, for those who cannot see it.
        draw: makes the drawing; called within `drawing.style`.
    """

    name: str
    title: str
    description: str
    draw: Callable[[], Drawing]


@dataclass(frozen=True)
class Text:
    """Sentences, one paragraph each."""

    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Figures side by side, as many as fit."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file."""

    text: str


@dataclass(frozen=True)
class Details:
    """Parts to unfold."""

    title: str
    parts: tuple[Part, ...]


Part = Text | Table | Gallery | Listing | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        name: of its place in the page.
        heading: what stands above it.
        parts: what stands below it.
        menu: what the navigation calls it; the heading unless given.
    """

    name: str
    heading: str
    parts: tuple[Part, ...] = field(default=())
    menu: str = ""


def tables_of(parts: tuple[Part, ...]) -> list[Table]:
    """Every table among parts, unfolded ones included."""
    found: list[Table] = []
    for part in parts:
        if isinstance(part, Table):
            found.append(part)
        elif isinstance(part, Details):
            found += tables_of(part.parts)
    return found


def figures_of(parts: tuple[Part, ...]) -> list[Figure]:
    """Every figure among parts, unfolded ones included."""
    found: list[Figure] = []
    for part in parts:
        if isinstance(part, Gallery):
            found += part.figures
        elif isinstance(part, Details):
            found += figures_of(part.parts)
    return found
